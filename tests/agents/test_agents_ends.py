"""Turns of the real agents that are ended: by a message, a cancel or a kill."""

import os
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import psutil
from adapters import STATES
from attrs import define, field
from behaviours import behaviour
from cases import (
    PATIENCE_S,
    Case,
    Lasting,
    answer,
    ended,
    happened,
    is_alive,
    log,
    question,
    said,
    send,
    turn,
    until,
)
from gateway import family

from agent_orchestrator import Client, Run, RunStatus, Session

TERMINAL = ("run.completed", "run.failed", "run.canceled")


@define
class Turns:
    """Sessions whose turns are each in another state.

    :ivar runs: the run of each state.
    """

    case: Case
    lasting: Lasting = field(factory=Lasting)
    runs: dict[str, tuple[Session, str]] = field(factory=dict)
    _word: str = field(factory=lambda: f"over{secrets.token_hex(8)}")

    @property
    def _gate(self) -> Path:
        return self.case.workspace / "gate"

    @property
    def scripts(self) -> dict[str, str]:
        """What puts an agent in each state that is tried with it."""
        agent = self.case.agent
        found = {
            "starting": f"wait {self._gate}\nsay started",
            "thinking": "hang",
            "answering": "stream 10000 50 word",
            "commanding": f"shell {self.lasting.command}\nsay unheard",
            "asking": f"{agent.asking} sh -c 'echo ran >> {self.case.workspace}/ran'\nsay done",
            "answered": f"wait {self._gate}\nstream 3 0 {self._word}",
        }
        names = STATES if os.environ.get("EACH_STATE") == "1" else agent.states
        return {one: found[one] for one in names if one != "asking" or agent.can("allow")}

    @property
    def answer(self) -> str:
        """The answer of the one that has answered."""
        return "".join(f"{self._word}{number} " for number in range(3))

    async def begin(self, client: Client, *left_out: str) -> None:
        """Bring a session into each state; last into that whose agent is only started."""
        scripts = {one: text for one, text in self.scripts.items() if one not in left_out}
        starting = scripts.pop("starting", None)
        async with anyio.create_task_group() as tasks:
            for state, text in scripts.items():
                tasks.start_soon(self._begin, client, state, text)
        if starting is not None:
            await self._begin(client, "starting", starting)

    async def _begin(self, client: Client, state: str, text: str) -> None:
        case = self.case
        options = {} if state == "asking" else case.agent.unasked
        session = await case.session(client, **options)
        self.runs[state] = session, await send(client, session, text)
        match state:
            case "starting":
                pass
            case "asking":
                await question(client, self.runs[state][1])
            case "commanding":
                await happened(client, session, "tool.started")
                await until(self.lasting.processes)
            case "answering" if case.agent.can("deltas"):
                await happened(client, session, "agent.message.delta")
            case _:
                await case.asked(text)

    async def answer_unheard(self) -> None:
        """Stop the daemon. Let the model answer, and wait until the agent has the answer in its files."""
        self.case.daemon.daemon.signal(signal.SIGSTOP)
        self._gate.touch()
        if "answered" in self.runs:
            with anyio.fail_after(PATIENCE_S):
                while not self.case.has_stored(self.answer.split()[-1]):
                    await anyio.sleep(0.05)

    async def go_on(
        self, client: Client, thread_ids: dict[str, str | None], unheard: Sequence[str] = ()
    ) -> None:
        """Expect that the next message of each session goes on in its conversation, and that each run ended once.

        :param unheard: runs whose first process may have ended before it had the prompt.
        """
        for state, (session, run_id) in self.runs.items():
            run = await turn(client, session, f"say after {state}")
            assert answer(run) == f"after {state}"
            is_new = state == "starting" or run_id in unheard
            expected = run.thread_id if is_new else thread_ids[state]
            assert run.thread_id == expected is not None
            texts = self.case.agent.texts(self.case.requests[-1])
            is_known = self.scripts[state] in [text.lstrip("\n") for text in texts]
            assert is_known or run_id in unheard, state
            events = await log(client, session)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            ends = [event.run_id for event in events if event.event_type in TERMINAL]
            assert len(ends) == len(set(ends)), state

    async def threads(self, client: Client) -> dict[str, str | None]:
        return {
            state: (await client.get_run(one)).thread_id for state, (_, one) in self.runs.items()
        }


@behaviour("cancel")
async def test_a_cancel_in_each_state_leaves_nothing_running(case: Case) -> None:
    turns = Turns(case)
    async with case.client() as client:
        await turns.begin(client, "answered")
        session, _ = turns.runs["commanding"]
        queued = await send(client, session, "say unheard")
        assert (await client.cancel_run(queued)).run.status is RunStatus.CANCELED
        assert (await client.diagnose_run(queued)).diagnostics.attempts == ()
        for _, run_id in reversed(turns.runs.values()):
            await client.cancel_run(run_id)
        for state, (_, run_id) in turns.runs.items():
            assert (await ended(client, run_id)).status is RunStatus.CANCELED, state
        # Recorded only when they are gone: there is nothing to wait for here.
        assert turns.lasting.processes() == []
        for session, _ in turns.runs.values():
            assert await said(client, session, "say still here") == "still here"
    assert "say unheard" not in case.prompts
    assert not (case.workspace / "ran").exists()


@behaviour("interrupt")
async def test_a_message_interrupts_the_run_in_each_state(case: Case) -> None:
    turns = Turns(case)
    async with case.client() as client:
        await turns.begin(client, "answered")
        session, _ = turns.runs["commanding"]
        queued = await send(client, session, "say queued")
        last = {}
        for state, (session, _) in reversed(turns.runs.items()):
            last[state] = await send(client, session, "say last", when_busy="interrupt")
        for state, run_id in last.items():
            assert answer(await ended(client, run_id)) == "last", state
            assert (await client.get_run(turns.runs[state][1])).status is RunStatus.CANCELED
        assert turns.lasting.processes() == []
        assert answer(await ended(client, queued)) == "queued"
    assert not (case.workspace / "ran").exists()


@behaviour("daemon_killed")
async def test_after_a_killed_daemon_runs_go_on_in_each_state(case: Case) -> None:
    turns = Turns(case)
    async with case.client() as client:
        await turns.begin(client, "starting")
        threads = await turns.threads(client)
        queued = await send(client, turns.runs["commanding"][0], "say queued")
        await turns.begin(client, *(set(STATES) - {"starting"}))
    everything = family(case.daemon.daemon.pid)
    await turns.answer_unheard()
    await anyio.to_thread.run_sync(case.daemon.kill)
    await until(lambda: not any(is_alive(one) for one in everything))
    assert turns.lasting.processes() == []
    await anyio.to_thread.run_sync(case.daemon.start)
    async with case.client() as client:
        for state, (session, run_id) in turns.runs.items():
            await happened(client, session, "run.recovered")
            if state in ("thinking", "answering"):
                # The agent may get the same prompt again, or be told of what happened.
                await client.cancel_run(run_id)
                await ended(client, run_id)
                continue
            if state == "asking":
                (asked,) = (await client.requests(session_id=session.id)).requests
                await client.resolve_request(asked.id, "approve")
            run = await ended(client, run_id)
            assert run.status is RunStatus.COMPLETED, (state, run.error)
        assert answer(await ended(client, queued)) == "queued"
        # What the agent had begun is not asked again: it is told that it was stopped.
        for state in turns.runs.keys() & {"commanding", "answered"}:
            times = case.prompts.count(turns.scripts[state])
            assert times == 1 or (state == "answered" and case.agent.confirms_late)
        await turns.go_on(client, threads)


@behaviour("agent_killed")
async def test_a_killed_agent_fails_its_run_and_the_conversation_goes_on(case: Case) -> None:
    turns = Turns(case)
    async with case.client() as client:
        await turns.begin(client, "starting")
        threads = await turns.threads(client)
        queued = await send(client, turns.runs["commanding"][0], "say queued")
        pids, unheard = set(), list[str]()
        for _, run_id in turns.runs.values():
            pids.add(await pid_of(client, run_id))
        await turns.answer_unheard()
        for pid in pids:
            with suppress(ProcessLookupError):  # it had done its work
                os.kill(pid, signal.SIGKILL)
        case.daemon.daemon.signal(signal.SIGCONT)
        for state, (_, run_id) in turns.runs.items():
            if state == "thinking" and case.agent.confirms_late:
                # Nothing shows that it had the prompt, so another process gets it.
                await until(lambda: case.prompts.count(turns.scripts["thinking"]) == 2)
                await client.cancel_run(run_id)
                assert (await ended(client, run_id)).status is RunStatus.CANCELED
                unheard.append(run_id)
                continue
            run = await ended(client, run_id)
            if state != "answered" or run.result is None:
                assert has_crashed(run), (state, run)
            else:
                assert answer(run) == turns.answer
                unheard += [run_id] if case.agent.confirms_late else []
        assert answer(await ended(client, queued)) == "queued"
        assert turns.lasting.processes() == []
        if "starting" in turns.scripts:
            run = await kill_while_it_starts(turns, client)
            assert run.status is RunStatus.COMPLETED or has_crashed(run)
            unheard.append(run.id)
        await turns.go_on(client, threads, unheard)
        for state in turns.runs.keys() - {"starting"}:
            session, _ = turns.runs[state]
            begun = [one.event_type for one in await log(client, session)].count("thread.started")
            assert begun == 1


async def pid_of(client: Client, run_id: str) -> int:
    """Wait until the agent of a run is known."""
    with anyio.fail_after(PATIENCE_S):
        while (found := (await client.diagnose_run(run_id)).diagnostics.active_pid) is None:
            await anyio.sleep(0.05)
    return found


def has_crashed(run: Run) -> bool:
    return run.error is not None and run.error.code == "agent_crashed"


async def kill_while_it_starts(turns: Turns, client: Client) -> Run:
    """Send a message, and kill the process that is started for it at once."""
    before = set() if turns.case.agent.shares_processes else processes(turns.case)
    await turns.begin(client, *(set(STATES) - {"starting"}))
    await until(lambda: processes(turns.case) - before)
    for process in processes(turns.case) - before:
        with suppress(psutil.NoSuchProcess):  # a program that it starts for a moment
            process.kill()
    return await ended(client, turns.runs["starting"][1])


def processes(case: Case) -> set[psutil.Process]:
    """Return the processes of the agent."""
    found = family(case.daemon.daemon.pid).items()
    return {process for process, command in found if case.agent.program in command}

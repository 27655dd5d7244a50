"""Turns of the real agents that are ended: by a message, a cancel or a kill."""

import os
import signal

import anyio
from behaviours import behaviour
from cases import (
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

from agent_orchestrator import Client, RunStatus, Session


def states(case: Case, lasting: Lasting) -> dict[str, str]:
    """Return what puts an agent in each state of a turn."""
    found = {
        "thinking": "hang",
        "answering": "stream 10000 50 word",
        "commanding": f"shell {lasting.command}\nsay unheard",
        "asking": f"{case.agent.asking} sh -c 'echo ran >> {case.workspace}/ran'\nsay done",
    }
    if "allow" in case.agent.cannot:
        del found["asking"]
    return found


async def begin(
    case: Case, client: Client, lasting: Lasting, runs: dict[str, tuple[Session, str]]
) -> None:
    """Bring sessions into all states at once."""

    async def one(state: str, text: str) -> None:
        sandbox = "workspace-write" if state == "asking" else "danger-full-access"
        session = await case.session(client, sandbox=sandbox)
        runs[state] = session, await send(client, session, text)
        match state:
            case "asking":
                await question(client, runs[state][1])
            case "commanding":
                await happened(client, session, "tool.started")
                await until(lasting.processes)
            case "answering" if "deltas" not in case.agent.cannot:
                await happened(client, session, "agent.message.delta")
            case _:
                await case.asked(text)

    async with anyio.create_task_group() as tasks:
        for state, text in states(case, lasting).items():
            tasks.start_soon(one, state, text)


@behaviour("cancel")
async def test_a_cancel_in_each_state(case: Case) -> None:
    lasting = Lasting()
    runs: dict[str, tuple[Session, str]] = {}
    async with case.client() as client:
        await begin(case, client, lasting, runs)
        session, _ = runs["thinking"]
        queued = await send(client, session, "say unheard")
        assert (await client.cancel_run(queued)).run.status is RunStatus.CANCELED
        assert (await client.diagnose_run(queued)).diagnostics.attempts == ()
        for _, run_id in runs.values():
            await client.cancel_run(run_id)
        for state, (_, run_id) in runs.items():
            assert (await ended(client, run_id)).status is RunStatus.CANCELED, state
        # Recorded only when they are gone: there is nothing to wait for here.
        assert lasting.processes() == []
        for session, _ in runs.values():
            assert await said(client, session, "say still here") == "still here"
    assert "say unheard" not in case.prompts
    assert not (case.workspace / "ran").exists()


@behaviour("interrupt")
async def test_a_message_interrupts(case: Case) -> None:
    lasting = Lasting()
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        run_id = await send(client, session, f"shell {lasting.command}\nsay unheard")
        await until(lasting.processes)
        queued = await send(client, session, "say queued")
        last = await send(client, session, "say last", when_busy="interrupt")
        assert answer(await ended(client, last)) == "last"
        assert lasting.processes() == []
        assert (await client.get_run(run_id)).status is RunStatus.CANCELED
        assert answer(await ended(client, queued)) == "queued"


@behaviour("daemon_killed")
async def test_a_killed_daemon(case: Case) -> None:
    lasting = Lasting()
    runs: dict[str, tuple[Session, str]] = {}
    async with case.client() as client:
        await begin(case, client, lasting, runs)
        threads = {state: (await client.get_run(one)).thread_id for state, (_, one) in runs.items()}
    everything = family(case.daemon.daemon.pid)
    await anyio.to_thread.run_sync(case.daemon.kill)
    await until(lambda: not any(is_alive(one) for one in everything))
    assert lasting.processes() == []
    await anyio.to_thread.run_sync(case.daemon.start)
    async with case.client() as client:
        for state, (session, run_id) in runs.items():
            await happened(client, session, "run.recovered")
            if state in ("thinking", "answering"):
                # The agent may get the same prompt again, or be told of what happened.
                await client.cancel_run(run_id)
                continue
            if state == "asking":
                (asked,) = (await client.requests(session_id=session.id)).requests
                await client.resolve_request(asked.id, "approve")
            run = await ended(client, run_id)
            assert run.status is RunStatus.COMPLETED, (state, run.error)
        # What the agent had begun is not asked again: it is told that it was stopped.
        assert case.prompts.count(states(case, lasting)["commanding"]) == 1
        for state, (session, run_id) in runs.items():
            await ended(client, run_id)
            run = await turn(client, session, f"say after {state}")
            assert answer(run) == f"after {state}"
            assert run.thread_id == threads[state] is not None
            texts = case.agent.texts(case.requests[-1])
            assert states(case, lasting)[state] in [text.lstrip("\n") for text in texts], state


@behaviour("agent_killed")
async def test_a_killed_agent(case: Case) -> None:
    async with case.client() as client:
        session = await case.session(client, sandbox="danger-full-access")
        first = await turn(client, session, "say first")
        run_id = await send(client, session, "say before\nshell true\nhang")
        await until(lambda: len(case.requests) == 3)
        pid = (await client.diagnose_run(run_id)).diagnostics.active_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        run = await ended(client, run_id)
        assert run.error is not None
        assert run.error.code == "agent_crashed"
        last = await turn(client, session, "say last")
        events = await log(client, session)
    assert answer(last) == "last"
    assert last.thread_id == first.thread_id
    assert "say first" in case.agent.texts(case.requests[-1])
    assert [event.event_type for event in events].count("thread.started") == 1

"""How a person's program gets a session's conversation, and what it leaves when it ends."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve

from agent_orchestrator import Client, RunStatus, open_embedded
from agent_orchestrator.domain.access import Grant, Principal
from agent_orchestrator.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    SessionBusy,
    SessionClosed,
)
from agent_orchestrator.domain.model import Event, Run, RunResult
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.processes import process_start_id
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.invariants import history, violations
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio

LIMIT_S = 60


@define
class Program:
    """A process of a person, which ends when the test says so."""

    process: subprocess.Popen[bytes]
    start_id: str

    @property
    def holder(self) -> dict[str, Any]:
        return {"pid": self.process.pid, "process_start_id": self.start_id}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def program() -> Iterator[Program]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start_id = process_start_id(process.pid)
    assert start_id is not None
    person = Program(process, start_id)
    try:
        yield person
    finally:
        person.end()


async def begun(client: Client) -> str:
    """Return a session with a conversation."""
    session = await client.create_session(provider="scripted")
    sent = await client.send_message(session.id, "thread t-1")
    assert sent.run is not None
    await ended(client, sent.run)
    return session.id


async def ended(client: Client, run: Run) -> Run:
    reply = await client.wait_run(run.id, timeout_s=LIMIT_S)
    assert not reply.timed_out
    return reply.run


async def log_of(client: Client, session_id: str, run: Run) -> list[Event]:
    return [event async for event in client.events(session_id) if event.run_id == run.id]


async def test_a_takeover_holds_the_queue_and_its_record_comes_before_the_next_message(
    tmp_path: Path,
) -> None:
    runner = ScriptedRunner()
    async with open_embedded(tmp_path / "d.db", runners=[runner], max_concurrency=1) as client:
        session_id = await begun(client)
        runner.record.append("said before the program had it")
        with program() as person:
            reply = await client.attach_session(session_id, **person.holder)
            held = reply.run
            assert reply.program.argv == ("agent", "--resume", "t-1")
            assert dict(reply.program.env) == {"AGENT_HOME": "/agent"}
            assert (held.status, held.kind, held.worker_id) == (RunStatus.WAITING, "attach", None)
            assert held.holder is not None
            assert held.holder.principal == "local"
            assert held.holder.pid == person.process.pid
            queued = (await client.send_message(session_id, "say after")).run
            # The only worker is free for other sessions.
            other = await client.create_session(provider="scripted")
            free = (await client.send_message(other.id, "say free")).run
            assert queued is not None
            assert free is not None
            assert (await ended(client, free)).status is RunStatus.COMPLETED
            assert (await client.get_run(queued.id)).status is RunStatus.QUEUED
            diagnosis = (await client.diagnose_run(queued.id)).diagnostics
            assert diagnosis.likely_issue.code == "queued_behind_run"
            assert f"process {person.process.pid}" in diagnosis.likely_issue.message
            diagnosis = (await client.diagnose_run(held.id)).diagnostics
            assert (diagnosis.likely_issue.code, diagnosis.active_pid) == (
                "held",
                person.process.pid,
            )
            runner.record.extend(["hello", "and more"])
            person.end()
        done, after = await ended(client, held), await ended(client, queued)
        log = await log_of(client, session_id, held)
        assert violations(await history(client)) == []
    assert done.status is RunStatus.COMPLETED
    assert done.result is not None
    assert done.result.text == "and more"
    said = [(e.event_type, e.data["text"]) for e in log if "text" in e.data]
    assert said == [
        ("user.message", "hello"),
        ("agent.message", "hello"),
        ("user.message", "and more"),
        ("agent.message", "and more"),
    ]
    assert all(e.data["recorded_at"] is None for e in log if "text" in e.data)
    [waiting] = [e for e in log if e.event_type == "run.waiting"]
    assert waiting.data == {"held_by": "local", "pid": person.process.pid}
    assert done.finished_at is not None
    assert after.started_at is not None
    assert done.finished_at <= after.started_at
    assert runner.prompts == ["thread t-1", "say free", "say after"]


async def test_a_message_neither_interrupts_nor_steers_a_held_session(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        session_id = await begun(client)
        with program() as person:
            held = (await client.attach_session(session_id, **person.holder)).run
            for busy in ("interrupt", "reject"):
                with pytest.raises(SessionBusy, match=str(person.process.pid)) as caught:
                    await client.send_message(session_id, "x", when_busy=busy)
                assert caught.value.details == {"run_id": held.id}
            steered = await client.send_message(session_id, "say later", when_busy="steer")
            with pytest.raises(SessionBusy):
                await client.attach_session(session_id, **person.holder)
            with pytest.raises(SessionBusy):
                await client.update_session(session_id, cwd=str(tmp_path))
        assert steered.run is not None
        assert (await ended(client, steered.run)).result.text == "later"


async def test_a_busy_session_is_not_handed_over(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        session_id = await begun(client)
        sent = (await client.send_message(session_id, "ask may I?")).run
        assert sent is not None
        with anyio.fail_after(LIMIT_S):
            while not (requests := (await client.requests(session_id=session_id)).requests):
                await anyio.sleep(0.01)
        with program() as person:
            with pytest.raises(SessionBusy, match="run cancel") as caught:
                await client.attach_session(session_id, **person.holder)
            assert caught.value.details == {"run_id": sent.id}
            await client.resolve_request(requests[0].id, "approve")
            await ended(client, sent)
            assert (await client.attach_session(session_id, **person.holder)).run.is_held


async def test_a_canceled_takeover_ends_the_hold_and_not_the_program(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        session_id = await begun(client)
        with program() as person:
            held = (await client.attach_session(session_id, **person.holder)).run
            queued = (await client.send_message(session_id, "say next")).run
            assert queued is not None
            reply = await client.cancel_run(held.id)
            assert (reply.run.status, reply.canceled) == (RunStatus.CANCELED, (held.id,))
            assert (await ended(client, queued)).status is RunStatus.COMPLETED
            assert person.process.poll() is None
            # Its end later changes nothing.
            again = (await client.attach_session(session_id, **person.holder)).run
            person.end()
            assert (await ended(client, again)).status is RunStatus.COMPLETED
        assert (await client.get_run(held.id)).status is RunStatus.CANCELED
        assert violations(await history(client)) == []


@pytest.mark.parametrize("ends", ["before", "while the daemon is away", "after"])
async def test_a_hold_survives_a_restart_and_does_not_outlive_its_program(
    tmp_path: Path, ends: str
) -> None:
    runner = ScriptedRunner()
    with program() as person:
        async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
            session_id = await begun(client)
            held = (await client.attach_session(session_id, **person.holder)).run
            queued = (await client.send_message(session_id, "say after")).run
            assert queued is not None
            runner.record.append("hello")
            if ends == "before":
                person.end()
        if ends == "while the daemon is away":
            person.end()
        async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
            if ends == "after":
                assert (await client.get_run(held.id)).is_held
                with anyio.move_on_after(0.1):
                    await client.wait_run(queued.id, timeout_s=LIMIT_S)
                assert (await client.get_run(queued.id)).status is RunStatus.QUEUED
                person.end()
            done = await ended(client, held)
            assert (done.status, done.result and done.result.text) == (
                RunStatus.COMPLETED,
                "hello",
            )
            assert (await ended(client, queued)).status is RunStatus.COMPLETED
            log = await log_of(client, session_id, held)
            assert [e.event_type for e in log].count("user.message") == 1
            assert violations(await history(client)) == []


async def test_a_pid_that_now_belongs_to_another_process_holds_nothing(tmp_path: Path) -> None:
    """The process of the hold has ended while the daemon was away, and its pid was given away since."""
    store = Survivor()
    with program() as person, program() as other:
        async with open_embedded(store, runners=[ScriptedRunner()]) as client:
            session_id = await begun(client)
            held = (await client.attach_session(session_id, **person.holder)).run
            assert held.holder is not None
            earlier = f"{other.start_id}0"  # the two may have started within one tick
            holder = evolve(held.holder, pid=other.process.pid, process_start_id=earlier)
            reused = evolve(held, holder=holder)
            await store.transact(lambda tx: tx.put_run(reused))
        async with open_embedded(store, runners=[ScriptedRunner()]) as client:
            assert (await ended(client, held)).status is RunStatus.COMPLETED
            assert other.process.poll() is None


async def test_a_record_that_is_being_read_is_read_on_after_a_restart(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    with program() as person:
        async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
            session_id = await begun(client)
            held = (await client.attach_session(session_id, **person.holder)).run
            runner.record.extend(["first", "hold", "last"])
            person.end()
            await recorded(client, session_id, "hold")
        async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
            done = await ended(client, held)
            log = await log_of(client, session_id, held)
            messages = (await client.list_messages(session_id)).messages
            assert violations(await history(client)) == []
    assert done.status is RunStatus.COMPLETED
    said = [event.data["text"] for event in log if event.event_type == "user.message"]
    assert said == ["first", "hold", "last"]
    # Nobody is told about an interruption: no agent was at work.
    assert [message.text for message in messages] == ["thread t-1"]


async def test_what_a_lost_engine_was_reading_is_read_again(tmp_path: Path) -> None:
    store, runner = Survivor(), ScriptedRunner()
    with program() as person:
        try:
            async with open_embedded(store, runners=[runner]) as client:
                session_id = await begun(client)
                held = (await client.attach_session(session_id, **person.holder)).run
                runner.record.extend(["first", "hold", "last"])
                person.end()
                await recorded(client, session_id, "hold")
                store.lose()
        except* anyio.BrokenResourceError:
            pass
    del store.transact
    async with open_embedded(store, runners=[runner]) as client:
        assert (await ended(client, held)).status is RunStatus.COMPLETED
        log = await log_of(client, session_id, held)
    [found] = [event.data for event in log if event.event_type == "run.recovered"]
    assert found["action"] == "queued"
    assert "record" in found["reason"]
    said = [event.data["text"] for event in log if event.event_type == "user.message"]
    assert said == ["first", "hold", "last"]


class Survivor(MemoryStore):
    """A store that outlives its engine."""

    async def __aexit__(self, *exc: object) -> None:
        pass

    def lose(self) -> None:
        """From here on the engine's writes go nowhere, as after a kill."""
        self.transact = self._lost  # type: ignore[method-assign]

    async def _lost(self, change: object) -> object:
        raise anyio.BrokenResourceError


async def recorded(client: Client, session_id: str, text: str) -> None:
    """Wait until the log has something that was said in the program."""
    with anyio.fail_after(LIMIT_S):
        async with client.events(session_id, follow=True) as events:
            async for event in events:
                if (event.event_type, event.data.get("text")) == ("agent.message", text):
                    return


# --- who may, and what is refused


async def test_only_people_attach_and_only_administrators_adopt(tmp_path: Path) -> None:
    config = EngineConfig(
        providers={"scripted": ProviderConfig(ScriptedRunner(), "scripted")},
        routing=Routing("scripted"),
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session_id = await begun(client)
        run = (await client.send_message(session_id, "hold")).run
        assert run is not None
        agent = Client(engine.acting_as(Principal.of_run(run.id, 1, session_id)))
        writer = Client(engine.acting_as(Principal("ann", scopes=frozenset({"read", "write"}))))
        with program() as person:
            with pytest.raises(Forbidden, match="run"):
                await agent.attach_session(session_id, **person.holder)
            with pytest.raises(NotFound):
                await writer.attach_session(session_id, **person.holder)
            for caller in (agent, writer):
                with pytest.raises(Forbidden):
                    await caller.adopt_session(provider="scripted", cwd=str(tmp_path))
            await client.cancel_run(run.id)
            await ended(client, run)
            await client.set_access(session_id, [Grant("ann", "writer")])
            held = (await writer.attach_session(session_id, **person.holder)).run
            assert held.holder is not None
            assert held.holder.principal == "ann"


async def test_what_cannot_be_handed_over_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    other = FunctionRunner("other", lambda context: context.prompt)
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner(), other]) as client:
        session_id = await begun(client)
        fresh = await client.create_session(provider="scripted")
        with program() as person:
            before = await client.get_session(session_id)
            with pytest.raises(Conflict, match="no conversation"):
                await client.attach_session(fresh.id, **person.holder)
            with pytest.raises(InvalidRequest, match="other has no program"):
                await client.attach_session(session_id, **person.holder, provider="other")
            holder = {**person.holder, "process_start_id": f"{person.start_id}0"}
            with pytest.raises(InvalidRequest) as caught:
                await client.attach_session(session_id, **holder)
            assert list(caught.value.details["fields"]) == ["pid"]
            assert await client.get_session(session_id) == before
            await client.close_session(session_id)
            with pytest.raises(SessionClosed):
                await client.attach_session(session_id, **person.holder)


async def test_a_program_that_failed_to_start_leaves_the_session_free(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        session_id = await begun(client)
        with program() as person:
            held = (await client.attach_session(session_id, **person.holder)).run
        done = await ended(client, held)
        assert (done.status, done.result and done.result.text) == (RunStatus.COMPLETED, "")


async def test_the_questions_of_children_go_to_people_while_a_person_has_the_parent(
    tmp_path: Path,
) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        session_id = await begun(client)
        with program() as person:
            await client.attach_session(session_id, **person.holder)
            child = await client.spawn("ask May I?", session_id=session_id, provider="scripted")
            with anyio.fail_after(LIMIT_S):
                while not (page := await client.requests(session_id=child.session.id)).requests:
                    await anyio.sleep(0.01)
            assert page.requests[0].audience == "human"
            await client.resolve_request(page.requests[0].id, "deny")
            await ended(client, child.run)


# --- adoption


async def test_an_adopted_conversation_has_its_past_and_goes_on(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    runner.record.extend(["one", "two"])
    async with open_embedded(tmp_path / "d.db", runners=[runner]) as client:
        adopted = await client.adopt_session(
            provider="scripted", thread_id="t-9", title="from before", cwd=str(tmp_path)
        )
        session, run = adopted.session, adopted.run
        assert run is not None
        assert (session.title, session.cwd, session.model, dict(session.threads)) == (
            "from before", str(tmp_path), "recorded-model", {"scripted": "t-9"},
        )  # fmt: skip
        assert (run.kind, run.holder) == ("adopt", None)
        assert (await ended(client, run)).status is RunStatus.COMPLETED
        log = await log_of(client, session.id, run)
        assert [e.data["text"] for e in log if e.event_type == "user.message"] == ["one", "two"]
        sent = (await client.send_message(session.id, "which")).run
        assert sent is not None
        assert (await ended(client, sent)).result == RunResult("t-9")
        with pytest.raises(Conflict, match=session.id) as caught:
            await client.adopt_session(provider="scripted", thread_id="t-9")
        assert caught.value.details == {"session_id": session.id}
        latest = await client.adopt_session(provider="scripted", cwd=str(tmp_path))
        assert dict(latest.session.threads) == {"scripted": "latest"}
        assert latest.run is not None
        await ended(client, latest.run)
        assert violations(await history(client)) == []


async def test_what_cannot_be_adopted_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    other = FunctionRunner("other", lambda context: context.prompt)
    async with open_embedded(
        tmp_path / "d.db",
        runners=[ScriptedRunner(), other],
        workspace_roots=[str(inside)],
        cwd=str(inside),
    ) as client:
        for field, values in {
            "thread_id": {"thread_id": "unknown"},
            "cwd": {"cwd": str(outside)},
            "provider": {"provider": "other"},
        }.items():
            with pytest.raises(InvalidRequest) as caught:
                await client.adopt_session(**{"provider": "scripted", **values})
            assert list(caught.value.details["fields"]) == [field]
        assert (await client.list_sessions()).sessions == ()

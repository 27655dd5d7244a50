"""What the next engine does with the runs of an engine that was lost."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field, frozen
from crashing import lose

from agent_orchestrator import Client, Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.model import Attempt, Event, Run
from agent_orchestrator.engine import ProviderConfig, recovery
from agent_orchestrator.engine.core import Core
from agent_orchestrator.host import ReapResult
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import history, violations

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the daemons of other tests, which the status would show."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


TIMEOUT_S = 60.0

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@define
class Blocked:
    """A runner that never delivers the message to its agent."""

    name: str = "scripted"
    resumes: bool = True
    begun: anyio.Event = field(factory=anyio.Event)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes)

    async def run(self, context: RunContext) -> Outcome:
        self.begun.set()
        await anyio.sleep_forever()
        raise AssertionError


async def said(client: Client, session_id: str, text: str, *, cursor: int = 0) -> None:
    with anyio.fail_after(TIMEOUT_S):
        async with client.events(session_id, cursor=cursor, follow=True) as events:
            async for event in events:
                if event.data.get("text") == text:
                    return


async def end_of(client: Client, run_id: str) -> Run:
    reply = await client.wait_run(run_id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def at_work(store: MemoryStore, text: str, **settings: Any) -> Run:
    """Crash an engine while an agent works on a message; return its run."""
    runs: list[Run] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, text)
        assert sent.run is not None
        runs.append(sent.run)
        await said(client, session.id, "holding")

    await lose(store, body, **({"runners": [ScriptedRunner()]} | settings))
    return runs[0]


async def recovered(client: Client, run: Run) -> list[Event]:
    records = await history(client)
    assert violations(records) == []
    return [event for event in records.logs[run.session_id] if event.event_type == "run.recovered"]


async def outcomes(client: Client, run: Run) -> list[str | None]:
    attempts = (await client.diagnose_run(run.id)).diagnostics.attempts
    return [attempt.outcome for attempt in attempts]


async def test_run_is_queued_again_if_its_agent_had_not_got_the_message() -> None:
    store, blocked, second = MemoryStore(), Blocked(), ScriptedRunner()
    runs: list[Run] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "say hello")
        assert sent.run is not None
        runs.append(sent.run)
        await blocked.begun.wait()

    await lose(store, body, runners=[blocked])
    async with open_embedded(store, runners=[second]) as client:
        run = await end_of(client, runs[0].id)
        events = await recovered(client, run)
        assert await outcomes(client, run) == ["worker_lost", "completed"]
    assert (run.status, run.attempt) == (RunStatus.COMPLETED, 2)
    assert second.prompts == ["say hello"]
    assert [(event.data["action"], event.data["delivered"]) for event in events] == [
        ("queued", False)
    ]


async def test_run_resumes_its_thread_if_its_agent_was_at_work() -> None:
    store, second = MemoryStore(), ScriptedRunner()
    run = await at_work(store, "thread t-1\nhold")
    async with open_embedded(store, runners=[second]) as client:
        run = await end_of(client, run.id)
        events = await recovered(client, run)
        messages = (await client.list_messages(run.session_id)).messages
        assert await outcomes(client, run) == ["worker_lost", "completed"]
    assert run.status is RunStatus.COMPLETED
    assert [event.data["action"] for event in events] == ["resumed"]
    note = messages[-1]
    assert second.prompts == [note.text]
    assert (note.role, note.delivery, note.run_id) == ("system", "delivered", run.id)
    assert "same conversation" in note.text


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("hold", {}),
        ("thread t-1\nhold", {"runner": ScriptedRunner(resumes=False)}),
        ("thread t-1\nhold", {"on_crash": "fail"}),
    ],
    ids=["no conversation", "a runner that cannot", "told not to"],
)
async def test_run_fails_if_it_cannot_be_resumed(text: str, provider: dict[str, Any]) -> None:
    store = MemoryStore()
    run = await at_work(store, text)
    config = ProviderConfig(**({"runner": ScriptedRunner(), "kind": "scripted"} | provider))
    async with open_embedded(store, providers={"scripted": config}) as client:
        run = await end_of(client, run.id)
        events = await recovered(client, run)
        issue = (await client.diagnose_run(run.id)).diagnostics.likely_issue
    assert (run.status, run.attempt) == (RunStatus.FAILED, 1)
    assert run.error is not None
    assert run.error.code == "worker_lost"
    assert [event.data["action"] for event in events] == ["failed"]
    assert issue.code == "worker_lost"


@pytest.mark.parametrize("most", [1, 3])
async def test_run_fails_after_max_attempts_lost_engines(most: int) -> None:
    store = MemoryStore()

    def settings() -> dict[str, Any]:
        config = ProviderConfig(Blocked(), "scripted", max_attempts=most)
        return {"providers": {"scripted": config}}

    runs: list[Run] = []
    for number in range(most):
        given = settings()

        async def body(client: Client, given: Any = given, number: int = number) -> None:
            if number == 0:
                session = await client.create_session()
                sent = await client.send_message(session.id, "take me down")
                assert sent.run is not None
                runs.append(sent.run)
            await given["providers"]["scripted"].runner.begun.wait()

        with anyio.fail_after(TIMEOUT_S):
            await lose(store, body, **given)
    async with open_embedded(store, **settings()) as client:
        run = await end_of(client, runs[0].id)
        assert run.status is RunStatus.FAILED
        assert run.error is not None
        assert run.error.code == "worker_lost"
        assert await outcomes(client, run) == ["worker_lost"] * most
        assert await recovered(client, run)
        queued = await client.send_message(run.session_id, "say next", provider="scripted")
        assert queued.run is not None


async def test_attempts_ended_by_a_drain_do_not_count_as_crashes() -> None:
    """A run that was released is always tried again."""
    store = MemoryStore()
    run = await at_work(store, "thread t-1\nhold")
    for _ in range(3):
        blocked = Blocked()
        async with open_embedded(store, runners=[blocked]):
            with anyio.fail_after(TIMEOUT_S):
                await blocked.begun.wait()
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        assert (await end_of(client, run.id)).attempt == 5


@frozen(kw_only=True)
class Reaping(LinuxHost):
    """Answers for the processes of lost attempts as ``remains`` says."""

    remains: list[ReapResult] = field(factory=lambda: [ReapResult("gone", (7,))])
    """The last one is the answer for every attempt."""
    asked: list[Attempt] = field(factory=list)

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        self.asked.extend(attempts)
        return {(one.run_id, one.attempt): last for one in attempts for last in self.remains[-1:]}


async def test_run_is_not_recovered_before_its_processes_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    store, reaper, second = (
        MemoryStore(),
        Reaping(remains=[ReapResult("alive", alive=(7,))]),
        ScriptedRunner(),
    )
    run = await at_work(store, "thread t-1\nhold")
    async with open_embedded(store, runners=[second], host=reaper) as client:
        other = await client.create_session()
        sent = await client.send_message(other.id, "say meanwhile")
        assert sent.run is not None
        assert (await end_of(client, sent.run.id)).status is RunStatus.COMPLETED
        held = await client.get_run(run.id)
        assert (held.status, held.attempt) == (RunStatus.RUNNING, 1)
        reaper.remains.append(ReapResult("gone", (7,)))
        run = await end_of(client, run.id)
        events = await recovered(client, run)
    assert {(one.run_id, one.attempt) for one in reaper.asked} == {(run.id, 1)}
    assert [event.data["ended_processes"] for event in events] == [[7]]
    assert run.status is RunStatus.COMPLETED


@pytest.mark.parametrize(
    "remains",
    [{}, {"state": "unknown", "reason": "the table cannot be read"}, {"state": "alive"}],
    ids=["no answer", "unknown", "alive"],
)
async def test_run_is_not_recovered_while_its_processes_may_be_alive(
    monkeypatch: pytest.MonkeyPatch, remains: dict[str, Any]
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    store, second = MemoryStore(), ScriptedRunner()
    reaper = Reaping(remains=[ReapResult(**remains)] if remains else [])
    run = await at_work(store, "thread t-1\nhold")
    async with open_embedded(store, runners=[second], host=reaper) as client:
        with anyio.fail_after(TIMEOUT_S):
            while len(reaper.asked) < 3:
                await anyio.sleep(0.01)
        held = await client.get_run(run.id)
        status = await client.status()
        assert (held.status, held.attempt, second.prompts) == (RunStatus.RUNNING, 1, [])
        [problem] = [one for one in status.problems if one.code == "recovery_pending"]
        assert remains.get("reason", "") in problem.message
        reaper.remains.append(ReapResult("gone"))
        assert (await end_of(client, run.id)).status is RunStatus.COMPLETED


async def test_run_of_another_host_is_not_recovered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    store, away, back = MemoryStore(), Reaping(id="south"), Reaping()
    run = await at_work(store, "thread t-1\nhold")
    async with open_embedded(store, runners=[ScriptedRunner()], host=away) as client:
        with anyio.fail_after(TIMEOUT_S):
            while not (problems := (await client.status()).problems):
                await anyio.sleep(0.01)
        assert "local" in problems[0].message
        assert (await client.get_run(run.id)).status is RunStatus.RUNNING
        [attempt] = (await client.diagnose_run(run.id)).diagnostics.attempts
        assert attempt.host == "local"
        reply = await client.cancel_run(run.id)
        assert (reply.run.status, reply.canceled) == (RunStatus.RUNNING, (run.id,))
        assert reply.pending == (run.id,)
        found = (await client.diagnose_run(run.id)).diagnostics
        assert found.likely_issue.code == "worker_lost"
        assert "host local" in found.likely_issue.message
        assert "cancel" in found.likely_issue.message
    assert away.asked == []
    async with open_embedded(store, runners=[ScriptedRunner()], host=back) as client:
        assert (await end_of(client, run.id)).status is RunStatus.CANCELED
    assert [one.host for one in back.asked] == ["local"]


async def test_cancel_requested_before_a_crash_is_completed_by_recovery() -> None:
    store, reaper = MemoryStore(), Reaping()
    run = await at_work(store, "thread t-1\nhold")

    def ask(tx: Any) -> None:
        found = tx.run(run.id)
        tx.put_run(evolve(found, cancel_requested_at=found.created_at, cancel_reason="stop"))

    async with store:
        await store.transact(ask)
    async with open_embedded(store, runners=[ScriptedRunner()], host=reaper) as client:
        run = await end_of(client, run.id)
        events = await recovered(client, run)
    assert run.status is RunStatus.CANCELED
    assert [event.data["action"] for event in events] == ["canceled"]
    assert reaper.asked


async def test_cancel_requested_during_recovery_takes_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    store, reaper = MemoryStore(), Reaping(remains=[ReapResult("alive", alive=(7,))])
    run = await at_work(store, "thread t-1\nhold")
    async with open_embedded(store, runners=[ScriptedRunner()], host=reaper) as client:
        assert (await client.cancel_run(run.id)).pending == (run.id,)
        assert (await client.get_run(run.id)).status is RunStatus.RUNNING
        reaper.remains.append(ReapResult("gone", (7,)))
        assert (await end_of(client, run.id)).status is RunStatus.CANCELED


async def test_run_with_an_open_request_is_parked_by_recovery() -> None:
    store, second = MemoryStore(), ScriptedRunner()
    runs: list[Run] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "thread t-1\nask May I?")
        assert sent.run is not None
        runs.append(sent.run)
        await client.wait_run(sent.run.id, until="attention")

    await lose(store, body, runners=[ScriptedRunner()])
    async with open_embedded(store, runners=[second]) as client:
        with anyio.fail_after(TIMEOUT_S):
            while (run := await client.get_run(runs[0].id)).worker_id is not None:
                await anyio.sleep(0.01)
        assert (run.status, run.worker_id, run.attempt) == (RunStatus.WAITING, None, 2)
        assert [one.data["action"] for one in await recovered(client, run)] == ["parked"]
        assert run.waiting_on is not None
        await client.resolve_request(run.waiting_on, "approve")
        assert (await end_of(client, run.id)).status is RunStatus.COMPLETED
        assert await recovered(client, run)
    assert second.prompts == ["Your request was approved: May I?"]


async def test_many_lost_runs_are_recovered_together() -> None:
    store, reaper = MemoryStore(), Reaping()

    async def body(client: Client) -> None:
        for _ in range(120):
            session = await client.create_session()
            await client.send_message(session.id, "thread t-1\nhold")
            await said(client, session.id, "holding")

    await lose(store, body, runners=[ScriptedRunner()], max_concurrency=200)
    async with open_embedded(
        store, runners=[ScriptedRunner()], max_concurrency=200, host=reaper
    ) as client:
        for run in (await client.list_runs(limit=1000)).runs:
            assert (await end_of(client, run.id)).status is RunStatus.COMPLETED
        assert violations(await history(client)) == []
    assert len(reaper.asked) == 120


@define
class Resumed:
    """An agent that asks, and after it was resumed emits nothing until it is lost."""

    name: str = "scripted"
    resumes: bool = True
    prompts: list[str] = field(factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resumes)

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        await context.delivered()
        if context.prompt == "go":
            await context.set_thread("t-1")
            await context.emit("agent.message", {"text": "at work"})
            await context.ask_parent("May I?")
        if "same conversation" not in context.prompt:
            await anyio.sleep_forever()
        return Outcome("done")


@pytest.mark.parametrize("settings", [{}, {"clock": lambda: NOW}], ids=["time", "one-instant"])
async def test_messages_that_the_thread_has_are_not_given_again(settings: dict[str, Any]) -> None:
    """The agent that is resumed with an answer is lost before it emits anything.

    With equal times, an event of the agent before it is no sign of it either.
    """
    store, agent = MemoryStore(), Resumed()
    runs: list[Run] = []

    async def body(client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        runs.append(sent.run)
        asked = await client.wait_run(sent.run.id, timeout_s=TIMEOUT_S, until="attention")
        assert asked.request is not None
        with anyio.fail_after(TIMEOUT_S):
            while (await client.get_run(sent.run.id)).worker_id is not None:
                await anyio.sleep(0.001)
            await client.resolve_request(asked.request.id, "answer", text="yes")
            while len(agent.prompts) < 2:
                await anyio.sleep(0.001)
            while (await client.list_messages(session.id)).messages[-1].delivery == "queued":
                await anyio.sleep(0.001)

    await lose(store, body, runners=[agent], park_after_s=0, **settings)
    async with open_embedded(store, runners=[agent], **settings) as client:
        run = await end_of(client, runs[0].id)
        messages = (await client.list_messages(run.session_id)).messages
    assert run.status is RunStatus.COMPLETED
    answer = "Your request was answered: May I?\n\nyes"
    assert agent.prompts[:2] == ["go", answer]
    # The answer may not have reached the thread; the task did, in the attempt before.
    assert agent.prompts[2].startswith(answer + "\n\n")
    assert "same conversation" in agent.prompts[2]
    assert len(agent.prompts) == 3
    assert [message.delivered_attempt for message in messages] == [1, 3, 3]


async def test_failed_recovery_is_retried_and_shown_in_the_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    monkeypatch.setattr("agent_orchestrator.engine.recovery.LONGEST_RETRY_S", 0.02)
    store = MemoryStore()
    runs: list[Run] = []

    async def body(client: Client) -> None:
        for thread in ("t-1", "t-2"):
            session = await client.create_session()
            sent = await client.send_message(session.id, f"thread {thread}\nhold")
            assert sent.run is not None
            runs.append(sent.run)
            await said(client, session.id, "holding")

    await lose(store, body, runners=[ScriptedRunner()])
    run, other = runs
    broken = True
    tries = 0
    take_up = recovery._recover_run

    def failing(core: Core, tx: Transaction, one: Run, remains: ReapResult) -> None:
        nonlocal tries
        if one.id == run.id:
            tries += 1
            if broken:
                raise RuntimeError("injected")
        take_up(core, tx, one, remains)

    monkeypatch.setattr(recovery, "_recover_run", failing)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        # The other run is recovered all the same, and new work goes on.
        assert (await end_of(client, other.id)).status is RunStatus.COMPLETED
        status = await client.status()
        assert status.daemon_health == "degraded"
        assert [problem.code for problem in status.problems] == ["recovery_pending"]
        assert "injected" in status.problems[0].message
        with anyio.fail_after(TIMEOUT_S):
            while tries < 5:
                await anyio.sleep(0.001)
        assert (await client.get_run(run.id)).status is RunStatus.RUNNING
        broken = False
        assert (await end_of(client, run.id)).status is RunStatus.COMPLETED
        assert (await client.status()).problems == ()
        assert len(await recovered(client, run)) == 1


async def test_failed_search_for_lost_runs_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.recovery.RETRY_S", 0.01)
    store = MemoryStore()
    run = await at_work(store, "thread t-1\nhold")
    failures = 3
    lost = recovery._lost_attempts

    def failing(view: View, instance: str) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RuntimeError("injected")
        return lost(view, instance)

    monkeypatch.setattr(recovery, "_lost_attempts", failing)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        assert (await end_of(client, run.id)).status is RunStatus.COMPLETED
        assert (await client.status()).problems == ()
    assert failures < 0

"""Children and requests when calls fail or come at the same time."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field

from agent_orchestrator import (
    Client,
    EngineConfig,
    Orchestrator,
    Outcome,
    ProviderConfig,
    Routing,
    Run,
    RunContext,
    RunStatus,
    open_embedded,
)
from agent_orchestrator.domain.model import MANUAL, Request
from agent_orchestrator.hosts import this_host
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0


@define
class Doing:
    """A runner that does what a test says."""

    what: Callable[[RunContext], Awaitable[Outcome]]
    name: str = "doing"
    prompts: list[str] = field(factory=list)

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        return await self.what(context)


async def end_of(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def asked(client: Client, run: Run | None) -> Request:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S, until="attention")
    assert reply.request is not None, reply
    return reply.request


async def held(client: Client, session_id: str) -> Run:
    sent = await client.send_message(session_id, "hold")
    async with client.events(session_id, follow=True) as events:
        with anyio.fail_after(TIMEOUT_S):
            async for event in events:
                if event.data.get("text") == "holding":
                    break
    assert sent.run is not None
    return sent.run


async def running(client: Client, session_id: str) -> None:
    async with client.events(session_id, follow=True) as events:
        async for event in events:
            if event.event_type == "run.started":
                break


async def test_a_request_expires_however_many_others_are_open() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider=MANUAL)
        for _ in range(17):
            run = await client.create_run(session.id)
            for _ in range(60):
                await client.reply_parent(run.id, "later", request_kind="input_request")
        short = await client.reply_parent(
            run.id, "now", request_kind="input_request", expires_in_s=0.05
        )
        assert short.request is not None
        closed = await client.get_request(short.request.id, wait_s=TIMEOUT_S)
        assert closed.status == "expired"
        assert (await client.wait_run(run.id, timeout_s=0, until="attention")).request is not None


async def parked(path: Path) -> tuple[Run, Request]:
    """Leave a parked run in a database."""
    async with open_embedded(path, runners=[ScriptedRunner()]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "thread t-1\nask May I?")
        request = await asked(client, sent.run)
    assert sent.run is not None
    return sent.run, request


async def test_cancel_of_a_parked_run_takes_effect_at_once(tmp_path: Path) -> None:
    run, request = await parked(tmp_path / "d.db")
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        reply = await client.cancel_run(run.id)
        assert reply.run.status is RunStatus.CANCELED
        assert (await client.get_request(request.id)).status == "canceled"
        sent = await client.send_message(run.session_id, "say free", when_busy="interrupt")
        assert (await end_of(client, sent.run)).status is RunStatus.COMPLETED


async def test_cancel_of_an_answered_parked_run_leaves_no_other_run(tmp_path: Path) -> None:
    run, request = await parked(tmp_path / "d.db")
    runners = [ScriptedRunner()]
    async with open_embedded(tmp_path / "d.db", runners=runners, max_concurrency=1) as client:
        other = await client.create_session()
        busy = await held(client, other.id)
        await client.resolve_request(request.id, "approve")
        assert (await client.get_run(run.id)).status is RunStatus.QUEUED
        await client.cancel_run(run.id)
        await client.cancel_run(busy.id)
        await end_of(client, busy)
        runs = (await client.list_runs(session_id=run.session_id)).runs
    assert [one.status for one in runs] == [RunStatus.CANCELED]


async def test_child_completes_though_its_parents_provider_was_removed(
    tmp_path: Path,
) -> None:
    old = ScriptedRunner(name="old")
    async with open_embedded(tmp_path / "d.db", runners=[old, ScriptedRunner()]) as client:
        parent = await client.create_session(provider="old")
    async with open_embedded(tmp_path / "d.db", runners=[ScriptedRunner()]) as client:
        child = await client.spawn(
            "say built", session_id=parent.id, provider="scripted", notify_parent="wake"
        )
        assert (await end_of(client, child.run)).status is RunStatus.COMPLETED
        # The message names the run only until the run has failed: then it waits for the next one.
        (woken,) = (await client.list_runs(session_id=parent.id)).runs
        woken = await end_of(client, woken)
    assert woken.error is not None
    assert woken.error.code == "invalid_config"


async def test_result_of_a_canceled_child_does_not_wake_its_canceled_parent() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent = await client.create_session()
        run = await held(client, parent.id)
        child = await client.spawn("hold", run_id=run.id, notify_parent="wake")
        await client.cancel_run(run.id)
        assert (await end_of(client, child.run)).status is RunStatus.CANCELED
        assert (await end_of(client, run)).status is RunStatus.CANCELED
        assert len((await client.list_runs(session_id=parent.id)).runs) == 1
        assert "was canceled" in (await client.list_messages(parent.id)).messages[-1].text


async def test_earlier_child_result_does_not_wake_a_canceled_parent() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=2) as client:
        parent = await client.create_session()
        run = await held(client, parent.id)
        child = await client.spawn("say built", run_id=run.id, notify_parent="wake")
        await end_of(client, child.run)
        await client.cancel_run(run.id)
        assert (await end_of(client, run)).status is RunStatus.CANCELED
        assert (await client.list_runs(session_id=parent.id)).runs == (
            await client.get_run(run.id),
        )
        # It is not lost: the next message of the parent takes the child's result along.
        sent = await client.send_message(parent.id, "say back")
        await end_of(client, sent.run)
        outcome = (await client.list_messages(parent.id)).messages[1]
        assert outcome.source.run_id == child.run.id
        assert outcome.run_id is not None
        woken = await end_of(client, await client.get_run(outcome.run_id))
        assert woken.status is RunStatus.COMPLETED


async def test_note_of_a_child_being_stopped_does_not_wake_its_canceled_parent() -> None:
    begun, stopping, may_end = anyio.Event(), anyio.Event(), anyio.Event()

    async def what(context: RunContext) -> Outcome:
        if context.session.parent_session_id is None:
            await context.emit("agent.message", {"text": "holding"})
        else:
            begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            if context.session.parent_session_id is not None:
                stopping.set()
                with anyio.CancelScope(shield=True):
                    await may_end.wait()
        return Outcome("never")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        parent = await client.create_session()
        run = await held(client, parent.id)
        child = await client.spawn("work", run_id=run.id, notify_parent="wake")
        with anyio.fail_after(TIMEOUT_S):
            await begun.wait()
            await client.cancel_run(run.id)
            assert (await end_of(client, run)).status is RunStatus.CANCELED
            await stopping.wait()
            reply = await client.reply_parent(child.run.id, "carry on")
            may_end.set()
        assert reply.message is not None
        assert reply.message.delivery == "delivered"
        assert (await end_of(client, child.run)).status is RunStatus.CANCELED
        assert len((await client.list_runs(session_id=parent.id)).runs) == 1


async def test_cancel_reaches_runs_that_the_run_started_in_existing_children() -> None:
    """Of a child, and a grandchild, that an earlier run had spawned."""
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent = await client.create_session(provider=MANUAL)
        first = await client.create_run(parent.id)
        await client.transition_run(first.id, "running")
        child = await client.spawn("x", run_id=first.id)
        grandchild = await client.spawn("x", run_id=child.run.id, provider=MANUAL)
        for run in (child.run, grandchild.run):
            if run.provider == MANUAL:
                await client.transition_run(run.id, "running")
                await client.transition_run(run.id, "completed", result={"text": "x"})
            await end_of(client, run)
        await client.transition_run(first.id, "completed", result={"text": "x"})
        second = await client.create_run(parent.id)
        await client.transition_run(second.id, "running")
        reached = {second.id}
        for below in (child.session, grandchild.session):
            sent = await client.send(below.id, "hold", from_run_id=second.id)
            assert sent.run is not None
            assert sent.run.parent_run_id == second.id
            reached.add(sent.run.id)
        other = await client.send(child.session.id, "say by a person")
        assert other.run is not None
        assert other.run.parent_run_id == first.id
        assert set((await client.cancel_run(second.id)).canceled) == reached
        for run_id in reached:
            ended = await end_of(client, await client.get_run(run_id))
            assert ended.status is RunStatus.CANCELED


async def test_interrupt_does_not_discard_child_results() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=2) as client:
        parent = await client.create_session()
        busy = await held(client, parent.id)
        child = await client.spawn("say built", session_id=parent.id, notify_parent="wake")
        await end_of(client, child.run)
        sent = await client.send_message(parent.id, "say instead", when_busy="interrupt")
        await end_of(client, sent.run)
        await end_of(client, busy)
        outcome = next(
            message
            for message in (await client.list_messages(parent.id)).messages
            if message.source.kind == "child"
        )
        assert outcome.run_id is not None
        assert (await end_of(client, await client.get_run(outcome.run_id))).result is not None


async def test_manual_run_takes_all_child_results_queued_for_it() -> None:
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        parent = await client.create_session(provider="manual")
        for _ in range(2):
            child = await client.spawn(
                "say built", session_id=parent.id, provider="scripted", notify_parent="wake"
            )
            await end_of(client, child.run)
        (run,) = (await client.list_runs(session_id=parent.id)).runs
        await client.transition_run(run.id, "running")
        await client.transition_run(run.id, "failed")
        outcomes = (await client.list_messages(parent.id)).messages
    assert [(one.run_id, one.delivery) for one in outcomes] == [(run.id, "delivered")] * 2


async def test_steering_message_of_a_child_gets_a_run_if_it_was_not_taken() -> None:
    gate = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        if context.prompt == "work":
            async with context.steering():
                await context.emit("agent.message", {"text": "listening"})
                await gate.wait()
        return Outcome(context.prompt)

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        parent = await client.create_session()
        child = await client.spawn("child", session_id=parent.id)
        await end_of(client, child.run)
        sent = await client.send_message(parent.id, "work")
        async with client.events(parent.id, follow=True) as events:
            async for event in events:
                if event.data.get("text") == "listening":
                    break
        steer = await client.send(parent.id, "news", from_run_id=child.run.id, when_busy="steer")
        gate.set()
        await end_of(client, sent.run)
        message = next(
            one
            for one in (await client.list_messages(parent.id)).messages
            if one.id == steer.message.id
        )
        assert message.run_id is not None
        assert sent.run is not None
        assert message.run_id != sent.run.id
        await end_of(client, await client.get_run(message.run_id))
    assert runner.prompts[-1] == "news"


async def test_answer_given_during_a_drain_reaches_the_next_attempt(
    tmp_path: Path,
) -> None:
    stopping, decided = anyio.Event(), anyio.Event()

    async def what(context: RunContext) -> Outcome:
        await context.delivered()
        await context.set_thread("t-1")
        if "approved" in context.prompt:
            return Outcome(context.prompt)
        try:
            await context.ask_parent("May I?", kind="approval_request")
        finally:
            stopping.set()
            with anyio.CancelScope(shield=True):
                await decided.wait()
        return Outcome("never")

    config = EngineConfig(
        providers={"doing": ProviderConfig(Doing(what), "doing")},
        routing=Routing("doing"),
        host=this_host(),
    )
    path = tmp_path / "d.db"
    async with SqliteStore(path) as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        sent = await client.send_message(session.id, "task")
        request = await asked(client, sent.run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.drain, 0)
            await stopping.wait()
            await client.resolve_request(request.id, "approve")
            decided.set()
    second = Doing(what)
    async with open_embedded(path, runners=[second]) as client:
        run = await end_of(client, sent.run)
    # Its runner cannot resume a thread, so it gets the task again, too.
    assert second.prompts == ["task\n\nYour request was approved: May I?"]
    assert run.attempt == 2


async def test_run_that_asks_after_a_cancel_is_canceled() -> None:
    gate = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        with anyio.CancelScope(shield=True):
            await gate.wait()
            await context.ask_parent("May I?")
        return Outcome("never")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        assert sent.run is not None
        with anyio.fail_after(TIMEOUT_S):
            while (await client.get_run(sent.run.id)).status is not RunStatus.RUNNING:
                await anyio.sleep(0.01)
        await client.cancel_run(sent.run.id)
        gate.set()
        run = await end_of(client, sent.run)
        assert (run.status, run.error) == (RunStatus.CANCELED, None)
        assert (await client.requests()).requests == ()


async def test_concurrent_questions_of_a_run_are_asked_one_by_one() -> None:
    async def what(context: RunContext) -> Outcome:
        answers: list[str | None] = []

        async def ask(text: str) -> None:
            answers.append((await context.ask_parent(text)).answer)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(ask, str(number))
        return Outcome(" ".join(sorted(str(answer) for answer in answers)))

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "go")
        for _ in range(3):
            request = await asked(client, sent.run)
            await client.resolve_request(request.id, "answer", text=f"to {request.text}")
        run = await end_of(client, sent.run)
    assert run.result is not None, run.error
    assert run.result.text == "to 0 to 1 to 2"


async def test_a_drain_does_not_wait_for_answers() -> None:
    runner: Any = ScriptedRunner()
    config = EngineConfig(
        providers={"scripted": ProviderConfig(runner, "scripted")},
        routing=Routing("scripted"),
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await client.create_session()
        sent = await client.send_message(session.id, "ask May I?")
        await asked(client, sent.run)
        with anyio.fail_after(TIMEOUT_S):
            report = await engine.drain(600)
    assert sent.run is not None
    assert (report.finished, report.released, report.parked) == (0, (), (sent.run.id,))


async def test_a_drain_does_not_wait_for_answers_to_later_requests() -> None:
    draining = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        await draining.wait()
        await context.ask_parent("May I?", kind="approval_request")
        return Outcome("never")

    config = EngineConfig(
        providers={"doing": ProviderConfig(Doing(what), "doing")},
        routing=Routing("doing"),
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        sent = await client.send_message((await client.create_session()).id, "task")
        assert sent.run is not None
        with anyio.fail_after(TIMEOUT_S):
            while (await client.get_run(sent.run.id)).status is not RunStatus.RUNNING:
                await anyio.sleep(0.01)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.drain, 600)
                while not engine.core.draining:
                    await anyio.sleep(0.01)
                draining.set()
    assert engine.drain_report is not None
    assert engine.drain_report.parked == (sent.run.id,)

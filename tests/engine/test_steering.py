"""Steering messages: given once, and never to a run that is being canceled."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field
from crashing import lose

from agent_orchestrator import Client, Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.domain.model import Message, Run
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0

T = TypeVar("T")


@define
class Doing:
    """A runner that does what a test says."""

    what: Callable[[RunContext], Awaitable[Any]]
    name: str = "doing"
    resumes: bool = False
    prompts: list[str] = field(factory=list)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            resume=self.resumes,
            steer=True,
            confine=True,
            models=True,
            effort=True,
            output_schema=True,
        )

    async def run(self, context: RunContext) -> Outcome:
        self.prompts.append(context.prompt)
        return Outcome(await self.what(context) or "")


@define
class Listener:
    """An agent that could be steered and takes no message."""

    ready: anyio.Event = field(factory=anyio.Event)
    go: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, context: RunContext) -> None:
        if context.prompt != "work":
            return
        await context.delivered()
        async with context.steering():
            self.ready.set()
            await self.go.wait()


async def end_of(client: Client, run: Run | None) -> Run:
    assert run is not None
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def now(client: Client, message: Message) -> Message:
    listed = (await client.list_messages(message.session_id)).messages
    return next(one for one in listed if one.id == message.id)


async def test_run_that_is_being_canceled_is_not_steered() -> None:
    ready, go = anyio.Event(), anyio.Event()
    taken: list[str] = []

    async def what(context: RunContext) -> None:
        if context.prompt != "work":
            return
        async with context.steering() as messages:
            ready.set()
            with anyio.CancelScope(shield=True):
                await go.wait()
                with anyio.move_on_after(0.05):
                    taken.append(await anext(messages))

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        assert sent.run is not None
        await ready.wait()
        await client.cancel_run(sent.run.id)
        instead = await client.send_message(session.id, "instead", when_busy="steer")
        go.set()
        ended = await end_of(client, instead.run)
        assert (await end_of(client, sent.run)).id != ended.id
    assert ended.status is RunStatus.COMPLETED
    assert (taken, runner.prompts) == ([], ["work", "instead"])


async def test_cancel_of_a_parent_cancels_untaken_steering_messages_of_its_child() -> None:
    listener = Listener()

    async def what(context: RunContext) -> None:
        if context.prompt == "lead":
            child = await context.spawn("work")
            await listener.ready.wait()
            await context.send(child.session.id, "more", when_busy="steer")
            await context.wait(child.run.id)
        else:
            await listener(context)

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner], max_concurrency=2) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "lead")
        assert sent.run is not None
        await listener.ready.wait()
        child = (await client.list_sessions(parent_session_id=session.id)).sessions[0]
        with anyio.fail_after(TIMEOUT_S):
            while len(found := (await client.list_messages(child.id)).messages) < 2:
                await anyio.sleep(0.001)
        await client.cancel_run(sent.run.id)
        await end_of(client, sent.run)
        runs = (await client.list_runs(session_id=child.id)).runs
        for run in runs:
            assert (await end_of(client, run)).status is RunStatus.CANCELED
        assert len(runs) == 1
        assert (await now(client, found[1])).delivery == "undeliverable"
    assert "more" not in runner.prompts


async def test_closing_a_tree_cancels_untaken_steering_messages() -> None:
    listener = Listener()
    runner = Doing(listener)
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        await listener.ready.wait()
        steered = await client.send_message(session.id, "more", when_busy="steer")
        queued = await client.send_message(session.id, "later")
        assert sent.run is not None
        assert queued.run is not None
        assert steered.message.is_steering
        closed = await client.close_session(session.id, cascade=True)
        assert closed.canceled == (sent.run.id, queued.run.id)
        for run in (sent.run, queued.run):
            assert (await end_of(client, run)).status is RunStatus.CANCELED
        assert len((await client.list_runs(session_id=session.id)).runs) == 2
        for message in (steered.message, queued.message):
            assert (await now(client, message)).delivery == "undeliverable"
    assert runner.prompts == ["work"]


async def test_cancel_of_a_run_keeps_its_untaken_steering_messages() -> None:
    listener = Listener()
    runner = Doing(listener)
    async with open_embedded(":memory:", runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        assert sent.run is not None
        await listener.ready.wait()
        more = await client.send_message(session.id, "more", when_busy="steer")
        await client.cancel_run(sent.run.id)
        await end_of(client, sent.run)
        moved = (await now(client, more.message)).run_id
        assert moved is not None
        await end_of(client, await client.get_run(moved))
    assert runner.prompts == ["work", "more"]


async def test_untaken_steering_message_runs_with_the_sandbox_of_its_run() -> None:
    listener = Listener()
    async with open_embedded(":memory:", runners=[Doing(listener)]) as client:
        session = await client.create_session(sandbox="danger-full-access")
        how: dict[str, Any] = {"sandbox": "read-only", "approval_policy": "untrusted"}
        sent = await client.send_message(session.id, "work", **how)
        await listener.ready.wait()
        more = await client.send_message(session.id, "more", when_busy="steer", **how)
        assert sent.run is not None
        assert more.message.run_id == sent.run.id
        listener.go.set()
        await end_of(client, sent.run)
        moved = (await now(client, more.message)).run_id
        assert moved is not None
        run = await end_of(client, await client.get_run(moved))
    assert run.id != sent.run.id
    assert (run.sandbox, run.approval_policy) == ("read-only", "untrusted")


@pytest.mark.parametrize("options", [{"model": "other"}, {"effort": "low"}])
async def test_a_message_for_another_model_or_effort_does_not_steer(
    options: dict[str, str],
) -> None:
    listener = Listener()
    how = {"model": "m", "effort": "high"}
    async with open_embedded(":memory:", runners=[Doing(listener)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work", **how)
        await listener.ready.wait()
        steering = await client.send_message(session.id, "same", when_busy="steer", **how)
        queued = await client.send_message(session.id, "more", when_busy="steer", **(how | options))
        assert sent.run is not None
        assert queued.run is not None
        assert steering.message.run_id == sent.run.id
        assert queued.run.id != sent.run.id
        assert {"model": queued.run.model, "effort": queued.run.effort} == how | options
        listener.go.set()
        await end_of(client, sent.run)
        moved = (await now(client, steering.message)).run_id
        assert moved is not None
        run = await end_of(client, await client.get_run(moved))
    assert run.id != sent.run.id
    assert (run.model, run.effort) == ("m", "high")


async def test_untaken_steering_message_is_given_once_after_a_drain(tmp_path: Path) -> None:
    """In the next attempt, not in its own run. Also if its runner does not report the delivery."""
    listener = Listener()
    path = tmp_path / "d.db"
    async with open_embedded(path, runners=[Doing(listener)]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        await listener.ready.wait()
        more = await client.send_message(session.id, "more", when_busy="steer")

    async def nothing(context: RunContext) -> None:
        pass

    second = Doing(nothing)
    async with open_embedded(path, runners=[second]) as client:
        run = await end_of(client, sent.run)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 2)
        assert [one.id for one in (await client.list_runs(session_id=session.id)).runs] == [run.id]
        assert (await now(client, more.message)).delivery == "delivered"
    assert second.prompts == ["work\n\nmore"]


class Slow(MemoryStore):
    """Holds back the answer that a steering message was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.go = anyio.Event(), anyio.Event()

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        def look(tx: Transaction) -> tuple[T, bool]:
            value = change(tx)
            rows = self._state.messages.rows.values()
            return value, any(one.is_steering and one.delivery == "delivered" for one in rows)

        value, is_taken = await super().transact(look, reserve=reserve)
        if is_taken and not self.taken.is_set():
            self.taken.set()
            await self.go.wait()
        return value


async def test_steering_message_being_taken_during_a_cancel_is_not_lost() -> None:
    store, ready, stopped = Slow(), anyio.Event(), anyio.Event()

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    async def what(context: RunContext) -> None:
        if context.prompt != "work":
            return
        async with anyio.create_task_group() as tasks, context.steering() as messages:
            tasks.start_soon(watch)
            ready.set()
            await anext(messages)
            pytest.fail("an agent that is stopped has taken nothing")

    runner = Doing(what)
    async with open_embedded(store, runners=[runner]) as client:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        assert sent.run is not None
        await ready.wait()
        more = await client.send_message(session.id, "more", when_busy="steer")
        with anyio.fail_after(TIMEOUT_S):
            await store.taken.wait()
            await client.cancel_run(sent.run.id)
            await stopped.wait()
        store.go.set()
        assert (await end_of(client, sent.run)).status is RunStatus.CANCELED
        moved = (await now(client, more.message)).run_id
        assert moved is not None
        await end_of(client, await client.get_run(moved))
    assert runner.prompts == ["work", "more"]


@pytest.mark.parametrize("is_heard", [False, True])
async def test_steering_message_is_given_again_unless_the_agent_reacted_to_it(
    is_heard: bool,
) -> None:
    """After its engine was lost, if the agent has emitted nothing since the message."""
    store, ready, taken = MemoryStore(), anyio.Event(), anyio.Event()
    runs: list[Run] = []

    async def what(context: RunContext) -> None:
        if context.prompt != "work":
            return
        await context.delivered()
        await context.set_thread("t-1")
        await context.emit("agent.message", {"text": "at work"})
        async with context.steering() as messages:
            ready.set()
            text = await anext(messages)
            if is_heard:
                await context.emit("agent.message", {"text": f"I see: {text}"})
                await context.set_thread("t-1", {"heard": text})
                await context.spawn(
                    "other"
                )  # the write of this call also commits all events before it
            taken.set()
            await anyio.sleep_forever()

    async def body(client: Client) -> None:
        session = await client.create_session()
        sent = await client.send_message(session.id, "work")
        assert sent.run is not None
        runs.append(sent.run)
        await ready.wait()
        await anyio.sleep(0.002)  # times are stored in milliseconds
        await client.send_message(session.id, "more", when_busy="steer")
        await taken.wait()

    with anyio.fail_after(TIMEOUT_S):
        await lose(store, body, runners=[Doing(what, resumes=True)])
    second = Doing(what, resumes=True)
    async with open_embedded(store, runners=[second]) as client:
        run = await end_of(client, runs[0])
    assert (run.status, run.attempt) == (RunStatus.COMPLETED, 2)
    prompt = next(text for text in second.prompts if "This is the same conversation" in text)
    assert prompt.startswith("more\n\n") is not is_heard
    assert "work\n\n" not in prompt


async def test_steering_messages_of_an_agent_count_against_its_queue_limit() -> None:
    listener = Listener()
    sent = 0

    async def what(context: RunContext) -> str:
        nonlocal sent
        if context.prompt != "lead":
            await listener(context)
            return ""
        child = await context.spawn("work")
        await listener.ready.wait()
        try:
            for _ in range(100):
                await context.send(child.session.id, "more", when_busy="steer")
                sent += 1
        except Conflict as refused:
            return f"{refused.details['limit']}"
        finally:
            listener.go.set()
        return "never"

    async with open_embedded(":memory:", runners=[Doing(what)], max_concurrency=2) as client:
        session = await client.create_session()
        run = await end_of(client, (await client.send_message(session.id, "lead")).run)
    assert run.result is not None, run.error
    assert (run.result.text, sent) == ("queued", 16)

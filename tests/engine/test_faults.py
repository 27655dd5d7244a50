"""The engine with runners, stores and callers that misbehave."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from agent_orchestrator import (
    AgentFailed,
    Client,
    Outcome,
    Run,
    RunContext,
    RunStatus,
    Usage,
    open_embedded,
)
from agent_orchestrator.domain.errors import InvalidRequest, NotFound, Unavailable
from agent_orchestrator.domain.events import InvalidEvent
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.invariants import history, violations

pytestmark = pytest.mark.anyio

TIMEOUT_S = 60.0


@define
class Doing:
    """A runner that does what a test says."""

    what: Callable[[RunContext], Awaitable[Any]]
    name: str = "doing"
    begun: anyio.Event = field(factory=anyio.Event)

    async def run(self, context: RunContext) -> Outcome:
        self.begun.set()
        return await self.what(context)


async def run_of(client: Client, text: str = "go", **more: Any) -> Run:
    session = await client.create_session()
    sent = await client.send_message(session.id, text, **more)
    assert sent.run is not None
    return sent.run


async def end_of(client: Client, run: Run) -> Run:
    reply = await client.wait_run(run.id, timeout_s=TIMEOUT_S)
    assert not reply.timed_out, reply.run
    return reply.run


async def forever(context: RunContext) -> Outcome:
    await anyio.sleep_forever()
    raise AssertionError


async def kept(path: Path, run: Run) -> RunStatus | None:
    """Return the run's status on disk, while no engine is open."""
    async with SqliteStore(path) as store:
        found = await store.read(lambda view: view.run(run.id))
    return found.status if found else None


# --- shutdown ---------------------------------------------------------------------------------


async def test_run_is_queued_again_if_the_engine_closes_right_after_a_message(
    tmp_path: Path,
) -> None:
    for number in range(10):
        path = tmp_path / f"{number}.db"
        with anyio.fail_after(TIMEOUT_S):
            async with open_embedded(path, runners=[Doing(forever)]) as client:
                run = await run_of(client)
        assert await kept(path, run) is RunStatus.QUEUED


@pytest.mark.parametrize("how", ["raise", "cancel"])
async def test_queued_run_is_kept_if_the_embedding_code_raises_or_is_canceled(
    tmp_path: Path, how: str
) -> None:
    for number in range(10):
        path = tmp_path / f"{number}.db"
        with anyio.CancelScope() as scope:
            try:
                async with open_embedded(path, runners=[Doing(forever)]) as client:
                    run = await run_of(client)
                    if how == "raise":
                        raise LookupError
                    scope.cancel()
            except LookupError:
                pass
        assert await kept(path, run) is RunStatus.QUEUED


async def test_error_of_the_embedding_code_is_raised_unchanged() -> None:
    with pytest.raises(NotFound):
        async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
            await client.get_session("ses_none")


async def test_runner_that_writes_in_its_cleanup_does_not_block_the_shutdown() -> None:
    async def what(context: RunContext) -> Outcome:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await context.set_thread("t-1")
        return Outcome("never")

    runner = Doing(what)
    with anyio.fail_after(TIMEOUT_S):
        with anyio.CancelScope() as scope:
            async with open_embedded(":memory:", runners=[runner]) as client:
                await run_of(client)
                await runner.begun.wait()
                scope.cancel()
                await anyio.sleep_forever()


# --- runners ----------------------------------------------------------------------------------


async def says_no_text(context: RunContext) -> Any:
    return Outcome(7)  # type: ignore[arg-type]


async def returns_nothing(context: RunContext) -> Any:
    return None


async def says_nan(context: RunContext) -> Outcome:
    with pytest.raises(InvalidEvent):
        await context.report_usage(Usage(cost_usd=float("nan")))
    with pytest.raises(InvalidEvent):
        await context.set_thread("t", {"x": object()})
    with pytest.raises(InvalidEvent):
        await context.set_thread("\ud800")
    context.note_stderr("half \ud800")
    raise AgentFailed("provider_error", "half \ud800 too")


async def half_a_character(context: RunContext) -> Outcome:
    return Outcome("half \ud800")


async def leaves(context: RunContext) -> Outcome:
    sys.exit(3)


class Odd(BaseException):
    """Nothing that ``except Exception`` catches."""


async def raises_oddly(context: RunContext) -> Outcome:
    raise Odd


@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        (leaves, RunStatus.FAILED, "agent_crashed"),
        (raises_oddly, RunStatus.FAILED, "agent_crashed"),
        (says_no_text, RunStatus.FAILED, "agent_crashed"),
        (returns_nothing, RunStatus.FAILED, "agent_crashed"),
        (says_nan, RunStatus.FAILED, "provider_error"),
        (half_a_character, RunStatus.COMPLETED, None),
    ],
)
async def test_run_ends_whatever_its_runner_returns_or_raises(
    tmp_path: Path, what: Any, status: RunStatus, code: str | None
) -> None:
    async with open_embedded(tmp_path / "d.db", runners=[Doing(what)]) as client:
        run = await end_of(client, await run_of(client))
    assert run.status is status
    assert (run.error.code if run.error else None) == code


async def test_run_is_canceled_though_its_runner_fails_while_it_stops() -> None:
    async def fails_when_stopped() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise AgentFailed("provider_error", "stopped in the middle")

    async def what(context: RunContext) -> Outcome:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails_when_stopped)
            await anyio.sleep_forever()
        return Outcome("never")

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        run = await run_of(client)
        await runner.begun.wait()
        await client.cancel_run(run.id, reason="enough")
        assert (await end_of(client, run)).status is RunStatus.CANCELED
        last = [event async for event in client.events(run.session_id)][-1]
    assert (last.event_type, last.data["reason"]) == ("run.canceled", "enough")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_stray_cancellation_fails_only_its_own_run() -> None:
    async def what(context: RunContext) -> Outcome:
        if context.prompt == "hold":
            await anyio.sleep_forever()
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task
        return Outcome("never")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        held = await run_of(client, "hold")
        stray = await end_of(client, await run_of(client))
        assert stray.error is not None
        assert stray.error.code == "agent_crashed"
        assert (await client.get_run(held.id)).attempt == 1
        await client.cancel_run(held.id)
        assert (await end_of(client, held)).status is RunStatus.CANCELED


async def test_event_data_is_copied_when_it_is_emitted(tmp_path: Path) -> None:
    async def what(context: RunContext) -> Outcome:
        data: dict[str, Any] = {}
        for number in range(20):
            data["text"] = str(number)
            await context.emit("agent.message", data)
        return Outcome("")

    async with open_embedded(tmp_path / "d.db", runners=[Doing(what)]) as client:
        run = await end_of(client, await run_of(client))
        log = [event async for event in client.events(run.session_id)]
    texts = [event.data["text"] for event in log if event.event_type == "agent.message"]
    assert texts == [str(number) for number in range(20)]


async def test_resumed_run_has_the_thread_id() -> None:
    async def what(context: RunContext) -> Outcome:
        await context.set_thread("t-1")
        return Outcome("")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        first = await end_of(client, await run_of(client))
        sent = await client.send_message(first.session_id, "again")
        assert sent.run is not None
        second = await end_of(client, sent.run)
    assert [first.thread_id, second.thread_id] == ["t-1", "t-1"]


async def test_large_events_are_all_stored(tmp_path: Path) -> None:
    async def what(context: RunContext) -> Outcome:
        for number in range(30):
            await context.emit("agent.message", {"text": str(number) * 2_000_000})
        return Outcome("done")

    async with open_embedded(tmp_path / "d.db", runners=[Doing(what)]) as client:
        run = await end_of(client, await run_of(client))
        events = [event async for event in client.events(run.session_id)]
    sizes = [len(one.data["text"]) for one in events if one.event_type == "agent.message"]
    assert sizes == [2_000_000] * 10 + [4_000_000] * 20


# --- steering ---------------------------------------------------------------------------------


async def test_steering_message_taken_at_the_end_of_a_run_is_delivered_once() -> None:
    taken: list[str] = []

    async def what(context: RunContext) -> Outcome:
        async def listen() -> None:
            async with context.steering() as messages:
                await context.emit("agent.message", {"text": "listening"})
                async for text in messages:
                    taken.append(text)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
        return Outcome("done")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        run = await run_of(client)
        async with client.events(run.session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "agent.message":
                    break
        await client.send_message(run.session_id, "turn", when_busy="steer")
        await end_of(client, run)
        messages = (await client.list_messages(run.session_id)).messages
        runs = (await client.list_runs(session_id=run.session_id)).runs
    assert taken == ["turn"]
    assert [message.delivery for message in messages] == ["delivered"] * 2
    assert len(runs) == 1


async def test_steering_message_gets_its_own_run_if_it_was_not_taken() -> None:
    gate = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        if context.prompt != "go":
            return Outcome(f"later: {context.prompt}")
        async with context.steering():
            await context.emit("agent.message", {"text": "listening"})
            await gate.wait()
        raise AgentFailed("provider_error", "it broke")

    async with open_embedded(":memory:", runners=[Doing(what)]) as client:
        run = await run_of(client)
        async with client.events(run.session_id, follow=True) as events:
            async for event in events:
                if event.event_type == "agent.message":
                    break
        steer = await client.send_message(run.session_id, "turn", when_busy="steer")
        gate.set()
        assert (await end_of(client, run)).status is RunStatus.FAILED
        (message,) = [
            one
            for one in (await client.list_messages(run.session_id)).messages
            if one.id == steer.message.id
        ]
        assert message.run_id is not None
        assert message.run_id != run.id
        later = await end_of(client, await client.get_run(message.run_id))
    assert later.result is not None
    assert later.result.text == "later: turn"


# --- the store --------------------------------------------------------------------------------


class Flaky(MemoryStore):
    """A store that refuses the next ``refusals`` writes and ``unread`` reads."""

    refusals = 0
    unread = 0

    async def read(self, look: Any) -> Any:
        if self.unread:
            self.unread -= 1
            raise Unavailable("the disk cannot be read")
        return await super().read(look)

    async def transact(self, change: Any, *, reserve: bool = False) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("the disk is full")
        return await super().transact(change, reserve=reserve)


async def test_run_survives_writes_that_fail_for_a_moment() -> None:
    store = Flaky()

    async def what(context: RunContext) -> Outcome:
        store.refusals = 2
        await context.set_thread("t-1")
        store.refusals = 2
        return Outcome("done")

    async with open_embedded(store, runners=[Doing(what)]) as client:
        first = await end_of(client, await run_of(client))
        held = await client.create_session()
        sent = await client.send_message(held.id, "go")
        store.refusals = 1
        assert sent.run is not None
        second = await end_of(client, sent.run)
    assert [first.status, second.status] == [RunStatus.COMPLETED] * 2
    assert first.thread_id == "t-1"


async def test_run_survives_reads_that_fail_for_a_moment() -> None:
    store = Flaky()
    recovered = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        store.unread = 1  # the read of the watch for cancels
        await context.set_thread("t-1")
        while store.unread:
            await anyio.lowlevel.checkpoint()
        recovered.set()
        await anyio.sleep_forever()
        raise AssertionError

    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(store, runners=[Doing(what)]) as client:
            run = await run_of(client)
            await recovered.wait()
            await client.cancel_run(run.id)
            assert (await end_of(client, run)).status is RunStatus.CANCELED


class Broken(MemoryStore):
    """A store with a bug: it raises an unexpected error."""

    faults = 0

    async def transact(self, change: Any, *, reserve: bool = False) -> Any:
        if self.faults:
            self.faults -= 1
            raise ZeroDivisionError
        return await super().transact(change, reserve=reserve)


@pytest.mark.parametrize("is_canceled", [False, True])
async def test_run_ends_and_frees_its_worker_after_an_unexpected_store_error(
    is_canceled: bool,
) -> None:
    store = Broken()
    go = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        try:
            await go.wait()
        finally:
            store.faults = 2  # the end with the last events, and the end alone
        return Outcome("done")

    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(store, runners=[Doing(what)], max_concurrency=1) as client:
            run = await run_of(client)
            if is_canceled:
                while (await client.get_run(run.id)).status is not RunStatus.RUNNING:
                    await anyio.sleep(0.001)
                await client.cancel_run(run.id)
            else:
                go.set()
            run = await end_of(client, run)
            assert store.faults == 0
            records = await history(client)
            # Its worker is free for the next run.
            go.set()
            assert (await end_of(client, await run_of(client))).worker_id is not None
    assert violations(records) == []
    assert run.status is (RunStatus.CANCELED if is_canceled else RunStatus.FAILED)
    if not is_canceled:
        assert run.error is not None
        assert run.error.code == "worker_lost"


async def test_shutdown_does_not_wait_for_a_store_that_refuses_writes() -> None:
    store = Flaky()
    begun = anyio.Event()

    async def what(context: RunContext) -> Outcome:
        if not begun.is_set():
            begun.set()
            await anyio.sleep_forever()
        return Outcome("done")

    with anyio.fail_after(TIMEOUT_S):
        async with open_embedded(store, runners=[Doing(what)]) as client:
            run = await run_of(client)
            await begun.wait()
            store.refusals = 1_000
        assert store.refusals > 900
        store.refusals = 0
        async with open_embedded(store, runners=[Doing(what)]) as client:
            ended = await end_of(client, run)
    assert (ended.status, ended.attempt) == (RunStatus.COMPLETED, 2)


async def test_agent_that_cannot_resume_gets_the_task_again_with_the_answer() -> None:
    prompts: list[str] = []

    async def what(context: RunContext) -> Outcome:
        prompts.append(context.prompt)
        await context.delivered()
        await context.set_thread("t-1")
        if len(prompts) == 1:
            await context.ask_parent("may I?")
        return Outcome("done")

    store = MemoryStore()
    async with store:
        async with open_embedded(store, runners=[Doing(what)]) as client:
            run = await run_of(client, "the task")
            while not (asked := (await client.requests()).requests):
                await anyio.sleep(0.01)
        async with open_embedded(store, runners=[Doing(what)]) as client:
            await client.resolve_request(asked[0].id, "answer", text="yes")
            assert (await end_of(client, run)).status is RunStatus.COMPLETED
    assert len(prompts) == 2
    assert prompts[1].startswith("the task")
    assert prompts[1].endswith("yes")


# --- keys -------------------------------------------------------------------------------------


async def test_repeated_key_gets_the_first_answer_though_the_call_is_invalid_now(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        first = await client.create_session(cwd=str(folder), idempotency_key="k")
        folder.rmdir()
        assert await client.create_session(cwd=str(folder), idempotency_key="k") == first
        with pytest.raises(InvalidRequest):
            await client.create_session(cwd=str(folder), idempotency_key="other")


# --- values -----------------------------------------------------------------------------------


async def test_session_metadata_is_a_copy() -> None:
    metadata: dict[str, Any] = {"list": (1, 2), "inner": {"a": 1}}
    async with open_embedded(":memory:", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(metadata=metadata)
        metadata["inner"]["a"] = 2
        expected: Mapping[str, Any] = {"list": [1, 2], "inner": {"a": 1}}
        assert session.metadata == expected
        assert (await client.get_session(session.id)).metadata == expected


async def test_queue_position_skips_runs_that_wait_for_their_session() -> None:
    runners = [Doing(forever)]
    async with open_embedded(":memory:", runners=runners, max_concurrency=1) as client:
        busy = await run_of(client)
        await runners[0].begun.wait()
        for _ in range(3):
            await client.send_message(busy.session_id, "behind")
        other = await run_of(client)
        assert (await client.diagnose_run(other.id)).diagnostics.queue_position == 1


async def test_event_history_ends_while_new_events_keep_coming() -> None:
    async def what(context: RunContext) -> Outcome:
        while True:
            await context.emit("agent.message", {"text": "on and on"})

    runner = Doing(what)
    async with open_embedded(":memory:", runners=[runner]) as client:
        run = await run_of(client)
        await runner.begun.wait()
        for session_id in (run.session_id, None):
            head = (await client.get_session(run.session_id)).last_seq
            seen = 0
            with anyio.fail_after(TIMEOUT_S):
                async for _ in client.events(session_id):
                    seen += 1
            assert seen >= head
        await client.cancel_run(run.id)
        await end_of(client, run)

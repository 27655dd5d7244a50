"""A store that reports a failure after it has committed: retried writes are not recorded twice."""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from attrs import define
from crashing import Handle
from loops import ON_ONE_LOOP
from shared_memory import SharedHandle, SharedMemory

from agent_orchestrator import RunStatus, open_embedded
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.engine import worker_pool
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.runner import Outcome, RunContext
from agent_orchestrator.ports.store import Store
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


@define
class Doubts:
    """Once armed, says of every n-th commit that it failed."""

    first: int
    every: int
    count: int = 0
    refused: int = 0
    is_armed: bool = False

    def __call__(self) -> bool:
        if not self.is_armed:
            return False
        self.count += 1
        is_refused = self.count >= self.first and (self.count - self.first) % self.every == 0
        self.refused += is_refused
        return is_refused


async def agent(context: RunContext) -> Outcome:
    for number in range(6):
        await context.emit("agent.message", {"text": f"line {number}"})
        await anyio.sleep(0.002)
    if context.prompt == "ask":
        answered = await context.ask_parent("May I?", kind="approval_request")
        await context.emit("agent.message", {"text": f"answer {answered.decision}"})
    return Outcome("done")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.persistence.STORE_RETRY_S", (0.001,))
    monkeypatch.setattr("agent_orchestrator.engine.worker_pool.START_RETRY_S", 0.01)


@pytest.mark.parametrize(("first", "every"), [(2, 2), (1, 3), (2, 3), (3, 3)])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_write_retried_after_an_unknown_outcome_is_recorded_once(
    tmp_path: Path, kind: str, first: int, every: int
) -> None:
    store: Store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "x.db")
    doubts = Doubts(first, every)
    with anyio.fail_after(60):
        async with open_embedded(
            Handle(store, closes=True, doubts=doubts),
            runners=[FunctionRunner("agent", agent)],
            max_concurrency=2,
        ) as client:
            session = await client.create_session()
            doubts.is_armed = True
            ended = []
            for text in ("work", "ask", "work"):
                ended.append(await _run(client, session.id, text))
            assert doubts.refused > 2
            doubts.is_armed = False
            log = [event async for event in client.events(session.id)]
            requests = (await client.requests(status=None, resolvable=False)).requests
    assert [run.status for run in ended] == ["completed"] * 3
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    for run in ended:
        of_it = [event for event in log if event.run_id == run.id]
        said = [str(one.data["text"]) for one in of_it if one.event_type == "agent.message"]
        assert [one for one in said if one.startswith("line")] == [f"line {n}" for n in range(6)]
        counts = Counter(event.event_type for event in of_it)
        assert counts["run.started"] == counts["run.completed"] == 1, counts
    assert len(requests) == 1


async def test_request_abandoned_while_its_write_is_retried_is_canceled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, doubts = MemoryStore(), Doubts(first=1, every=10**6)
    monkeypatch.setattr("agent_orchestrator.engine.persistence.STORE_RETRY_S", (60.0,))

    async def hasty(context: RunContext) -> Outcome:
        doubts.is_armed = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(context.ask_parent, "May I?", kind="approval_request"))
            while not doubts.refused:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            while (await store.read(lambda view: view.requests(limit=9)))[0].is_open:
                await anyio.sleep(0.005)
        return Outcome("went on")

    with anyio.fail_after(60):
        async with open_embedded(
            Handle(store, doubts=doubts), runners=[FunctionRunner("agent", hasty)]
        ) as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "go")
            assert sent.run is not None
            ended = (await client.wait_run(sent.run.id)).run
    assert doubts.refused == 1
    assert ended.result is not None, ended.error


async def test_run_whose_start_is_unconfirmed_takes_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doubts, gate, go = Doubts(1, 1_000), anyio.Event(), anyio.Event()
    active: list[str] = []
    most = 0

    async def hold(context: RunContext) -> Outcome:
        nonlocal most
        active.append(context.run.id)
        most = max(most, len(active))
        await go.wait()
        active.remove(context.run.id)
        return Outcome("done")

    async def looked_late(*args: Any) -> Any:
        await gate.wait()
        return await read_again(*args)

    read_again = worker_pool.read_with_retry
    monkeypatch.setattr(worker_pool, "read_with_retry", looked_late)
    with anyio.fail_after(60):
        async with open_embedded(
            Handle(MemoryStore(), closes=True, doubts=doubts),
            runners=[FunctionRunner("agent", hold)],
            max_concurrency=1,
        ) as client:
            sessions = [await client.create_session() for _ in range(2)]
            doubts.is_armed = True
            with pytest.raises(Unavailable):
                await client.send_message(sessions[0].id, "first")
            doubts.is_armed = False
            second = (await client.send_message(sessions[1].id, "second")).run
            assert second is not None
            for _ in range(100):  # time enough to start it
                await anyio.sleep(0.001)
            assert (await client.get_run(second.id)).status == "queued"
            gate.set()
            while not active:
                await anyio.sleep(0.001)
            go.set()
            assert (await client.wait_run(second.id)).run.status == "completed"
            [first] = (await client.list_runs(session_id=sessions[0].id)).runs
            assert first.status == "completed"
    assert most == 1


class Noting:
    """A runner that notes the attempts it begins."""

    name = "noting"

    def __init__(self) -> None:
        self.begun: list[int] = []

    async def run(self, context: RunContext) -> Outcome:
        self.begun.append(context.run.attempt)  # as a process that is started
        return Outcome("done")


async def lose_lease(handle: SharedHandle) -> None:
    """End a daemon's lease, and wait until the daemon has another one."""
    former = handle.lease
    former.has_ended = True
    former.lost.set()
    while handle.lease is former:
        await anyio.sleep(0.001)


@ON_ONE_LOOP
async def test_run_whose_start_is_unconfirmed_is_not_begun_under_a_later_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever took over has recovered it, or will: it would be executed twice."""
    doubts, gate, has_looked = Doubts(1, 1_000), anyio.Event(), anyio.Event()
    noting = Noting()

    async def told_late(*args: Any) -> Any:
        found = await read_again(*args)
        has_looked.set()
        await gate.wait()
        return found

    read_again = worker_pool.read_with_retry
    monkeypatch.setattr(worker_pool, "read_with_retry", told_late)
    handle = SharedHandle(SharedMemory(), closes=True, doubts=doubts)
    with anyio.fail_after(60):
        async with open_embedded(handle, runners=[noting]) as client:
            session = await client.create_session()
            doubts.is_armed = True
            with pytest.raises(Unavailable):
                await client.send_message(session.id, "go")
            doubts.is_armed = False
            await has_looked.wait()
            await lose_lease(handle)
            gate.set()
            [run] = (await client.list_runs(session_id=session.id)).runs
            assert (await client.wait_run(run.id)).run.status == "completed"
    assert noting.begun == [2]


@ON_ONE_LOOP
async def test_run_whose_start_is_answered_after_its_lease_was_lost_is_not_begun() -> None:
    """Its daemon was cut off during the commit, and finds that it was made and that another daemon took over."""
    noting = Noting()

    class CutOff(SharedHandle):
        is_armed = True

        async def transact(self, change: Callable[[Transaction], Any], **options: Any) -> Any:
            answer = await super().transact(change, **options)
            started = await self.read(lambda view: view.runs(status=RunStatus.RUNNING, limit=1))
            if self.is_armed and started:
                self.is_armed = False
                await lose_lease(self)
            return answer

    handle = CutOff(SharedMemory(), closes=True)
    with anyio.fail_after(60):
        async with open_embedded(handle, runners=[noting]) as client:
            session = await client.create_session()
            run = (await client.send_message(session.id, "go")).run
            assert run is not None
            assert (await client.wait_run(run.id)).run.status == "completed"
    assert not handle.is_armed
    assert noting.begun == [2]


async def test_call_from_a_forked_process_is_refused() -> None:
    async with open_embedded(MemoryStore(), runners=[FunctionRunner("agent", agent)]) as client:
        child = os.fork()
        if child == 0:
            try:
                Context().run(asyncio.run, client.create_session())
            except Unavailable as error:
                os._exit(0 if f"belongs to process {os.getppid()}, from which" in str(error) else 2)
            finally:
                os._exit(3)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


async def _run(client: Any, session_id: str, text: str) -> Any:
    """Send a message until it is accepted, approve its requests, and return its run."""
    made = await _retried(
        lambda: client.send_message(session_id, text, idempotency_key=f"{text}-{id(text)}")
    )
    while True:
        waited = await client.wait_run(made.run.id, timeout_s=0.2)
        if not waited.timed_out:
            return waited.run
        for request in (await client.requests()).requests:
            await _retried(partial(client.resolve_request, request.id, "approve"))


async def _retried(call: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await call()
        except Unavailable:
            await anyio.sleep(0.001)

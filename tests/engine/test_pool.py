"""How a queued run gets a worker."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import pytest

from agent_orchestrator import Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Watched(MemoryStore):
    """Counts its commits, and can be made to hang."""

    changes = 0
    is_open: anyio.Event | None = None

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        if self.is_open is not None:
            await self.is_open.wait()
        self.changes += 1
        return await super().transact(change, reserve=reserve)


class Tally:
    """Counts the agents that begin. They end when ``may_end`` is set."""

    name = "tally"

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = anyio.Event()

    async def run(self, context: RunContext) -> Outcome:
        self.begun += 1
        await self.may_end.wait()
        return Outcome("done")


async def test_a_message_to_an_idle_pool_is_queued_and_started_in_one_commit() -> None:
    store = Watched()
    runner = Tally()
    async with open_embedded(store, runners=[runner], max_concurrency=2) as client:
        sessions = [await client.create_session() for _ in range(3)]
        before = store.changes
        with anyio.fail_after(45):
            sent = [await client.send_message(sessions[0].id, "go")]
            assert sent[0].run is not None
            assert (await client.get_run(sent[0].run.id)).status is RunStatus.RUNNING
            assert store.changes == before + 1
            sent += [await client.send_message(each.id, "go") for each in sessions[1:]]
            runner.may_end.set()
            done = [(await client.wait_run(each.run.id)).run for each in sent if each.run]
        log = [event.event_type async for event in client.events(sessions[0].id)]
    # The third finds no free worker: it is taken when one has ended.
    assert runner.begun == 3
    assert [run.status for run in done] == [RunStatus.COMPLETED] * 3
    assert log.index("run.queued") < log.index("run.started")


async def test_queued_run_is_executed_though_its_caller_gave_up_waiting() -> None:
    store = Watched()
    runner = ScriptedRunner()
    async with open_embedded(store, runners=[runner]) as client:
        session = await client.create_session()
        store.is_open = anyio.Event()
        with anyio.fail_after(45):
            with anyio.move_on_after(0.05) as scope:
                await client.send_message(session.id, "say hi", idempotency_key="one")
            assert scope.cancelled_caught
            store.is_open.set()
            again = await client.send_message(session.id, "say hi", idempotency_key="one")
            assert again.run is not None
            assert (await client.wait_run(again.run.id)).run.status is RunStatus.COMPLETED
    assert runner.prompts == ["say hi"]

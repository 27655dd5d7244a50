"""When tokens were used last: noted in memory, written in groups."""

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from attrs import define, field

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.engine import last_seen
from agent_orchestrator.engine.last_seen import LastSeen, record_uses

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@define
class Writes:
    """A store that notes the writes."""

    all: list[dict[str, datetime]] = field(factory=list)
    written: anyio.Event = field(factory=anyio.Event)
    fails: bool = False

    async def transact(self, change: Any) -> None:
        self.written.set()
        if self.fails:
            raise Unavailable("the disk is full")
        self.all.append({})
        change(self)

    def mark_token_used(self, token_id: str, at: datetime) -> None:
        self.all[-1][token_id] = at

    async def next(self) -> None:
        with anyio.fail_after(45):
            await self.written.wait()
        self.written = anyio.Event()


async def test_many_uses_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_seen, "INTERVAL_S", 0.2)
    uses, store = LastSeen(), Writes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record_uses, uses, store, lambda: NOON)
        uses.note("tok_1", NOON)
        await store.next()
        for number in range(1000):
            uses.note("tok_1", NOON + timedelta(seconds=number))
            uses.note("tok_2", NOON)
        await store.next()
        tasks.cancel_scope.cancel()
    last = NOON + timedelta(seconds=999)
    assert store.all == [{"tok_1": NOON}, {"tok_1": last, "tok_2": NOON}]


async def test_nothing_is_written_without_uses() -> None:
    uses, store = LastSeen(), Writes()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record_uses, uses, store, lambda: NOON)
        await anyio.wait_all_tasks_blocked()
        assert store.all == []
        tasks.cancel_scope.cancel()


async def test_open_stream_is_a_use_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_seen, "INTERVAL_S", 0.01)
    uses, store, now = LastSeen(), Writes(), NOON

    def clock() -> datetime:
        nonlocal now
        now += timedelta(minutes=1)
        return now

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record_uses, uses, store, clock)
        with uses.during(None), uses.during("tok_1"), uses.during("tok_1"):
            for _ in range(3):
                await store.next()
        count = len(store.all)
        await anyio.sleep(0.1)  # the time of ten writes
        assert len(store.all) <= count + 1
        tasks.cancel_scope.cancel()
    assert store.all[:3] == [{"tok_1": NOON + timedelta(minutes=n)} for n in (1, 2, 3)]


async def test_store_that_fails_does_not_end_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_seen, "INTERVAL_S", 0.01)
    uses, store = LastSeen(), Writes(fails=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record_uses, uses, store, lambda: NOON)
        uses.note("tok_1", NOON)
        await store.next()
        store.fails = False
        uses.note("tok_2", NOON)
        await store.next()
        tasks.cancel_scope.cancel()
    assert store.all == [{"tok_2": NOON}]

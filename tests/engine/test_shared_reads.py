"""Readers at the same place of a log share a read."""

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from agent_orchestrator import Outcome, RunContext, open_embedded
from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import Forbidden, Unavailable
from agent_orchestrator.engine.shared_reads import KEPT_PAGES, SharedReads
from agent_orchestrator.operations.events import CaughtUp, StreamRequest
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

T = TypeVar("T")
OTHER = Principal("other")


class Counting(MemoryStore):
    """Counts its reads, and can refuse them."""

    reads = 0
    is_broken = False

    async def read(self, query: Callable[[View], T]) -> T:
        self.reads += 1
        await anyio.lowlevel.checkpoint()
        if self.is_broken:
            raise Unavailable("the disk cannot be read")
        return await super().read(query)


class Talker:
    """An agent that says as many words as the message is long."""

    name = "talker"

    async def run(self, context: RunContext) -> Outcome:
        for number in range(len(context.prompt)):
            await context.emit("agent.message.delta", {"item_id": "m", "text": f"word {number}"})
        return Outcome("done")


@pytest.fixture
async def store() -> Any:
    return Counting()


async def _logged(client: Any, text: str = "hello") -> tuple[str, int]:
    """Return a session whose run has ended, and its number of events."""
    session = await client.create_session()
    sent = await client.send_message(session.id, text)
    await client.wait_run(sent.run.id, timeout_s=60)
    return session.id, (await client.get_session(session.id)).last_seq


def _allowed(_: View) -> None:
    pass


def _refused(_: View) -> None:
    raise Forbidden("not yours")


async def test_readers_at_the_same_place_get_one_page_from_one_read(store: Counting) -> None:
    pages: list[Any] = []
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, last = await _logged(client)
        shared, before = SharedReads(store), store.reads

        async def read() -> None:
            pages.append(await shared.page(LOCAL, _allowed, session_id, 1, 100))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(read)
        assert store.reads == before + 1
    assert [item.event.seq for item in pages[0]] == list(range(2, last + 1))
    assert all(page is pages[0] for page in pages)


async def test_access_is_checked_for_each_reader(store: Counting) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, _ = await _logged(client)
        shared = SharedReads(store)
        refused = []

        async def strange() -> None:
            with pytest.raises(Forbidden):
                await shared.page(OTHER, _refused, session_id, 0, 100)
            refused.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(strange)
            await anyio.lowlevel.checkpoint()
            assert await shared.page(LOCAL, _allowed, session_id, 0, 100)
            tasks.start_soon(strange)
        assert len(refused) == 2


async def test_who_leaves_does_not_keep_the_others_waiting(store: Counting) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, _ = await _logged(client)
        shared = SharedReads(store)
        pages: list[Any] = []

        async def read(scope: anyio.CancelScope) -> None:
            with scope:
                pages.append(await shared.page(LOCAL, _allowed, session_id, 0, 100))

        first, second = anyio.CancelScope(), anyio.CancelScope()
        with anyio.fail_after(45):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, first)
                await anyio.lowlevel.checkpoint()
                first.cancel()
                tasks.start_soon(read, second)
        assert pages


async def test_a_failed_read_fails_for_each_reader(store: Counting) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, _ = await _logged(client)
        shared, failed = SharedReads(store), []

        async def read() -> None:
            with pytest.raises(Unavailable):
                await shared.page(LOCAL, _allowed, session_id, 0, 100)
            failed.append(True)

        store.is_broken = True
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read)
        store.is_broken = False
        assert len(failed) == 3
        assert await shared.page(LOCAL, _allowed, session_id, 0, 100)


async def test_full_pages_are_kept_for_later_readers_with_access(store: Counting) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, last = await _logged(client, "a longer message")
        shared = SharedReads(store)
        full = await shared.page(LOCAL, _allowed, session_id, 0, last)
        assert await shared.page(LOCAL, _allowed, session_id, 0, last) is full
        with pytest.raises(Forbidden):
            await shared.page(OTHER, _refused, session_id, 0, last)
        # The next event would belong to this one.
        growing = await shared.page(LOCAL, _allowed, session_id, 0, last + 1)
        assert await shared.page(LOCAL, _allowed, session_id, 0, last + 1) is not growing
        for limit in range(1, KEPT_PAGES + 1):
            await shared.page(LOCAL, _allowed, session_id, 0, limit)
        assert await shared.page(LOCAL, _allowed, session_id, 0, last) is not full


@pytest.mark.parametrize("several", [False, True])
async def test_a_quiet_stream_does_not_read_the_store(store: Counting, *, several: bool) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, _ = await _logged(client)
        ids = [session_id, *([(await client.create_session()).id] if several else [])]
        async with client.transport.subscribe(StreamRequest(ids)) as subscription:
            batch: Any = ()
            while not (batch and isinstance(batch[-1], CaughtUp)):
                batch = await subscription.receive()
            with anyio.move_on_after(0.05):
                await subscription.receive()
            before = store.reads
            for _ in range(5):
                with anyio.move_on_after(0.01):
                    await subscription.receive()
            assert store.reads == before
            # A notification that comes while nobody waits is not lost.
            await client.send_message(session_id, "more")
            with anyio.fail_after(45):
                assert (await subscription.receive())[0].event.event_type == "message.created"


async def test_a_reader_can_leave_while_the_store_hangs() -> None:
    class Hanging(Counting):
        hangs = False

        async def read(self, query: Callable[[View], T]) -> T:
            if self.hangs:
                await anyio.sleep_forever()
            return await super().read(query)

    store = Hanging()
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, _ = await _logged(client)
        shared = SharedReads(store)
        store.hangs = True
        with anyio.fail_after(45), anyio.move_on_after(0.05):
            await shared.page(LOCAL, _allowed, session_id, 0, 100)
        store.hangs = False
        assert await shared.page(LOCAL, _allowed, session_id, 0, 100)


async def test_catching_up_takes_no_further_read_at_the_end_of_the_log(store: Counting) -> None:
    async with open_embedded(store, runners=[Talker()]) as client:
        session_id, last = await _logged(client)
        before = store.reads
        async with client.transport.subscribe(StreamRequest([session_id])) as subscription:
            page, end = await subscription.receive(), await subscription.receive()
            assert [item.event.seq for item in page] == list(range(1, last + 1))
            assert end == (CaughtUp(str(last)),)
            with anyio.move_on_after(0.01):
                await subscription.receive()
            assert store.reads == before + 2  # the head, and the page
            await client.send_message(session_id, "more")
            with anyio.fail_after(45):
                assert (await subscription.receive())[0].event.seq == last + 1

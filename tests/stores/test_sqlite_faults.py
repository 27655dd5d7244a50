"""What callers get when a commit fails or the process is killed."""

import json
import signal
import sys
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import apsw
import pytest

from agent_orchestrator.domain.errors import Conflict, Unavailable
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = pytest.mark.anyio


class Gate:
    """A change that keeps the writer busy until it is opened, so that others queue behind it."""

    def __init__(self):
        self._reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, _):
        self._reached.set()
        assert self._open.wait(60)

    async def reached(self):
        assert await anyio.to_thread.run_sync(self._reached.wait, 60)

    def open(self):
        self._open.set()


_WRITER = """
import json, sys, anyio
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

async def main():
    async with SqliteStore(sys.argv[1]) as store, anyio.create_task_group() as tasks:
        sessions = [a_session() for _ in range(8)]
        await put(store, *sessions)

        async def write(session_id, writer):
            number = 0
            while True:
                text = f"{writer}/{number}"
                seq = await store.transact(lambda tx: tx.append(session_id, drafts(text), NOW))
                sys.stdout.write(json.dumps([session_id, seq, text]) + "\\n")
                sys.stdout.flush()
                number += 1

        for writer in range(24):
            tasks.start_soon(write, sessions[writer % 8].id, writer)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("acknowledged", [1, 200, 3000])
async def test_killed_process_has_lost_no_acknowledged_commit(
    tmp_path, anyio_backend_name, acknowledged
):
    path = tmp_path / "data.db"
    lines = b""
    with anyio.fail_after(90):
        async with await anyio.open_process(
            [sys.executable, "-c", _WRITER, str(path), anyio_backend_name], stderr=None
        ) as process:
            assert process.stdout is not None
            while lines.count(b"\n") < acknowledged:
                lines += await process.stdout.receive()
            process.send_signal(signal.SIGKILL)
            async for chunk in process.stdout:
                lines += chunk
            assert await process.wait() == -signal.SIGKILL
        complete = lines[: lines.rindex(b"\n")].decode().splitlines()
        acknowledged_texts = {
            (session, seq): text for session, seq, text in map(json.loads, complete)
        }
        assert len(acknowledged_texts) == len(complete) >= acknowledged
        async with SqliteStore(path) as store:
            sessions = await store.read(lambda view: view.sessions(limit=100))
            assert len(sessions) == 8
            stored = {}
            for session in sessions:
                events = await store.read(
                    lambda view, s=session.id: view.events(s, after=0, limit=100_000)
                )
                assert [event.seq for event in events] == list(range(1, session.last_seq + 1))
                stored |= {(session.id, event.seq): event.data["text"] for event in events}
            assert acknowledged_texts.items() <= stored.items()
            assert len(set(stored.values())) == len(stored)
            assert await store.read(lambda view: view.event_count()) == len(stored)


async def test_failed_commit_raises_for_every_caller_and_writes_nothing(tmp_path):
    """The database may not grow, as on a full disk; later it may again."""
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            session = a_session()
            await put(store, session)
            room = await store.transact(lambda tx: tx._connection.pragma("page_count"))
            await store.transact(lambda tx: tx._connection.pragma("max_page_count", room + 2))
            refusals = []
            gate = Gate()

            async def append(text):
                with pytest.raises(Unavailable) as raised:
                    await store.transact(
                        lambda tx: tx.append(session.id, drafts(text * 3_000_000), NOW)
                    )
                refusals.append(raised.value)

            notified = []
            with store.listen(notified.append):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(store.transact, gate)
                    await gate.reached()
                    for text in "abcde":
                        tasks.start_soon(append, text)
                    await anyio.wait_all_tasks_blocked()
                    gate.open()
            assert notified == []
            assert len(refusals) == 5
            assert len({id(refusal) for refusal in refusals}) == 5
            assert all("full" in str(refusal) for refusal in refusals)
            assert all(refusal.retry_after_s >= 1 for refusal in refusals)

            await store.transact(lambda tx: tx._connection.pragma("max_page_count", 1_000_000))
            seq = await store.transact(lambda tx: tx.append(session.id, drafts("after"), NOW))
            assert seq == 1
            assert await store.read(lambda view: view.event_count()) == 1


async def test_refusal_based_on_a_rolled_back_change_is_not_reported(tmp_path):
    """Two changes of one commit: the second is refused because of the first, which then fails."""

    class Broken(apsw.IOError):
        pass

    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            session = a_session()
            gate = Gate()
            outcomes = {}

            async def change(name, function):
                try:
                    await store.transact(function)
                except (Conflict, Unavailable) as error:
                    outcomes[name] = error

            def end_transaction(tx):
                # SQLite rolls the whole transaction back on an I/O error.
                tx._connection.execute("ROLLBACK")
                raise Broken("disk I/O error")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.transact, gate)
                await gate.reached()
                tasks.start_soon(change, "first", lambda tx: tx.add_session(session))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(change, "second", lambda tx: tx.add_session(session))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(change, "third", end_transaction)
                await anyio.wait_all_tasks_blocked()
                gate.open()
            assert {name: type(error) for name, error in outcomes.items()} == {
                "first": Unavailable,
                "second": Unavailable,
                "third": Unavailable,
            }
            assert await store.read(lambda view: view.session(session.id)) is None
            await put(store, session)
            with pytest.raises(Conflict):
                await put(store, session)


async def test_closing_finishes_queued_work_and_refuses_later_work(tmp_path):
    path = tmp_path / "data.db"
    session = a_session()
    gate, looks = Gate(), Gate()
    answered = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            async with SqliteStore(path) as store:
                await put(store, session)

                async def append(text):
                    answered.append(
                        await store.transact(lambda tx: tx.append(session.id, drafts(text), NOW))
                    )

                async def query():
                    await store.read(looks)
                    answered.append("look")

                async def open_when_closing():
                    while store._accepting:
                        await anyio.lowlevel.checkpoint()
                    gate.open()
                    while len(answered) < 150:
                        await anyio.lowlevel.checkpoint()
                    # Now only the reads, and the close that waits for them, are left.
                    await anyio.wait_all_tasks_blocked()
                    looks.open()

                tasks.start_soon(store.transact, gate)
                for _ in range(6):
                    tasks.start_soon(query)
                for number in range(150):
                    tasks.start_soon(append, str(number))
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(open_when_closing)
            with pytest.raises(Unavailable):
                await store.transact(lambda tx: tx.notify("late"))
        numbers = [answer for answer in answered if answer != "look"]
        assert sorted(numbers) == list(range(1, 151))
        assert answered.count("look") == 6
        assert not (tmp_path / "data.db-wal").exists()
        async with SqliteStore(path) as store:
            assert await store.read(lambda view: view.event_count()) == 150


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_read_cancelled_by_asyncio_keeps_its_connection_until_its_thread_ends(tmp_path):
    """A native cancellation frees the task, not the thread that works for it."""
    import asyncio

    gate = Gate()
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            looks = [asyncio.ensure_future(store.read(gate)) for _ in range(4)]
            await anyio.wait_all_tasks_blocked()
            for query in looks:
                query.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
            late = asyncio.ensure_future(store.read(lambda view: view.event_count()))
            await asyncio.sleep(0)
            gate.open()
            assert await late == 0

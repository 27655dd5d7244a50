"""Transactions are atomic, isolated and announced to listeners."""

import threading
from datetime import timedelta
from hashlib import sha256
from operator import methodcaller
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from agent_orchestrator.domain.errors import (
    Conflict,
    NotFound,
    Unavailable,
)
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Image,
    Thread,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_message,
    a_record,
    a_run,
    a_session,
    drafts,
    put,
)


class Changes(Opening):
    async def test_a_change_that_raises_is_rolled_back(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run, message = a_run(session.id), a_message(session.id)
            await put(store, session, run, message)
            await store.transact(lambda tx: tx.append(session.id, drafts("kept"), NOW))
            await store.transact(lambda tx: tx.put_thread(session.id, "demo", Thread("t", {})))

            def query(view: View) -> object:
                return (
                    view.sessions(limit=9),
                    view.runs(limit=9),
                    view.messages(session.id, limit=9),
                    view.feed(after=None, limit=9),
                    view.thread(session.id, "demo"),
                    view.attempts(run.id),
                    view.idempotency("local", "POST /sessions", "key"),
                    view.live_runs(),
                    view.last_event_at(run),
                    view.active_run(session.id),
                )

            before = await store.read(query)
            notified: list[frozenset[str]] = []

            def change(tx: Transaction) -> None:
                tx.add_session(a_session())
                tx.put_session(evolve(session, title="gone"))
                tx.add_run(a_run(session.id))
                tx.put_run(evolve(run, status=RunStatus.RUNNING))
                tx.add_message(a_message(session.id))
                tx.put_message(evolve(message, text="gone"))
                tx.append(session.id, drafts("a", "b", run_id=run.id), NOW + timedelta(hours=1))
                tx.put_attempt(Attempt(run.id, 1, "w", "demo", NOW))
                tx.put_thread(session.id, "demo", Thread("gone", {}))
                tx.add_record(a_record(), max_count=9, max_size=99)
                tx.notify("gone")
                assert query(tx) != before
                raise LookupError("no")

            with store.listen(notified.append):
                with pytest.raises(LookupError, match="no"):
                    await store.transact(change)
                assert await store.read(query) == before
                assert (
                    await store.transact(lambda tx: tx.append(session.id, drafts("next"), NOW)) == 2
                )
            assert notified == [frozenset({"events", f"session:{session.id}"})]

    async def test_a_change_sees_its_own_writes(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:

            def change(tx: Transaction) -> None:
                session = a_session()
                run = a_run(session.id)
                message = a_message(session.id, run_id=run.id)
                tx.add_session(session)
                tx.add_run(run)
                tx.add_message(message)
                tx.append(session.id, drafts("a", run_id=run.id), NOW + timedelta(seconds=1))
                assert tx.run(run.id) == run
                assert tx.next_runs(9) == [run]
                assert tx.run_messages(run.id) == [message]
                assert [event.seq for event in tx.events(session.id, after=0, limit=9)] == [1]
                stored = tx.session(session.id)
                assert stored is not None
                assert (stored.last_seq, stored.updated_at) == (1, NOW + timedelta(seconds=1))
                tx.put_run(evolve(run, status=RunStatus.RUNNING))
                assert tx.next_runs(9) == []
                assert tx.active_run(session.id) == evolve(run, status=RunStatus.RUNNING)

            await store.transact(change)

    async def test_equal_images_are_stored_once_while_a_message_needs_them(
        self, tmp_path: Path
    ) -> None:
        data = bytes(range(256)) * 4096
        digest = sha256(data).hexdigest()
        async with self.opened(tmp_path) as store:
            session = a_session()
            picture = Image("image/png", len(data), digest)
            first = a_message(session.id, images=(picture,))
            second = a_message(session.id, images=(picture, Image("image/gif", 1, "0" * 64)))
            await put(store, session, first, second)
            assert await store.read(lambda view: view.messages(session.id, limit=9)) == [
                first,
                second,
            ]
            assert await store.read(lambda view: view.message(second.id)) == second

            def keep(tx: Transaction) -> None:
                tx.add_image(first.id, digest, data)
                tx.add_image(second.id, digest, data)
                tx.add_image(second.id, digest, data)
                tx.add_image(second.id, "0" * 64, b"x")
                assert tx.image_space() == len(data) + 1

            def fail(tx: Transaction) -> None:
                keep(tx)
                tx.remove_images(second.id)
                raise LookupError

            def kept(view: View) -> tuple[int, bytes | None, bytes | None]:
                return view.image_space(), view.image(digest), view.image("0" * 64)

            with pytest.raises(LookupError):
                await store.transact(fail)
            assert await store.read(kept) == (0, None, None)
            await store.transact(keep)
            assert await store.read(kept) == (len(data) + 1, data, b"x")
            with pytest.raises(NotFound):
                await store.transact(lambda tx: tx.add_image("msg_nobody", digest, data))
            await store.transact(methodcaller("remove_images", second.id))
            assert await store.read(kept) == (len(data), data, None)
            await store.transact(methodcaller("remove_images", second.id))
            await store.transact(methodcaller("remove_images", first.id))
            assert await store.read(kept) == (0, None, None)

    async def test_a_refused_change_does_not_affect_concurrent_ones(self, tmp_path: Path) -> None:
        """Run a hundred changes at once. Every third raises after a write."""
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            answered: dict[int, int] = {}
            refused: set[int] = set()

            def change(tx: Transaction, number: int) -> int:
                seq = tx.append(session.id, drafts(str(number)), NOW)
                if number % 3 == 0:
                    raise LookupError(number)
                return seq

            async def append(number: int) -> None:
                try:
                    answered[number] = await store.transact(lambda tx: change(tx, number))
                except LookupError as error:
                    refused.add(error.args[0])

            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(append, number)
            assert refused == set(range(0, 100, 3))
            events = await store.read(lambda view: view.events(session.id, after=0, limit=500))
            assert [event.seq for event in events] == list(range(1, len(answered) + 1))
            assert {int(e.data["text"]): e.seq for e in events} == answered

    async def test_seqs_have_no_gaps_with_a_hundred_tasks(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            one, two = a_session(), a_session()
            await put(store, one, two)
            spans: dict[str, list[tuple[int, int]]] = {one.id: [], two.id: []}

            async def task(number: int) -> None:
                session_id = (one, two)[number % 2].id
                appended = drafts(*map(str, range(number % 7 + 1)))
                for _ in range(3):
                    last = await store.transact(lambda tx: tx.append(session_id, appended, NOW))
                    spans[session_id].append((last - len(appended) + 1, last))

            async with anyio.create_task_group() as tasks:
                for number in range(100):
                    tasks.start_soon(task, number)
            for session_id, taken in spans.items():
                expected = 1
                for first, last in sorted(taken):
                    assert first == expected
                    expected = last + 1
                events = await store.read(methodcaller("events", session_id, after=0, limit=10_000))
                assert [event.seq for event in events] == list(range(1, expected))

    @pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 63, 64, 65, 150])
    async def test_appends_of_every_size_keep_their_order(self, tmp_path: Path, count: int) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            texts = [str(number) for number in range(count)]
            for times in (1, 2):
                last = await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))
                assert last == times * count
            events = await store.read(lambda view: view.events(session.id, after=0, limit=500))
            assert [event.data["text"] for event in events] == texts * 2
            assert [event.seq for event in events] == list(range(1, 2 * count + 1))

    async def test_rows_that_refer_to_missing_objects_are_refused(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run, message = a_run(session.id), a_message(session.id)
            await put(store, session, run, message)
            for change in (
                lambda tx: tx.put_session(a_session()),
                lambda tx: tx.put_run(a_run(session.id)),
                lambda tx: tx.put_message(a_message(session.id)),
                lambda tx: tx.append("ses_none", drafts("x"), NOW),
                lambda tx: tx.add_run(a_run("ses_none")),
                lambda tx: tx.add_message(a_message("ses_none")),
                lambda tx: tx.put_thread("ses_none", "demo", Thread("t", {})),
                lambda tx: tx.put_attempt(Attempt("run_none", 1, "w", "demo", NOW)),
            ):
                with pytest.raises(NotFound):
                    await store.transact(change)
            for thing in (session, run, message):
                with pytest.raises(Conflict):
                    await put(store, thing)

    async def test_at_most_one_run_of_a_session_is_active(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            first, second = a_run(session.id), a_run(session.id)
            elsewhere = a_run(other.id, status=RunStatus.WAITING)
            await put(store, session, other, first, second, elsewhere)
            running = evolve(first, status=RunStatus.RUNNING)
            await store.transact(lambda tx: tx.put_run(running))
            for status in (RunStatus.RUNNING, RunStatus.WAITING):
                with pytest.raises(Conflict):
                    await store.transact(methodcaller("put_run", evolve(second, status=status)))
                with pytest.raises(Conflict):
                    await put(store, a_run(session.id, status=status))
            waiting = evolve(first, status=RunStatus.WAITING)
            await store.transact(lambda tx: tx.put_run(waiting))
            assert await store.read(lambda view: view.active_run(session.id)) == waiting

            def swap(tx: Transaction) -> None:
                tx.put_run(evolve(first, status=RunStatus.COMPLETED))
                tx.put_run(evolve(second, status=RunStatus.RUNNING))

            await store.transact(swap)
            active = await store.read(lambda view: view.active_run(session.id))
            assert active == evolve(second, status=RunStatus.RUNNING)

    async def test_a_canceled_caller_does_not_affect_others(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            answered: list[int] = []

            async def append(number: int, scope: anyio.CancelScope) -> None:
                with scope:
                    await store.transact(lambda tx: tx.append(session.id, drafts(str(number)), NOW))
                    answered.append(number)

            scopes = [anyio.CancelScope() for _ in range(60)]
            async with anyio.create_task_group() as tasks:
                for number, scope in enumerate(scopes):
                    tasks.start_soon(append, number, scope)
                await anyio.lowlevel.checkpoint()
                for scope in scopes[::2]:
                    scope.cancel()
            events = await store.read(lambda view: view.events(session.id, after=0, limit=500))
            happened = [int(event.data["text"]) for event in events]
            assert len(happened) == len(set(happened))
            assert set(answered) <= set(happened)
            assert set(range(1, 60, 2)) <= set(answered)

    async def test_a_canceled_scope_closes_the_store(self, tmp_path: Path) -> None:
        with anyio.fail_after(60):
            with anyio.CancelScope() as scope:
                async with self.open_store(tmp_path) as store:
                    await put(store, a_session())
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            with pytest.raises(Unavailable):
                await store.transact(lambda tx: tx.notify("x"))
            with pytest.raises(Unavailable):
                await store.read(lambda view: view.feed_head())

    async def test_an_error_inside_the_scope_is_raised_unchanged(self, tmp_path: Path) -> None:
        with anyio.fail_after(60), pytest.raises(LookupError, match="mine"):
            async with self.open_store(tmp_path):
                raise LookupError("mine")

    async def test_an_error_is_not_lost_in_a_cancellation(self, tmp_path: Path) -> None:
        async def body(scope: anyio.CancelScope) -> None:
            async with self.open_store(tmp_path):
                scope.cancel()
                raise LookupError("mine")

        with (
            anyio.fail_after(60),
            anyio.CancelScope() as scope,
            pytest.raises(LookupError, match="mine"),
        ):
            await body(scope)

    # --- notifications

    async def test_listeners_are_called_after_the_commit_and_before_the_answer(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id)
            await put(store, session)
            thread = threading.get_ident()
            notified: list[frozenset[str]] = []

            def listener(topics: frozenset[str]) -> None:
                assert threading.get_ident() == thread
                notified.append(topics)

            with store.listen(listener), store.listen(listener):

                async def read_when_notified() -> None:
                    while not notified:
                        await anyio.lowlevel.checkpoint()
                    assert await store.read(lambda view: view.run(run.id)) is not None

                def change(tx: Transaction) -> None:
                    tx.add_run(run)
                    tx.append(session.id, drafts("a"), NOW)
                    tx.append(session.id, drafts("b"), NOW)
                    tx.notify("mine")
                    tx.notify("mine")
                    tx.notify("taken back")
                    tx.notify("taken back")
                    assert tx.suppress("taken back") == 2
                    assert not tx.suppress("taken back")
                    assert tx.suppress(f"run:{run.id}") == 1
                    tx.put_run(run)
                    assert not notified

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read_when_notified)
                    await store.transact(change)
                    topics = frozenset({f"run:{run.id}", f"session:{session.id}", "events", "mine"})
                    assert notified == [topics, topics]
                notified.clear()
                await store.transact(lambda tx: tx.put_run(run))
                assert notified == [frozenset({f"run:{run.id}"})] * 2
                notified.clear()
                await store.transact(lambda tx: tx.add_record(a_record(), max_count=9, max_size=99))
                await store.read(lambda view: view.run(run.id))
                assert notified == []
            await store.transact(lambda tx: tx.notify("late"))
            assert notified == []

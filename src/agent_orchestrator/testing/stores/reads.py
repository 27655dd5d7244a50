"""Lists, logs and feeds are consistent, ordered and paged."""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import product
from operator import methodcaller
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.errors import (
    CursorAhead,
    InvalidRequest,
)
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import RunError, RunResult
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_message,
    a_request,
    a_run,
    a_session,
    drafts,
    put,
)
from agent_orchestrator.wire.codec import deadline_key


class Reads(Opening):
    async def test_a_view_is_consistent_and_errors_propagate(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            stop = False

            async def write() -> None:
                while not stop:
                    await store.transact(lambda tx: tx.append(session.id, drafts("a", "b"), NOW))

            def query(view: View) -> tuple[int, int, int, list[StreamItem]]:
                stored = view.session(session.id)
                assert stored is not None
                events = view.events(session.id, after=0, limit=1_000_000)
                beyond = view.feed(after=view.feed_head(), limit=1)
                return stored.last_seq, len(events), view.event_count(), beyond

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                for _ in range(20):
                    last_seq, seen, count, beyond = await store.read(query)
                    assert last_seq == seen == count
                    assert last_seq % 2 == 0
                    assert not beyond
                stop = True

            def fail(_: View) -> None:
                raise LookupError("in the query")

            for _ in range(20):
                with pytest.raises(LookupError, match="in the query"):
                    await store.read(fail)
            assert await store.read(lambda view: view.session(session.id)) is not None

    async def test_the_newest_runs_are_read_with_cut_results(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            child = a_session(owner="bob", parent_session_id=session.id)
            runs = [
                a_run(session.id, status=RunStatus.COMPLETED, result=RunResult("é" * length))
                for length in (50, 500, 50, 7)
            ]
            failed = a_run(session.id, status=RunStatus.FAILED, error=RunError("denied", "é" * 50))
            await put(store, session, other, child)
            for run in (*runs, failed):
                await store.transact(lambda tx, run=run: tx.add_run(run))  # type: ignore[misc]

            for limit, size, count in ((10, 10_000, 5), (2, 10_000, 2), (10, 200, 3), (10, 1, 1)):
                latest = await store.read(
                    lambda view, limit=limit, size=size: view.latest_runs(  # type: ignore[misc]
                        session.id, limit=limit, cut=10, size=size
                    )
                )
                kept = [*runs, failed][-count:]
                assert [run.id for run in latest[0]] == [run.id for run in kept]
                texts = [
                    run.result.text if run.result else run.error.message if run.error else ""
                    for run in kept
                ]
                assert latest[1] == sum(len(text.encode()) for text in texts)
                shown = [
                    run.result.text if run.result else run.error.message if run.error else ""
                    for run in latest[0]
                ]
                assert shown == [text[:10] for text in texts]
            counts = await store.read(
                lambda view: (
                    view.run_count(session.id),
                    view.run_count(other.id),
                    view.child_count(session.id),
                    view.child_count(session.id, Visibility(principal="ann")),
                    view.child_count(session.id, Visibility(principal="bob")),
                    view.child_count(other.id),
                )
            )
            assert counts == (5, 0, 1, 0, 1, 0)

    async def test_lists_come_in_pages_in_either_order(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            parent = a_session()
            sessions = [parent] + [
                a_session(
                    owner=("ann", "bob")[number % 2],
                    status=("open", "closed")[number // 4],
                    parent_session_id=parent.id if number % 3 == 0 else None,
                )
                for number in range(8)
            ]
            runs = [a_run(session.id) for session in sessions[1:] for _ in range(2)]
            runs[0] = evolve(runs[0], status=RunStatus.COMPLETED)
            runs[5] = evolve(runs[5], status=RunStatus.COMPLETED)
            messages = [a_message(sessions[1].id, run_id=runs[n // 3].id) for n in range(6)]
            elsewhere = a_message(sessions[2].id)
            await put(store, *reversed(sessions), *reversed(runs), *reversed(messages), elsewhere)
            owners = {session.id: session.owner for session in sessions}

            async def all_pages(listing: str, *args: Any, **only: Any) -> list[Any]:
                rows: list[Any] = []
                after = None
                while batch := await store.read(
                    methodcaller(listing, *args, **only, after=after, limit=2)
                ):
                    assert len(batch) <= 2
                    rows += batch
                    after = batch[-1].id
                return rows

            for owner, status, above, order in product(
                (None, "ann", "nobody"), (None, "closed"), (None, parent.id), ("oldest", "newest")
            ):
                rows = await all_pages(
                    "sessions",
                    within=Visibility(owner),
                    status=status,
                    parent_session_id=above,
                    order=order,
                )
                assert rows == [
                    s
                    for s in (sessions if order == "oldest" else reversed(sessions))
                    if owner in (None, s.owner)
                    and status in (None, s.status)
                    and above in (None, s.parent_session_id)
                ]
            for owner, state, session_id, order in product(
                (None, "bob"),
                (None, RunStatus.COMPLETED),
                (None, sessions[1].id, "ses_none"),
                ("oldest", "newest"),
            ):
                rows = await all_pages(
                    "runs",
                    within=Visibility(owner),
                    status=state,
                    session_id=session_id,
                    order=order,
                )
                assert rows == [
                    r
                    for r in (runs if order == "oldest" else reversed(runs))
                    if owner in (None, owners[r.session_id])
                    and state in (None, r.status)
                    and session_id in (None, r.session_id)
                ]
            rows = await all_pages("messages", sessions[1].id)
            assert rows == messages
            assert await store.read(lambda view: view.run_messages(runs[1].id)) == messages[3:]

    async def test_requests_come_in_order_of_time_and_of_deadline(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            root, other = a_session(owner="ann"), a_session(owner="bob")
            child = a_session(owner="ann", parent_session_id=root.id, root_session_id=root.id)
            shared = a_session(owner="bob")
            runs = {one.id: a_run(one.id) for one in (root, other, child, shared)}
            await put(store, root, other, child, shared, *runs.values())
            await store.transact(methodcaller("put_grants", shared.id, [Grant("ann", "reader")]))
            # Several expire at the same time, and later ones expire first.
            requests = [
                a_request(
                    runs[session.id],
                    root_session_id=session.root_session_id,
                    status="approved" if number % 5 == 4 else "pending",
                    expires_at=NOW + timedelta(seconds=100 - number // 3),
                )
                for number, session in enumerate([root, other, child, shared] * 5)
            ]
            for request in requests:
                await store.transact(methodcaller("add_request", request))
            counts = await store.read(
                lambda view: [view.open_request_count(one.id) for one in (root, other, child)]
            )
            assert counts == [4, 4, 4]
            # The deadline moves with an extension.
            requests[0] = evolve(requests[0], expires_at=NOW + timedelta(hours=1))
            await store.transact(methodcaller("put_request", requests[0]))
            visible = {
                Visibility(): {root.id, other.id, child.id, shared.id},
                Visibility("ann"): {root.id, child.id, shared.id},
                Visibility("bob"): {other.id, shared.id},
                Visibility(tree=root.id): {root.id, child.id},
                Visibility("ann", root.id): {root.id, child.id},
                Visibility("nobody"): set(),
            }
            narrowers: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
                ({}, lambda _: True),
                ({"session_id": child.id}, lambda one: one.session_id == child.id),
                ({"root_session_id": root.id}, lambda one: one.root_session_id == root.id),
                ({"run_id": runs[shared.id].id}, lambda one: one.session_id == shared.id),
            ]
            for (within, ids), (narrower, is_meant), order in product(
                visible.items(), narrowers, ("oldest", "newest", "deadline")
            ):
                expected = [one for one in requests if one.session_id in ids and is_meant(one)]
                if order == "newest":
                    expected.reverse()
                if order == "deadline":
                    expected = sorted(filter(lambda one: one.is_open, expected), key=deadline_key)
                found: list[Any] = []
                after = None
                while batch := await store.read(
                    methodcaller(
                        "requests", within=within, order=order, after=after, limit=3, **narrower
                    )
                ):
                    found += batch
                    after = deadline_key(batch[-1]) if order == "deadline" else batch[-1].id
                assert found == expected, (within, narrower, order)

    async def test_lists_end_at_their_size_limit(self, tmp_path: Path) -> None:
        long = "x" * 1_000
        async with self.opened(tmp_path) as store:
            session = a_session()
            runs = [
                evolve(a_run(session.id), status=RunStatus.COMPLETED, result=RunResult(long))
                for _ in range(5)
            ]
            messages = [evolve(a_message(session.id), text=long) for _ in range(5)]
            requests = [evolve(a_request(runs[0]), text=long) for _ in range(5)]
            await put(store, session, *runs, *messages)

            def write(tx: Transaction) -> None:
                for request in requests:
                    tx.add_request(request)
                entries = [Draft("agent.message", {"text": long}) for _ in range(5)]
                tx.append(session.id, entries, NOW)

            await store.transact(write)
            # The principal owns half of them and has grants on the others, to test both queries.
            large = [
                a_session(owner=owner, metadata={"text": long})
                for owner in ("ann", "bob", "ann", "bob", "ann")
            ]
            await put(store, *large)
            for shared in large[1::2]:
                await store.transact(
                    methodcaller("put_grants", shared.id, [Grant("ann", "reader")])
                )
            last = (await store.read(lambda view: view.session(session.id))).last_seq  # type: ignore[union-attr]
            first = last - 5
            cursor = await store.read(
                lambda view: view.feed(after=None, limit=first)[-1].cursor if first else None
            )
            queries: dict[str, Callable[[View, int | None], list[Any]]] = {
                "sessions": lambda view, size: view.sessions(
                    within=Visibility(principal="ann"), limit=5, size=size
                ),
                "runs": lambda view, size: view.runs(limit=5, size=size),
                "messages": lambda view, size: view.messages(session.id, limit=5, size=size),
                "requests": lambda view, size: view.requests(limit=5, size=size),
                "events": lambda view, size: view.events(
                    session.id, after=first, limit=5, size=size
                ),
                "feed": lambda view, size: view.feed(after=cursor, limit=5, size=size),
                "feed of one": lambda view, size: view.feed(
                    after=cursor, sessions=[session.id], limit=5, size=size
                ),
            }

            async def found_by(name: str, size: int | None) -> list[Any]:
                return await store.read(lambda view: queries[name](view, size))

            for name in queries:
                every = await found_by(name, None)
                assert len(every) == 5, name
                # Fields other than the text count too, but they are shorter.
                for size, most in ((1, 1), (1_000, 1), (2_400, 2), (10**9, 5)):
                    rows = await found_by(name, size)
                    assert rows == every[: len(rows)]
                    assert max(1, most - 1) <= len(rows) <= most + 1, (name, size)

    async def test_events_are_listed_after_a_seq(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            await store.transact(lambda tx: tx.append(session.id, drafts(*"abcdef"), NOW))
            for after, limit, expected in ((0, 2, [1, 2]), (2, 9, [3, 4, 5, 6]), (6, 9, [])):
                events = await store.read(
                    methodcaller("events", session.id, after=after, limit=limit)
                )
                assert [event.seq for event in events] == expected
            assert await store.read(lambda v: v.events(session.id, after=2**62, limit=9)) == []
            assert await store.read(lambda v: v.events("ses_none", after=0, limit=9)) == []

    async def test_the_last_event_and_output_of_a_run_are_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            one, two, three = (a_run(session.id, attempt=2) for _ in range(3))
            await put(store, session, one, two, three)

            def at(seconds: int) -> datetime:
                return NOW + timedelta(seconds=seconds)

            def change(tx: Transaction) -> None:
                tx.append(session.id, drafts("a", run_id=one.id), at(5))
                tx.append(session.id, [Draft("run.error", {}, one.id, 2)], at(2))
                tx.append(session.id, [Draft("message.created", {}, one.id)], at(1))
                said = [Draft("tool.output", {}, two.id, 1), Draft("run.queued", {}, two.id, 2)]
                tx.append(session.id, said, at(9))
                tx.append(session.id, drafts("a"), at(10))

            def undone(tx: Transaction) -> None:
                tx.append(session.id, drafts("a", run_id=three.id), at(11))
                raise LookupError

            def query(view: View) -> list[datetime | None]:
                return [
                    view.last_event_at(one),
                    view.last_output_at(one),
                    view.last_output_at(one, attempt=1),
                    view.last_output_at(one, attempt=2),
                    view.last_event_at(two),
                    view.last_output_at(two),
                    view.last_event_at(three),
                    view.last_output_at(three),
                ]

            await store.transact(change)
            with pytest.raises(LookupError):
                await store.transact(undone)
            expected = [at(1), at(5), at(5), None, at(9), at(9), None, None]
            assert await store.read(query) == expected

    async def test_the_feed_has_every_event_once_in_commit_order(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            ann, bob, cid = a_session(owner="ann"), a_session(owner="bob"), a_session(owner="ann")
            await put(store, ann, bob, cid)
            assert await store.read(lambda v: v.feed(after=None, limit=9)) == []
            empty_head = await store.read(lambda view: view.feed_head())
            assert await store.read(lambda v: v.feed(after=empty_head, limit=9)) == []
            for number in range(12):
                session = (ann, bob, cid, ann)[number % 4]
                await store.transact(
                    methodcaller("append", session.id, drafts(str(number), f"{number}+"), NOW)
                )
            assert await store.read(lambda view: view.event_count()) == 24
            whole = await store.read(lambda view: view.feed(after=None, limit=99))
            texts = [item.event.data["text"] for item in whole]
            assert texts == [f"{n}{plus}" for n in range(12) for plus in ("", "+")]
            head = await store.read(lambda view: view.feed_head())
            assert whole[-1].cursor == head

            async def drain(**only: Any) -> list[StreamItem]:
                items: list[StreamItem] = []
                cursor = None
                while batch := await store.read(
                    methodcaller("feed", after=cursor, limit=5, **only)
                ):
                    items += batch
                    cursor = batch[-1].cursor
                return items

            assert await drain() == whole
            cases: tuple[dict[str, Any], ...] = (
                {"within": Visibility("ann")},
                {"within": Visibility("nobody")},
                {"sessions": (bob.id,)},
                {"sessions": [bob.id, cid.id]},
                {"sessions": (ann.id, bob.id), "within": Visibility("ann")},
                {"sessions": ("ses_none",)},
            )
            for only in cases:
                wanted = only.get("sessions", (ann.id, bob.id, cid.id))
                owned = {Visibility("ann"): {ann.id, cid.id}, Visibility("nobody"): set()}.get(
                    only.get("within", Visibility()), {ann.id, bob.id, cid.id}
                )
                assert await drain(**only) == [
                    item
                    for item in whole
                    if item.event.session_id in wanted and item.event.session_id in owned
                ]
                assert await store.read(methodcaller("feed", after=head, limit=9, **only)) == []
            await store.transact(lambda tx: tx.append(bob.id, drafts("new"), NOW))
            [item] = await store.read(lambda v: v.feed(after=head, sessions=[bob.id], limit=9))
            assert item.event.data == {"text": "new"}

    async def test_invalid_cursors_are_refused(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            for bad in ("", "x", "-1", "1.0", " 1", "1\n", "²", "9" * 30, "\0"):
                with pytest.raises(InvalidRequest) as raised:
                    await store.read(methodcaller("feed", after=bad, limit=1))
                assert list(raised.value.details["fields"]) == ["cursor"]

    async def test_a_cursor_of_a_longer_log_is_ahead(self, tmp_path: Path) -> None:
        """A log restored from a backup lacks events that the reader has seen."""
        (tmp_path / "long").mkdir()
        (tmp_path / "short").mkdir()
        async with (
            self.opened(tmp_path / "long") as long,
            self.opened(tmp_path / "short") as short,
        ):
            session = a_session()
            for store in (long, short):
                await put(store, session)
                await store.transact(lambda tx: tx.append(session.id, drafts("a"), NOW))
            await long.transact(lambda tx: tx.append(session.id, drafts("b"), NOW))
            ahead = await long.read(lambda view: view.feed_head())
            for only in ({}, {"within": Visibility("local")}, {"sessions": [session.id]}):
                with pytest.raises(CursorAhead):
                    await short.read(methodcaller("feed", after=ahead, limit=9, **only))

    async def test_a_cursor_of_another_stores_epoch_is_ahead_however_long_the_log(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "other").mkdir()
        async with self.opened(tmp_path / "a") as here, self.opened(tmp_path / "other") as other:
            session = a_session()
            for store in (here, other):
                await put(store, session)
                await store.transact(lambda tx: tx.append(session.id, drafts("a", "b"), NOW))
            epochs = [await store.read(lambda view: view.epoch()) for store in (here, other)]
            assert epochs[0] == await here.read(lambda view: view.epoch())
            assert epochs[0] != epochs[1]
            for epoch, common in zip(epochs, (2, 0), strict=True):
                if epoch is not None:
                    seq = await here.read(methodcaller("last_common_seq", session.id, epoch))
                    assert seq == common
            assert await here.read(methodcaller("last_common_seq", session.id, "unheard of")) == 0
            [first, _] = await other.read(lambda view: view.feed(after=None, limit=9))
            with pytest.raises(CursorAhead) as raised:
                await here.read(methodcaller("feed", after=first.cursor, limit=9))
            again = raised.value.details["resume_cursor"]
            assert len(await here.read(methodcaller("feed", after=again, limit=9))) == 2

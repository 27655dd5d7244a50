"""Deletions of events."""

from datetime import datetime, timedelta
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.errors import Gone, NotFound
from agent_orchestrator.domain.model import PrunedLog, Session
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.ports.changes import Draft, PastEvent, Transaction
from agent_orchestrator.ports.queries import Growth
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put
from agent_orchestrator.testing.stores.searches import find

MINUTE = timedelta(minutes=1)


async def delete(store: Store, session: Session, **what: Any) -> int:
    count: int = await store.transact(methodcaller("delete_events", session.id, **what))
    return count


async def seqs_of(store: Store, session: Session, after: int = 0, limit: int = 99) -> list[int]:
    events = await store.read(lambda view: view.events(session.id, after=after, limit=limit))
    return [event.seq for event in events]


async def feed(store: Store, **which: Any) -> list[StreamItem]:
    """Return a feed, read in small parts."""
    items: list[StreamItem] = []
    after = which.pop("after", None)
    while part := await store.read(methodcaller("feed", after=after, limit=3, **which)):
        items += part
        after = part[-1].cursor
    return items


def texts_of(items: list[StreamItem]) -> list[str]:
    return [item.event.data["text"] for item in items]


class Pruning(Opening):
    async def test_the_first_events_are_deleted(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            await put(store, session, other)
            for number in range(6):
                for one in (session, other):
                    await store.transact(
                        methodcaller("append", one.id, drafts(f"word{number}"), NOW)
                    )
            assert await store.read(lambda view: view.pruned_log(session.id)) == PrunedLog()
            assert await delete(store, session, through=4, digest="ab") == 4
            assert await seqs_of(store, session) == [5, 6]
            assert await seqs_of(store, session, limit=1) == [5]
            assert await seqs_of(store, session, after=5) == [6]
            assert await seqs_of(store, other) == [1, 2, 3, 4, 5, 6]
            pruned = await store.read(lambda view: view.pruned_log(session.id))
            assert pruned == PrunedLog(4, 4, "ab")
            for stored in (
                await store.read(lambda view: view.session(session.id)),
                (await store.read(lambda view: view.sessions(limit=9)))[0],
            ):
                assert stored is not None
                assert (stored.oldest_cursor, stored.last_seq) == (4, 6)
            assert await find(store, "word3") == ["word3"]  # of the other session
            assert await find(store, "word4") == ["word4", "word4"]
            # What is gone already, and nothing.
            assert await delete(store, session, through=3, digest="zz") == 0
            assert await delete(store, session) == 0
            assert await store.read(lambda view: view.pruned_log(session.id)) == pruned
            await store.transact(methodcaller("mark_pruned_audited", session.id))
            assert await store.read(lambda view: view.pruned_log(session.id)) == evolve(
                pruned, audited_count=4
            )
            assert await delete(store, session, through=5, digest="cd") == 1
            assert await store.read(lambda view: view.pruned_log(session.id)) == PrunedLog(
                5, 5, "cd", 4
            )
            with pytest.raises(NotFound):
                await delete(store, a_session(), through=1)

    async def test_the_newest_event_stays_and_numbers_go_on(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, empty = a_session(), a_session()
            await put(store, session, empty)
            await store.transact(lambda tx: tx.append(session.id, drafts("a", "b", "c"), NOW))
            assert await delete(store, session, through=2**62) == 2
            for seqs in ((3, 4, 2**62), (-1, 0)):
                assert await delete(store, session, seqs=seqs) == 0
            assert await delete(store, session, through=-5) == 0
            assert await delete(store, empty, through=9) == 0
            assert await delete(store, empty, seqs=(1,)) == 0
            assert await seqs_of(store, session) == [3]
            assert await store.read(lambda view: view.event_count()) == 3
            assert await store.transact(lambda tx: tx.append(session.id, drafts("d"), NOW)) == 4
            assert await store.read(lambda view: view.event_count()) == 4
            assert texts_of(await feed(store)) == ["c", "d"]
            changed = await store.read(lambda view: view.session(session.id))
            assert changed is not None
            await store.transact(lambda tx: tx.put_session(evolve(changed, title="new")))
            assert await store.read(lambda view: view.session(session.id)) == evolve(
                changed, title="new"
            )

    async def test_pieces_leave_gaps(self, tmp_path: Path) -> None:
        """A reader passes them; its cursor stays valid."""
        async with self.opened(tmp_path) as store:
            session, other = a_session(owner="ann"), a_session()
            await put(store, session, other)
            texts = [str(number) for number in range(1, 9)]
            await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))
            before = await feed(store)
            for _ in range(200):  # too many for a scan of the log
                await store.transact(lambda tx: tx.append(other.id, drafts("-"), NOW))
            await store.transact(lambda tx: tx.append(session.id, drafts("9", "10"), NOW))
            assert await delete(store, session, seqs=(2, 3, 5, 9)) == 4
            assert await delete(store, session, seqs=(2, 3)) == 0
            left = [1, 4, 6, 7, 8, 10]
            assert await seqs_of(store, session) == left
            assert await seqs_of(store, session, after=1, limit=2) == [4, 6]
            stored = await store.read(lambda view: view.session(session.id))
            assert stored is not None
            assert stored.oldest_cursor == 0
            for which in ({"sessions": (session.id,)}, {"within": Visibility("ann")}):
                assert texts_of(await feed(store, **which)) == [str(seq) for seq in left]
                for item in before:
                    later = await feed(store, after=item.cursor, **which)
                    assert texts_of(later) == [str(n) for n in left if n > item.event.seq]
            pruned = await store.read(lambda view: view.pruned_log(session.id))
            assert pruned == PrunedLog(0, 4)
            assert await delete(store, session, seqs=(4, 6)) == 2
            assert await delete(store, session, through=4, digest="x") == 1
            pruned = await store.read(lambda view: view.pruned_log(session.id))
            assert pruned == PrunedLog(4, 7, "x")

    async def test_one_call_deletes_the_first_events_or_single_ones(self, tmp_path: Path) -> None:
        """With both, the search could keep the words of an event that is deleted, or lack those of one that stays."""
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            await store.transact(lambda tx: tx.append(session.id, drafts("a", "b", "c"), NOW))
            with pytest.raises(ValueError, match="two calls"):
                await delete(store, session, through=1, seqs=(2,), digest="x")
            assert await seqs_of(store, session) == [1, 2, 3]
            assert await find(store, "b") == ["b"]

    async def test_a_feed_is_gone_once_events_after_its_cursor_are_deleted(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            ann, bob, cid = (a_session(owner=name) for name in ("ann", "bob", "cid"))
            await put(store, ann, bob, cid)
            await store.transact(lambda tx: tx.put_grants(cid.id, [Grant("dan", "reader")]))
            for number in range(1, 5):
                for session in (ann, bob, cid):
                    text = f"{session.owner}{number}"
                    await store.transact(methodcaller("append", session.id, drafts(text), NOW))
            all_items = await feed(store)
            oldest = ""
            first, middle, head = (all_items[place].cursor for place in (0, 7, 11))
            assert await delete(store, cid, through=2, digest="x") == 2  # positions 3 and 6

            for which in (
                {},
                {"sessions": (ann.id, cid.id)},
                {"within": Visibility("cid")},
                {"within": Visibility("dan")},
                {"within": Visibility(tree=cid.id)},
            ):
                with pytest.raises(Gone) as raised:
                    await store.read(methodcaller("feed", after=first, limit=9, **which))
                assert raised.value.details["cursor"] == first
                # Nothing that is left is lost, and the same deletion is told of once.
                oldest = raised.value.details["oldest"]
                left = texts_of(await feed(store, after=oldest, **which))
                assert left == [t for t in texts_of(await feed(store, **which)) if t != "ann1"], (
                    which
                )
            # Those who see nothing of it, or were past it, go on. So does who has begun since.
            kept = [item.event.data["text"] for item in all_items]
            for which, owners in (
                ({"sessions": (ann.id, bob.id)}, ("ann", "bob")),
                ({"within": Visibility("bob")}, ("bob",)),
                ({"within": Visibility("nobody")}, ()),
            ):
                later = await feed(store, after=first, **which)
                assert texts_of(later) == [t for t in kept[1:] if t.startswith(owners)]
            assert texts_of(await feed(store, after=middle)) == kept[8:]
            assert texts_of(await feed(store)) == [t for t in kept if t not in ("cid1", "cid2")]
            assert await feed(store, after=head) == []
            # A later deletion is news again, also to who begins with the new cursor.
            assert await delete(store, cid, through=3, digest="y") == 1
            with pytest.raises(Gone):
                await store.read(methodcaller("feed", after=oldest, limit=9))
            types = ("agent.message",)
            noticed = await store.read(lambda view: view.feed_of_types(types, after=first, limit=9))
            assert len(noticed) == 8

    async def test_a_deletion_is_undone_with_its_change(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            await store.transact(lambda tx: tx.append(session.id, drafts("a", "b", "c"), NOW))

            def fail(tx: Transaction) -> None:
                tx.delete_events(session.id, through=1, digest="x")
                tx.delete_events(session.id, seqs=(2,))
                assert [event.seq for event in tx.events(session.id, after=0, limit=9)] == [3]
                changed = tx.session(session.id)
                assert changed is not None
                assert changed.oldest_cursor == 1
                raise LookupError("in the change")

            with pytest.raises(LookupError):
                await store.transact(fail)
            assert await seqs_of(store, session) == [1, 2, 3]
            assert await store.read(lambda view: view.pruned_log(session.id)) == PrunedLog()
            assert (await feed(store))[-1].cursor == await store.read(lambda v: v.feed_head())

    async def test_a_job_is_claimed_when_it_is_due(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:

            async def claim(minute: int, until: int) -> bool:
                times = {"now": NOW + minute * MINUTE, "until": NOW + until * MINUTE}
                is_claimed: bool = await store.transact(methodcaller("claim_job", "x", **times))
                return is_claimed

            async def due() -> datetime | None:
                return await store.read(lambda view: view.job_due("x"))

            assert await due() is None
            assert await claim(0, 10)
            assert not await claim(9, 99)
            assert await due() == NOW + 10 * MINUTE
            assert await claim(10, 20)
            assert await due() == NOW + 20 * MINUTE
            assert await store.read(lambda view: view.job_due("y")) is None

    async def test_limits_of_sessions_and_the_weight_of_events(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            plain, kept = a_session(), a_session(retain_days=0)
            limited = [a_session(retain_bytes=9), a_session(retain_events=1, retain_days=0)]
            await put(store, plain, kept, *limited)
            found = await store.read(lambda view: view.limited_sessions(limit=9))
            assert found == limited
            after = limited[0].id
            found = await store.read(lambda view: view.limited_sessions(after=after, limit=9))
            assert found == limited[1:]
            since = NOW - MINUTE
            empty = await store.read(lambda view: view.newest_events(since=since, limit=9))
            assert empty == Growth(0, 0, since)
            for age in (5, 0, 0):
                await store.transact(
                    methodcaller("append", plain.id, drafts("é", "b"), NOW - age * MINUTE)
                )
            size = len(b'{"text":"\xc3\xa9"}{"text":"b"}')
            assert await store.read(lambda view: view.log_size(plain.id)) == 3 * size
            assert await store.read(lambda view: view.log_size(kept.id)) == 0
            for limit, expected in (
                (9, Growth(4, 2 * size, since)),
                (2, Growth(2, size, NOW)),
            ):
                query = methodcaller("newest_events", since=since, limit=limit)
                assert await store.read(query) == expected
            assert await delete(store, plain, through=5, digest="ab") == 5
            assert await store.read(lambda view: view.log_size(plain.id)) == len('{"text":"b"}')
            assert await store.read(lambda view: view.unaudited_logs(limit=9)) == [plain.id]
            await store.transact(methodcaller("mark_pruned_audited", plain.id))
            assert await store.read(lambda view: view.unaudited_logs(limit=9)) == []

    async def test_long_and_empty_data_is_deleted(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            await put(store, session)
            data = {"text": "long " * 100_000}
            for one in (data, {}, data):
                await store.transact(
                    methodcaller("append", session.id, [Draft("agent.message", one)], NOW)
                )
            assert len(await find(store, "long")) == 2
            assert await delete(store, session, through=2, digest="x") == 2
            assert len(await find(store, "long")) == 1
            [event] = await store.read(lambda view: view.events(session.id, after=0, limit=9))
            assert dict(event.data) == data

    async def test_past_events_keep_their_numbers_and_times(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            await put(store, session, other)
            await store.transact(methodcaller("append", other.id, drafts("word"), NOW))
            head = await store.read(lambda view: view.feed_head())
            count = await store.read(lambda view: view.event_count())
            said = drafts("past1", "past2", "past3")
            past = [
                PastEvent(seq, one, NOW - MINUTE * (9 - seq))
                for seq, one in zip((4, 6, 7), said, strict=True)
            ]

            def change(tx: Transaction) -> None:
                tx.add_past(session.id, past[:2], oldest_cursor=3, digest="ab")
                tx.add_past(session.id, past[2:], oldest_cursor=3, digest="ab")

            await store.transact(change)
            events = await store.read(lambda view: view.events(session.id, after=3, limit=9))
            assert [(event.seq, event.created_at) for event in events] == [
                (one.seq, one.at) for one in past
            ]
            pruned = await store.read(lambda view: view.pruned_log(session.id))
            assert pruned == PrunedLog(3, 4, "ab", 4)
            assert await store.read(lambda view: view.unaudited_logs(limit=9)) == []
            stored = await store.read(lambda view: view.session(session.id))
            assert stored is not None
            assert (stored.oldest_cursor, stored.last_seq) == (3, 7)
            # A reader of all sessions is told of no loss, and finds them in order.
            assert texts_of(await feed(store, after=head)) == ["past1", "past2", "past3"]
            assert await store.read(lambda view: view.event_count()) == count + 7
            assert await find(store, "past2") == ["past2"]
            assert await store.transact(methodcaller("append", session.id, drafts("new"), NOW)) == 8
            assert await delete(store, session, through=4, digest="cd") == 1
            assert await seqs_of(store, session) == [6, 7, 8]
            assert (await store.read(lambda view: view.pruned_log(session.id))).count == 5
            with pytest.raises(NotFound):
                await store.transact(methodcaller("add_past", "ses_none", past))

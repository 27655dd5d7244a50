"""The outbox of notices."""

from datetime import timedelta
from operator import methodcaller
from pathlib import Path

import pytest
from attrs import evolve

from agent_orchestrator.domain.errors import Conflict, CursorAhead, NotFound
from agent_orchestrator.domain.notices import Notice
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.store import Store
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import NOW, a_notice, a_session, a_subscription, put

HOUR = timedelta(hours=1)


async def _add(store: Store, *notices: Notice) -> None:
    def change(tx: Transaction) -> None:
        for notice in notices:
            tx.add_notice(notice)

    await store.transact(change)


class Notices(Opening):
    async def test_notices_are_stored_whole_and_listed_in_order(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            plain = a_notice("req_1")
            full = a_notice(
                "req_1",
                target="psh_1",
                principal="ann",
                state="sent",
                deadline=NOW + HOUR,
                next_at=None,
                attempts=3,
                is_fallback=True,
                sent_at=NOW,
                shown_at=NOW + HOUR,
                clicked_at=NOW + HOUR,
                error="too slow",
            )
            other = a_notice("run_1", kind="failed", request_id=None, principal="bob")
            await _add(store, plain, full, other)
            assert await store.read(methodcaller("notice", full.id)) == full
            assert await store.read(methodcaller("notice", "ntc_0")) is None
            found = await store.read(methodcaller("notices_about", "req_1"))
            assert found == [plain, full]
            for filters, expected in (
                ({}, [plain, full, other]),
                ({"principal": "ann"}, [full]),
                ({"state": "queued"}, [plain, other]),
                ({"principal": "bob", "state": "queued"}, [other]),
                ({"principal": "bob", "state": "sent"}, []),
                ({"after": plain.id}, [full, other]),
                ({"order": "newest"}, [other, full, plain]),
                ({"order": "newest", "after": other.id, "state": "queued"}, [plain]),
            ):
                listed = methodcaller("notices", limit=9, **filters)
                assert await store.read(listed) == expected, filters
            assert await store.read(methodcaller("notices", limit=1)) == [plain]

            changed = evolve(plain, state="failed", next_at=None, error="no answer")
            await store.transact(lambda tx: tx.put_notice(changed))
            assert await store.read(methodcaller("notice", plain.id)) == changed

    async def test_target_has_one_notice_of_a_subject(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            await _add(store, a_notice("req_1"), a_notice("req_1", target="phone"))
            with pytest.raises(Conflict):
                await _add(store, a_notice("req_1"))
            with pytest.raises(NotFound):
                await store.transact(lambda tx: tx.put_notice(a_notice("req_2")))
            assert len(await store.read(methodcaller("notices", limit=9))) == 2

    async def test_next_notice_is_the_due_one_with_the_earliest_deadline(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            endless = a_notice("run_1")
            late = a_notice("req_1", deadline=NOW + 3 * HOUR)
            soon = a_notice("req_2", target="phone", deadline=NOW + 2 * HOUR)
            future = a_notice("req_3", deadline=NOW + HOUR, next_at=NOW + HOUR)
            done = a_notice("req_4", state="sent", deadline=NOW + HOUR, next_at=None)
            await _add(store, endless, late, soon, future, done)
            for now, excluding, expected in (
                (NOW - HOUR, (), None),
                (NOW, (), soon),
                (NOW, ("phone",), late),
                (NOW, ("phone", "desk"), None),
                (NOW + HOUR, (), future),
            ):
                found = await store.read(methodcaller("next_notice", now, excluding=excluding))
                assert found == expected
            for excluding, next_at in (((), NOW), (("desk", "phone"), None)):
                query = methodcaller("next_notice_at", excluding=excluding)
                assert await store.read(query) == next_at
            await store.transact(lambda tx: tx.put_notice(evolve(soon, next_at=None)))
            await store.transact(lambda tx: tx.put_notice(evolve(late, next_at=None)))
            assert (await store.read(methodcaller("next_notice", NOW, excluding=()))) == endless
            await store.transact(lambda tx: tx.put_notice(evolve(endless, next_at=None)))
            query = methodcaller("next_notice_at", excluding=())
            assert await store.read(query) == NOW + HOUR

    async def test_old_notices_are_deleted_unless_something_is_left_to_do(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            old = [a_notice(f"req_{n}", next_at=None, state="sent") for n in range(3)]
            waiting = a_notice("req_8")
            new = a_notice("req_9", next_at=None, updated_at=NOW + HOUR)
            await _add(store, *old, waiting, new)
            delete = methodcaller("delete_notices", before=NOW + HOUR, limit=2)
            assert [await store.transact(delete) for _ in range(3)] == [2, 1, 0]
            assert await store.read(methodcaller("notices", limit=9)) == [waiting, new]

    async def test_cursor_of_the_outbox_is_kept(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            cursor = methodcaller("notice_cursor")
            assert await store.read(cursor) is None
            for value in ("7.epc_1", "8.epc_1", None, "9.epc_2"):
                await store.transact(methodcaller("set_notice_cursor", value))
                assert await store.read(cursor) == value

            def undone(tx: Transaction) -> None:
                tx.set_notice_cursor("10")
                tx.add_notice(a_notice("req_1"))
                raise Conflict("undone")

            with pytest.raises(Conflict):
                await store.transact(undone)
            assert await store.read(cursor) == "9.epc_2"
            assert await store.read(methodcaller("notices", limit=9)) == []

    async def test_one_of_several_engines_claims_a_notice(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            notice = a_notice("req_1")
            done = a_notice("req_2", state="sent", next_at=None)
            await _add(store, notice, done)
            until = NOW + HOUR
            heard: list[frozenset[str]] = []
            with store.listen(heard.append):
                claims = [
                    await store.transact(methodcaller("claim_notice", one, engine, until))
                    for one in (notice, done)
                    for engine in ("dmn_1", "dmn_2")
                ]
            assert claims == [True, False, False, False]
            assert not any(heard)
            claimed = evolve(notice, claimed_by="dmn_1", next_at=until)
            assert await store.read(methodcaller("notice", notice.id)) == claimed
            assert await store.read(methodcaller("next_notice", NOW, excluding=())) is None
            # After the time, another engine may claim it.
            later = until + HOUR
            found = await store.read(methodcaller("next_notice", until, excluding=()))
            assert await store.transact(methodcaller("claim_notice", found, "dmn_2", later))
            withdrawn = evolve(claimed, state="withdrawing")
            assert not await store.transact(methodcaller("claim_notice", withdrawn, "x", later))

    async def test_changes_of_notices_notify_their_topics(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            notice = a_notice("req_1")
            heard: list[frozenset[str]] = []
            with store.listen(heard.append):
                await _add(store, notice)
                await store.transact(lambda tx: tx.put_notice(notice))
            assert heard == [{"notices", f"notice:{notice.id}"}] * 2

    async def test_feed_of_types_has_only_their_events(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            one, two = a_session(), a_session()
            await put(store, one, two)
            for session, name in ((one, "a"), (two, "b"), (one, "b"), (two, "c"), (one, "b")):
                await store.transact(
                    lambda tx, session=session, name=name: tx.append(  # type: ignore[misc]
                        session.id, [Draft(name, {"of": session.id})], NOW
                    )
                )
            a, first, second, c, third = await store.read(methodcaller("feed", after=None, limit=9))
            for types, after, limit, expected in (
                ("abc", None, 9, [a, first, second, c, third]),
                ("b", None, 9, [first, second, third]),
                ("b", first.cursor, 1, [second]),
                ("ac", a.cursor, 9, [c]),
                ("d", None, 9, []),
                ("b", third.cursor, 9, []),
            ):
                query = methodcaller("feed_of_types", tuple(types), after=after, limit=limit)
                assert await store.read(query) == expected
            head = await store.read(methodcaller("feed_head"))
            number, _, epoch = head.partition(".")
            beyond = f"{int(number) + 1}{'.' if epoch else ''}{epoch}"
            with pytest.raises(CursorAhead):
                await store.read(methodcaller("feed_of_types", ("b",), after=beyond, limit=1))

    async def test_push_subscriptions_are_stored_whole_and_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            phone = a_subscription("ann")
            desk = a_subscription("ann", token_id="tok_1", admin=True, events=())  # noqa: S106
            other = a_subscription("bob", events=("request", "failed"))
            heard: list[frozenset[str]] = []
            with store.listen(heard.append):
                for one in (phone, desk, other):
                    await store.transact(methodcaller("add_push_subscription", one))
                renewed = evolve(phone, seen_at=NOW + HOUR, name="new phone", principal="bob")
                await store.transact(methodcaller("put_push_subscription", renewed))
            assert heard == [{"push"}] * 4
            assert await store.read(methodcaller("push_subscription", desk.id)) == desk
            assert await store.read(methodcaller("push_subscription", "psh_0")) is None
            found = methodcaller("push_subscription_of", phone.endpoint)
            assert await store.read(found) == renewed
            for filters, expected in (
                ({}, [renewed, desk, other]),
                ({"principal": "ann"}, [desk]),
                ({"principal": "bob", "after": renewed.id}, [other]),
                ({"after": desk.id}, [other]),
                ({"order": "newest"}, [other, desk, renewed]),
                ({"order": "newest", "after": other.id, "principal": "bob"}, [renewed]),
            ):
                listed = methodcaller("push_subscriptions", limit=9, **filters)
                assert await store.read(listed) == expected, filters
            assert await store.read(methodcaller("push_subscriptions", limit=1)) == [renewed]
            twice = a_subscription("ann", endpoint=desk.endpoint)
            with pytest.raises(Conflict):
                await store.transact(methodcaller("add_push_subscription", twice))
            with pytest.raises(NotFound):
                await store.transact(methodcaller("put_push_subscription", twice))
            for _ in range(2):
                await store.transact(methodcaller("remove_push_subscription", desk.id))
            listed = methodcaller("push_subscriptions", limit=9)
            assert await store.read(listed) == [renewed, other]
            assert await store.read(methodcaller("push_subscription_of", desk.endpoint)) is None

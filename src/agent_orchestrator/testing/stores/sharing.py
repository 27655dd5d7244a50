"""Grants on sessions."""

from operator import methodcaller
from pathlib import Path

import pytest

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_request,
    a_run,
    a_session,
    drafts,
    put,
)

BOB, CAROL = Grant("bob", "reader"), Grant("carol", "owner")


class Sharing(Opening):
    async def test_grants_are_replaced_for_all_descendants(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            root, other = a_session(), a_session()
            below = {"root_session_id": root.id}
            child = a_session(parent_session_id=root.id, **below)
            grandchild = a_session(parent_session_id=child.id, **below)
            await put(store, root, other, child, grandchild)
            notified: list[frozenset[str]] = []

            async def set_grants(session_id: str, *grants: Grant) -> set[str]:
                notified.clear()
                with store.listen(notified.append):
                    await store.transact(methodcaller("put_grants", session_id, grants))
                return set().union(*notified)

            def query(view: View) -> list[list[Grant]]:
                return [view.grants(session.id) for session in (root, child, grandchild, other)]

            assert await store.read(query) == [[], [], [], []]
            assert await set_grants(child.id, CAROL, BOB) == {"access:bob", "access:carol"}
            assert await store.read(query) == [[], [BOB, CAROL], [BOB, CAROL], []]
            assert await set_grants(root.id, BOB) == {"access:bob", "access:carol"}
            assert await store.read(query) == [[BOB], [BOB], [BOB], []]
            assert await store.read(lambda view: view.role(child.id, "bob")) == "reader"
            assert await store.read(lambda view: view.role(child.id, "carol")) is None
            assert await set_grants(grandchild.id) == {"access:bob"}
            assert await store.read(query) == [[BOB], [BOB], [], []]
            with pytest.raises(NotFound):
                await set_grants("ses_none", BOB)
            with pytest.raises(Conflict):
                await set_grants(root.id, CAROL, BOB, Grant("bob", "owner"))
            assert await store.read(query) == [[BOB], [BOB], [], []]

            def undone(tx: Transaction) -> None:
                tx.put_grants(root.id, ())
                raise LookupError

            with pytest.raises(LookupError):
                await store.transact(undone)
            assert await store.read(query) == [[BOB], [BOB], [], []]

    async def test_lists_contain_visible_sessions(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            sessions = [a_session(owner=("ann", "bob", "cid")[n % 3]) for n in range(9)]
            runs = [a_run(session.id) for session in sessions]
            questions = [a_request(run) for run in runs]
            await put(store, *sessions, *runs)
            for session, question in zip(sessions, questions, strict=True):
                await store.transact(methodcaller("add_request", question))
                await store.transact(methodcaller("append", session.id, drafts("x"), NOW))
            # An owner may have a grant as well. The session is listed once.
            for index in (1, 3, 6, 8):
                await store.transact(methodcaller("put_grants", sessions[index].id, [BOB]))
            seen = {1, 3, 4, 6, 7, 8}
            ids = [session.id for n, session in enumerate(sessions) if n in seen]
            within = Visibility("bob")

            async def pages(listing: str) -> list[str]:
                ids: list[str] = []
                after = None
                while page := await store.read(
                    methodcaller(listing, within=within, after=after, limit=2)
                ):
                    assert len(page) <= 2
                    if listing == "sessions":
                        ids += [row.id for row in page]
                        after = page[-1].id
                    elif listing == "feed":
                        ids += [item.event.session_id for item in page]
                        after = page[-1].cursor
                    else:
                        ids += [row.session_id for row in page]
                        after = page[-1].id
                return ids

            for listing in ("sessions", "runs", "requests", "feed"):
                assert await pages(listing) == ids, listing
            await store.transact(methodcaller("put_grants", sessions[3].id, ()))
            ids.remove(sessions[3].id)
            for listing in ("sessions", "runs", "requests", "feed"):
                assert await pages(listing) == ids, listing

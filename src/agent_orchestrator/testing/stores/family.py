"""Parent and child sessions, and their requests."""

from collections.abc import Callable
from datetime import timedelta
from operator import methodcaller
from pathlib import Path

import pytest
from attrs import evolve

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.ports.queries import View
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import (
    HARD_TEXT,
    NOW,
    a_message,
    a_request,
    a_run,
    a_session,
    drafts,
    put,
)


class Family(Opening):
    async def test_live_children_and_descendants_are_counted(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            root = a_session()
            run = a_run(root.id)
            below = {"parent_session_id": root.id, "root_session_id": root.id, "depth": 1}
            of_run = [a_session(parent_run_id=run.id, **below) for _ in range(3)]
            of_session = a_session(**below)
            grandchild = a_session(
                parent_session_id=of_session.id, root_session_id=root.id, depth=2
            )
            states = [RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.COMPLETED]
            runs = [
                a_run(session.id, status=state)
                for session, state in zip(of_run, states, strict=True)
            ]
            waiting = a_run(grandchild.id, status=RunStatus.WAITING)
            await put(store, root, *of_run, of_session, grandchild, run, *runs, waiting)

            def query(view: View) -> tuple[int, int, int, int]:
                return (
                    view.live_children(root.id, run.id),
                    view.live_children(root.id, None),
                    view.live_children(of_session.id, None),
                    view.live_descendants(root.id),
                )

            assert await store.read(query) == (2, 0, 1, 3)
            assert await store.read(lambda view: view.live_descendants(of_session.id)) == 1
            assert await store.read(lambda view: view.live_descendants(grandchild.id)) == 0

    async def test_lists_can_be_limited_to_a_session_and_its_descendants(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            root, other = a_session(owner="ann"), a_session(owner="ann")
            below = {"root_session_id": root.id, "owner": "ann"}
            child = a_session(parent_session_id=root.id, **below)
            grandchild = a_session(parent_session_id=child.id, **below)
            sibling = a_session(parent_session_id=root.id, **below)
            family = [root, child, grandchild, sibling, other]
            runs = {member.id: a_run(member.id) for member in family}
            questions = {member.id: a_request(runs[member.id]) for member in family}
            await put(store, *family, *runs.values())
            for member in family:
                await store.transact(methodcaller("add_request", questions[member.id]))
                await store.transact(methodcaller("append", member.id, drafts("x"), NOW))
            for top, members in (
                (root, family[:4]),
                (child, [child, grandchild]),
                (grandchild, [grandchild]),
                (other, [other]),
            ):
                ids = [member.id for member in members]
                within = Visibility(tree=top.id)

                def query(view: View, within: Visibility = within) -> list[object]:
                    return [
                        [session.id for session in view.sessions(within=within, limit=9)],
                        view.runs(within=within, limit=9),
                        view.requests(within=within, limit=9),
                        [
                            item.event.session_id
                            for item in view.feed(after=None, within=within, limit=9)
                        ],
                        view.sessions(within=evolve(within, principal="bob"), limit=9),
                        view.sessions(within=within, parent_session_id=root.id, limit=1),
                        view.runs(within=within, session_id=other.id, limit=9),
                    ]

                children = [member for member in members if member.parent_session_id == root.id]
                assert await store.read(query) == [
                    ids,
                    [runs[session_id] for session_id in ids],
                    [questions[session_id] for session_id in ids],
                    ids,
                    [],
                    [evolve(child, last_seq=1, last_line="x") for child in children[:1]],
                    [runs[other.id]] if top is other else [],
                ]

    async def test_the_request_resolved_last_in_an_attempt_is_found(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            run = a_run(session.id, attempt=2)
            await put(store, session, run)
            asked = [
                a_request(
                    run, attempt=attempt, status=status, resolved_at=NOW + timedelta(seconds=n)
                )
                for n, (attempt, status) in enumerate(
                    [(2, "answered"), (2, "approved"), (2, "canceled"), (1, "approved")]
                )
            ]
            for request in (*asked, a_request(run, attempt=2)):
                await store.transact(methodcaller("add_request", request))

            def query(view: View) -> list[Request | None]:
                statuses = {"answered", "approved"}
                first, second = asked[0].id, asked[1].id
                return [
                    view.last_resolved(run.id, 2, statuses=statuses, excluding=excluded)
                    for excluded in ((), (second,), (first, second))
                ]

            assert await store.read(query) == [asked[1], asked[0], None]

    async def test_messages_without_a_run_are_waiting(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(), a_session()
            run = a_run(session.id)
            first, second = a_message(session.id), a_message(session.id)
            await put(
                store,
                session,
                other,
                run,
                second,
                first,
                a_message(session.id, run_id=run.id),
                a_message(session.id, delivery="delivered"),
                a_message(other.id),
            )
            assert await store.read(lambda view: view.waiting_messages(session.id, limit=9)) == [
                first,
                second,
            ]
            await store.transact(lambda tx: tx.put_message(evolve(first, run_id=run.id)))
            assert await store.read(lambda view: view.waiting_messages(session.id, limit=9)) == [
                second
            ]

    async def test_requests_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session, other = a_session(owner="ann"), a_session(owner="bob")
            run, foreign = a_run(session.id), a_run(other.id)
            await put(store, session, other, run, foreign)
            plain = a_request(run)
            full = a_request(
                run,
                text=HARD_TEXT,
                parent_session_id=other.id,
                root_session_id=other.id,
                detail={"command": [HARD_TEXT]},
                options=(Option.named("once"), Option("n", HARD_TEXT, "deny", HARD_TEXT)),
                option="n",
                wait=True,
                expires_at=NOW + timedelta(minutes=1),
            )
            theirs = a_request(foreign)
            notified: list[frozenset[str]] = []
            with store.listen(notified.append):
                for request in (plain, full, theirs):
                    await store.transact(methodcaller("add_request", request))
            assert frozenset({f"request:{plain.id}", "requests"}) in notified

            def query(view: View) -> list[object]:
                return [
                    view.request(full.id),
                    view.requests(limit=9),
                    view.requests(within=Visibility(principal="ann"), limit=9),
                    view.requests(session_id=other.id, limit=9),
                    view.requests(root_session_id=other.id, limit=9),
                    view.requests(run_id=run.id, after=plain.id, limit=9),
                    view.requests(status="denied", limit=9),
                    view.next_due(),
                ]

            assert await store.read(query) == [
                full,
                [plain, full, theirs],
                [plain, full],
                [theirs],
                [full, theirs],
                [full],
                [],
                full.expires_at,
            ]
            denied = evolve(
                full,
                status="denied",
                decision="deny",
                answer="no",
                scope="once",
                decided_by="ann",
                resolved_at=NOW,
            )
            await store.transact(lambda tx: tx.put_request(denied))
            assert await store.read(lambda view: view.request(full.id)) == denied
            assert await store.read(lambda view: view.next_due()) == plain.expires_at
            with pytest.raises(Conflict):
                await store.transact(lambda tx: tx.add_request(plain))
            with pytest.raises(NotFound):
                await store.transact(lambda tx: tx.put_request(a_request(run)))
            with pytest.raises(NotFound):
                await store.transact(lambda tx: tx.add_request(a_request(a_run(session.id))))

    async def test_requests_that_a_caller_may_resolve_can_be_listed(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            owned, granted, shown = a_session(owner="ann"), a_session(), a_session()
            below = a_session(parent_session_id=owned.id, root_session_id=owned.id)
            sessions = [owned, granted, shown, below]
            runs = [a_run(session.id) for session in sessions]
            await put(store, *sessions, *runs)
            requests = [a_request(run) for run in runs]
            requests.append(a_request(runs[-1], approvals="ask-human"))
            of_own, of_granted, of_shown, of_below, peoples = requests
            for request in requests:
                await store.transact(methodcaller("add_request", request))
            await store.transact(lambda tx: tx.put_grants(granted.id, [Grant("ann", "writer")]))
            await store.transact(lambda tx: tx.put_grants(shown.id, [Grant("ann", "reader")]))

            def query(within: Visibility, *, resolvable: bool) -> Callable[[View], list[Request]]:
                return lambda view: view.requests(within=within, resolvable=resolvable, limit=9)

            ann, tree = Visibility(principal="ann"), Visibility(tree=owned.id)
            for within, all_, resolvable in (
                (Visibility(), requests, requests),
                (ann, [of_own, of_granted, of_shown], [of_own, of_granted]),
                (tree, [of_own, of_below, peoples], [of_below]),
            ):
                assert await store.read(query(within, resolvable=False)) == all_
                assert await store.read(query(within, resolvable=True)) == resolvable

    async def test_requests_belong_to_the_parent_until_people_are_asked(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            parent, other = a_session(), a_session()
            child = a_session(parent_session_id=parent.id, approvals="ask-human")
            run = a_run(child.id)
            await put(store, parent, other, child, run)
            first, second = (
                a_request(
                    run,
                    parent_session_id=parent.id,
                    audience="parent",
                    approvals="ask-parent",
                    human_at=NOW + timedelta(seconds=seconds),
                )
                for seconds in (20, 10)
            )
            decided = a_request(run, approvals="allow", audience=None, status="approved")
            peoples = a_request(run, parent_session_id=parent.id, human_at=NOW)
            closed = evolve(first, id="req_closed", status="denied", human_at=NOW)
            requests = [first, second, decided, peoples, closed]
            for request in requests:
                await store.transact(methodcaller("add_request", request))

            def query(view: View) -> tuple[object, ...]:
                return (
                    view.parent_requests(parent.id, 9),
                    view.parent_requests(parent.id, 1),
                    view.parent_requests(other.id, 9),
                    view.requests_to_escalate(NOW + timedelta(seconds=15), 9),
                    view.requests_to_escalate(NOW + timedelta(seconds=20), 9),
                    view.requests_to_escalate(NOW + timedelta(seconds=20), 1),
                    view.next_due(),
                )

            assert await store.read(query) == (
                [first, second],
                [first],
                [],
                [second],
                [second, first],
                [second],
                second.human_at,
            )
            for request in requests:
                stored = await store.read(methodcaller("request", request.id))
                assert stored == request
            kept = await store.read(lambda view: view.session(child.id))
            assert kept is not None
            assert kept.approvals == "ask-human"
            for request in (first, second):
                asked = evolve(request, audience="human")
                await store.transact(methodcaller("put_request", asked))
            assert await store.read(query) == ([], [], [], [], [], [], first.expires_at)

    async def test_requests_warn_once_before_they_expire(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            run = a_run((session := a_session()).id)
            await put(store, session, run)
            late, soon = (
                a_request(run, warn_at=NOW + timedelta(seconds=seconds)) for seconds in (20, 10)
            )
            silent = a_request(run)
            closed = a_request(run, status="denied", warn_at=NOW)
            for request in (late, soon, silent, closed):
                await store.transact(methodcaller("add_request", request))

            def query(view: View) -> tuple[object, ...]:
                moments = [NOW + timedelta(seconds=seconds) for seconds in (9, 10, 20)]
                return (
                    *(view.requests_to_warn(moment, 9) for moment in moments),
                    view.requests_to_warn(moments[-1], 1),
                    view.next_due(),
                )

            assert await store.read(query) == ([], [soon], [soon, late], [soon], soon.warn_at)
            warned = evolve(soon, warned=True)
            await store.transact(lambda tx: tx.put_request(warned))
            assert await store.read(query) == ([], [], [late], [late], late.warn_at)
            assert await store.read(lambda view: view.request(soon.id)) == warned

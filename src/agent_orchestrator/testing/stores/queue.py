"""The queue of runs."""

from operator import methodcaller
from pathlib import Path
from typing import Any

from attrs import evolve

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Run,
    Session,
)
from agent_orchestrator.ports.queries import View
from agent_orchestrator.testing.stores.opening import Opening
from agent_orchestrator.testing.stores.samples import a_run, a_session, put


class Queue(Opening):
    async def test_the_queue_is_first_come_first_served_with_one_run_per_session(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            one, two, three = (a_session(host="x") for _ in range(3))
            four = a_session(host="y")
            first, second = a_run(one.id), a_run(one.id)
            busy = a_run(two.id, status=RunStatus.RUNNING)
            behind = a_run(two.id)
            manual = a_run(three.id, provider="manual")
            blocked = a_run(three.id)
            free = a_run(four.id)
            runs = [first, second, busy, behind, manual, blocked, free]
            await put(store, one, two, three, four, *reversed(runs))

            def query(view: View) -> tuple[list[Run], list[int | None], list[Run | None]]:
                return (
                    view.next_runs(9),
                    [view.queue_position(run) for run in runs],
                    [view.queued_before(run) for run in runs],
                )

            startable, positions, before = await store.read(query)
            assert startable == [first, free]
            assert positions == [1, 2, None, 2, 2, 2, 2]
            assert before == [None, first, None, busy, None, manual, None]
            assert await store.read(lambda view: view.next_runs(1)) == [first]
            for providers, fitting in (({"demo", "x"}, [first, free]), ({"x"}, []), ((), [])):
                named = methodcaller("next_runs", 9, providers=providers)
                assert await store.read(named) == fitting
            for host, fitting in (("x", [first]), ("y", [free]), ("z", [])):
                of_host = methodcaller("next_runs", 9, host=host)
                assert await store.read(of_host) == fitting
            for run, host, position in ((second, "x", 2), (blocked, "x", 2), (free, "y", 1)):
                of_host = methodcaller("queue_position", run, host=host)
                assert await store.read(of_host) == position
            moved = evolve(four, host="z")
            await store.transact(lambda tx: tx.put_session(moved))
            of_host = methodcaller("next_runs", 9, host="z")
            assert await store.read(of_host) == [free]
            assert await store.read(lambda view: view.session(four.id)) == moved
            assert await store.read(lambda view: view.live_runs()) == {
                "demo": {RunStatus.QUEUED: 5, RunStatus.RUNNING: 1},
                "manual": {RunStatus.QUEUED: 1},
            }
            for limit, full in ((1, True), (5, True), (6, False), (100, False)):
                assert await store.read(methodcaller("queue_is_full", limit)) is full

            await store.transact(lambda tx: tx.put_run(evolve(manual, status=RunStatus.WAITING)))
            assert await store.read(lambda view: view.next_runs(9)) == [first, free]
            assert await store.read(lambda view: view.queued_before(blocked)) == evolve(
                manual, status=RunStatus.WAITING
            )
            await store.transact(lambda tx: tx.put_run(evolve(manual, status=RunStatus.CANCELED)))
            await store.transact(
                lambda tx: tx.put_run(evolve(busy, status=RunStatus.QUEUED, attempt=2))
            )
            assert await store.read(lambda view: view.live_runs()) == {
                "demo": {RunStatus.QUEUED: 6}
            }
            startable = await store.read(lambda view: view.next_runs(9))
            assert [run.id for run in startable] == [first.id, busy.id, blocked.id, free.id]

    async def test_lost_runs_are_active_without_a_worker_of_this_engine(
        self, tmp_path: Path
    ) -> None:
        async with self.opened(tmp_path) as store:
            own = "dmn_2" if store.lease is None else store.lease.daemon_id

            def held(worker_id: str | None, **fields: Any) -> tuple[Session, Run]:
                session = a_session()
                fields = {"status": RunStatus.RUNNING, **fields}
                return session, a_run(session.id, worker_id=worker_id, **fields)

            lost = [
                held("dmn_1/1"),
                held(f"{own}2/1"),
                held("dmn_3", status=RunStatus.WAITING),
            ]
            kept = [
                held(f"{own}/1"),
                held(f"{own}/13", status=RunStatus.WAITING),
                held("dmn_1/2", status=RunStatus.COMPLETED),
                held("dmn_1/3", status=RunStatus.QUEUED),
                held(None, provider="manual"),
                held("manual/ann", provider="manual"),
                held(None, status=RunStatus.WAITING),
            ]
            for pair in reversed([*lost, *kept]):
                await put(store, *pair)
            lost_runs = await store.read(lambda view: view.lost_runs(own))
            assert lost_runs == [run for _, run in lost]

    async def test_child_runs_are_listed(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path) as store:
            session = a_session()
            parent = a_run(session.id)
            children = [
                a_run(session.id, parent_run_id=parent.id),
                a_run(session.id, parent_run_id=parent.id, status=RunStatus.CANCELED),
            ]
            grandchild = a_run(session.id, parent_run_id=children[0].id)
            await put(store, session, parent, grandchild, *reversed(children))
            assert await store.read(lambda view: view.child_runs(parent.id)) == children
            assert await store.read(lambda view: view.child_runs(grandchild.id)) == []

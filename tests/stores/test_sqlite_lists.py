"""The cost of a list depends on the page and the caller's sessions, not on those of others."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from attrs import evolve
from older import insert

from agent_orchestrator.domain.access import Grant, Visibility
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Request, Session
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.memory.view import MemoryView
from agent_orchestrator.stores.sql.rows import (
    REQUESTS,
    RUNS,
    SESSIONS,
)
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrations
from agent_orchestrator.testing.stores.samples import NOW, a_request, a_run, a_session, drafts

pytestmark = pytest.mark.anyio

FEW, MANY = 200, 2000

ANN, TREE = Visibility("ann"), "ses_of_ann"
REACHES = {"own": ANN, "granted": Visibility("bob"), "below": Visibility(tree=TREE)}
STATES = (None, RunStatus.QUEUED, RunStatus.COMPLETED, RunStatus.FAILED)
Query = Callable[[View, Visibility, Any], Sequence[object]]
QUERIES: dict[str, Query] = {
    "sessions": lambda view, within, after: view.sessions(within=within, after=after, limit=50),
    "open": lambda view, within, after: view.sessions(
        within=within, status="open", after=after, limit=50
    ),
    "closed": lambda view, within, after: view.sessions(
        within=within, status="closed", after=after, limit=50
    ),
    **{
        f"runs {state}": lambda view, within, after, state=state: view.runs(
            within=within, status=state, after=after, limit=50
        )
        for state in STATES
    },
    **{
        f"requests {state} {resolvable}": lambda view, within, after, state=state, may=resolvable: (
            view.requests(within=within, status=state, resolvable=may, after=after, limit=50)
        )
        for state in (None, "pending", "approved")
        for resolvable in (False, True)
    },
    **{
        f"newest {listing}": lambda view, within, after, listing=listing: getattr(view, listing)(
            within=within, order="newest", after=after, limit=50
        )
        for listing in ("sessions", "runs", "requests")
    },
    **{
        f"deadlines {may}": lambda view, within, after, may=may: view.requests(
            within=within, order="deadline", resolvable=may, after=after, limit=50
        )
        for may in (False, True)
    },
    "deadlines of a tree": lambda view, within, after: view.requests(
        within=within, root_session_id=TREE, order="deadline", after=after, limit=50
    ),
    "requests of a tree": lambda view, within, after: view.requests(
        within=within, root_session_id=TREE, status="pending", after=after, limit=50
    ),
    "children": lambda view, within, after: view.sessions(
        within=within, parent_session_id=TREE, after=after, limit=50
    ),
    "number of children": lambda view, within, after: range(view.child_count(TREE, within)),
    "events": lambda view, within, after: view.feed(after=None, within=within, limit=50),
    "events of one": lambda view, within, after: view.feed(
        after=None, sessions=[TREE], within=within, limit=50
    ),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the tests count SQLite's work


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Yield a list with the virtual machine steps of each statement on connections opened meanwhile."""
    steps: list[int] = []

    def opened(connection: apsw.Connection) -> None:
        connection.trace_v2(
            apsw.SQLITE_TRACE_PROFILE,
            lambda event: steps.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]),
        )

    apsw.connection_hooks.append(opened)
    try:
        yield steps
    finally:
        apsw.connection_hooks.remove(opened)


def add(tx: Transaction, session: Session, status: RunStatus, *, is_open: bool) -> None:
    """Add a session with a run, a request and an event."""
    run = a_run(session.id, status=status)
    request = a_request(run, root_session_id=session.root_session_id)
    tx.add_session(session)
    tx.add_run(run)
    tx.add_request(request if is_open else _approved(request))
    tx.append(session.id, drafts("x", run_id=run.id), NOW)


def _approved(request: Request) -> Request:
    return evolve(request, status="approved", resolved_at=NOW)


async def fill(store: Store, owner: str, count: int) -> None:
    """Add ``count`` sessions of an owner. Every tenth is closed and has an open run and request."""

    def change(tx: Transaction) -> None:
        for n in range(count):
            is_open = n % 10 == 0
            session = a_session(owner=owner, status="closed" if is_open else "open")
            status = RunStatus.QUEUED if is_open else RunStatus.COMPLETED
            add(tx, session, status, is_open=is_open)

    await store.transact(change)


async def put_family(store: Store) -> None:
    """Add a tree of ann's, which bob may work with."""

    def change(tx: Transaction) -> None:
        below: dict[str, Any] = {"owner": "ann", "root_session_id": TREE}
        add(tx, a_session(id=TREE, owner="ann"), RunStatus.QUEUED, is_open=True)
        for n in range(6):
            child = a_session(parent_session_id=TREE, depth=1, **below)
            add(tx, child, RunStatus.COMPLETED, is_open=n < 3)
        tx.put_grants(TREE, [Grant("bob", "writer")])

    await store.transact(change)


async def costs(store: Store, steps: list[int], within: Visibility) -> dict[str, tuple[int, int]]:
    """Return for each list the steps that its first page takes and the number of its items."""
    found = {}
    for name, query in QUERIES.items():
        steps.clear()
        page = await store.read(lambda view, query=query: query(view, within, None))
        found[name] = sum(steps), len(page)
    return found


async def test_list_costs_do_not_grow_with_the_sessions_of_others(tmp_path: Path) -> None:
    with counted() as steps:
        async with SqliteStore(tmp_path / "data.db") as store:
            await fill(store, "eve", FEW // 2)
            await put_family(store)
            await fill(store, "eve", FEW // 2)
            few = {name: await costs(store, steps, within) for name, within in REACHES.items()}
            await fill(store, "eve", MANY - FEW)
            many = {name: await costs(store, steps, within) for name, within in REACHES.items()}
    for reach, name in itertools.product(REACHES, QUERIES):
        before, after = few[reach][name], many[reach][name]
        assert before[1] == (7 if name in ("runs None", "events") else before[1]) == after[1]
        assert 0 < after[0] < 1.5 * before[0] + 1000, (reach, name, before, after)


async def test_memory_store_checks_only_the_callers_own_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    is_within = MemoryView._is_within

    def noted(view: MemoryView, session_id: str, within: Visibility) -> bool:
        looked.append(session_id)
        return is_within(view, session_id, within)

    monkeypatch.setattr(MemoryView, "_is_within", noted)
    async with MemoryStore() as store:
        await fill(store, "eve", 30)
        await put_family(store)
        await fill(store, "eve", 30)
        for within, query in itertools.product(REACHES.values(), QUERIES.values()):
            looked.clear()
            await store.read(partial(query, within=within, after=None))
            assert len(looked) <= 7


async def test_list_costs_do_not_grow_with_the_callers_own_sessions(tmp_path: Path) -> None:
    with counted() as steps:
        async with SqliteStore(tmp_path / "data.db") as store:
            await put_family(store)
            await fill(store, "ann", 3 * FEW)
            few = await costs(store, steps, ANN)
            await fill(store, "ann", MANY)
            many = await costs(store, steps, ANN)
    assert few["runs None"][1] == 50
    for name in set(QUERIES) - {"events"}:
        assert many[name][0] < 1.5 * few[name][0] + 1000, (name, few[name], many[name])
    # The feed merges the sessions' logs: each page searches all sessions once for new events.
    assert many["events"][0] < 60 * MANY


@pytest.mark.parametrize(
    "listing", ["sessions", "runs None", "runs completed", "requests None False"]
)
async def test_pages_of_owned_and_granted_rows_are_complete(tmp_path: Path, listing: str) -> None:
    """Page through own and granted rows while others are added: each comes once, in order."""
    async with SqliteStore(tmp_path / "data.db") as store:
        for owner in ("bob", "ann", "bob", "eve", "ann"):
            await fill(store, owner, 60)

        def share(tx: Transaction) -> None:
            for session in tx.sessions(within=ANN, limit=999)[::2]:
                tx.put_grants(session.id, [Grant("bob", "reader")])

        await store.transact(share)
        query = QUERIES[listing]
        bob = Visibility("bob")
        everything = await store.read(
            lambda view: [one.id for one in all_of(view, listing) if seen(view, one)]
        )
        found: list[str] = []
        after = None
        while page := await store.read(partial(query, within=bob, after=after)):
            assert len(page) <= 50
            found += [one.id for one in page]  # type: ignore[attr-defined]
            after = found[-1]
            await fill(store, "eve", 5)
        assert found == everything
        assert len(found) > 100


async def test_rows_of_an_older_database_get_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:18]:
            connection.execute(script)
        connection.pragma("user_version", 18)
        session = a_session(owner="ann")
        run = a_run(session.id)
        for table, names, values in (
            ("sessions", SESSIONS.columns, SESSIONS.values(session)),
            ("runs", RUNS.columns, RUNS.values(run)),
            ("requests", REQUESTS.columns, REQUESTS.values(a_request(run))),
        ):
            insert(connection, table, names, values)
    async with SqliteStore(path) as store:
        for owner, count in (("ann", 1), ("bob", 0)):
            within = Visibility(owner)
            found = await store.read(
                lambda view, w=within: (
                    *view.runs(within=w, limit=9),
                    *view.requests(within=w, limit=9),
                )
            )
            assert len(found) == 2 * count
        await store.transact(lambda tx: tx.put_session(evolve(session, owner="cid")))
        assert await store.read(lambda view: view.runs(within=ANN, limit=9)) == []
        assert len(await store.read(lambda view: view.runs(within=Visibility("cid"), limit=9))) == 1


async def test_requests_of_an_older_database_get_the_audience_human(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    session = a_session()
    run = a_run(session.id)
    given = {who: a_request(run, audience=who) for who in ("people", "parent", None)}
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:28]:
            connection.execute(script)
        connection.pragma("user_version", 28)
        insert(connection, "sessions", SESSIONS.columns, SESSIONS.values(session))
        insert(connection, "runs", RUNS.columns, RUNS.values(run))
        for request in given.values():
            insert(connection, "requests", REQUESTS.columns, REQUESTS.values(request))
    async with SqliteStore(path) as store:
        found = await store.read(lambda view: {one.id: one for one in view.requests(limit=9)})
    for who, request in given.items():
        audience = "human" if who == "people" else who
        assert found[request.id] == evolve(request, audience=audience)  # type: ignore[arg-type]


def all_of(view: View, listing: str) -> Sequence[Any]:
    if listing == "sessions":
        return view.sessions(limit=9999)
    if listing.startswith("runs"):
        state = None if listing == "runs None" else RunStatus.COMPLETED
        return view.runs(status=state, limit=9999)
    return view.requests(limit=9999)


def seen(view: View, one: Any) -> bool:
    session_id = one.id if isinstance(one, Session) else one.session_id
    session = view.session(session_id)
    assert session is not None
    return session.owner == "bob" or view.role(session_id, "bob") is not None

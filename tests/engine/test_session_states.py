"""Lists of sessions by what they need from the caller."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from attrs import evolve
from notices import World, world

from agent_orchestrator import Client
from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.model import Run
from agent_orchestrator.engine import session_states
from agent_orchestrator.engine.paging import MAX_EXAMINED
from agent_orchestrator.operations.sessions import SessionState
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_session

pytestmark = pytest.mark.anyio

STATES: Final[tuple[SessionState, ...]] = get_args(SessionState)


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Any = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data.db")
    async with opened:
        yield opened


async def run_in(client: Client, session_id: str, *statuses: Any) -> Run:
    run = await client.create_run(session_id)
    for status in statuses:
        run = await client.transition_run(run.id, status)
    return run


async def filled(here: World) -> dict[SessionState, str]:
    """Create a session in each state, and return their ids by state."""
    client = here.client
    found: dict[SessionState, str] = {}
    plan: tuple[tuple[SessionState, tuple[Any, ...] | None], ...] = (
        ("idle", None),
        ("needs-you", ("running",)),
        ("working", ("running",)),
        ("queued", ()),
        ("failed", ("running", "failed")),
        ("done", ("running", "completed")),
    )
    for state, statuses in plan:
        session = await client.create_session(provider="manual", title=state)
        found[state] = session.id
        run = None if statuses is None else await run_in(client, session.id, *statuses)
        if state == "needs-you" and run is not None:
            await here.ask_from(run)
        if state == "idle":
            await client.mark_seen(session.id, session.last_seq)
    return found


async def listed(client: Client, state: SessionState, **more: Any) -> list[str]:
    """Return the ids of all pages."""
    found: list[str] = []
    cursor = None
    while True:
        page = await client.list_sessions(state=state, cursor=cursor, **more)
        found += [session.id for session in page.sessions]
        if (cursor := page.next_cursor) is None:
            return found


async def test_each_session_is_in_one_state(store: Store) -> None:
    async with world(store, {}) as here:
        expected = await filled(here)
        assert set(expected) == set(STATES)
        for state, session_id in expected.items():
            assert await listed(here.client, state) == [session_id], state
        page = await here.client.list_sessions(activity=True)
        assert page.activity is not None
        found = {one.id: its.state for one, its in zip(page.sessions, page.activity, strict=True)}
        assert found == {session_id: state for state, session_id in expected.items()}


async def test_what_was_seen_is_idle_for_this_device_only(store: Store) -> None:
    async with world(store, {}) as here:
        expected = await filled(here)
        desk, _ = await here.acting_as("boss", scopes=("admin",))
        phone, _ = await here.acting_as("boss", scopes=("admin",))
        looked: tuple[SessionState, ...] = ("failed", "done", "working")
        for state in looked:
            session = await desk.get_session(expected[state])
            await desk.mark_seen(session.id, session.last_seq)
        assert await listed(desk, "failed") == []
        assert await listed(desk, "done") == []
        assert await listed(desk, "working") == [expected["working"]]
        assert await listed(phone, "done") == [expected["done"]]
        # Something new: another run.
        await run_in(here.client, expected["done"], "running", "completed")
        assert await listed(desk, "done") == [expected["done"]]


async def test_only_who_may_decide_is_needed(store: Store) -> None:
    async with world(store, {}) as here:
        session_id = (await filled(here))["needs-you"]
        grants = [Grant("reads", "reader"), Grant("writes", "writer"), Grant("unable", "writer")]
        await here.client.set_access(session_id, grants)
        reads, _ = await here.acting_as("reads")
        writes, _ = await here.acting_as("writes")
        unable, _ = await here.acting_as("unable", scopes=("read", "write"))
        assert await listed(writes, "needs-you") == [session_id]
        for client in (reads, unable):
            assert await listed(client, "needs-you") == []
            assert await listed(client, "working") == [session_id]
        stranger, _ = await here.acting_as("stranger")
        for state in STATES:
            assert await listed(stranger, state) == []


async def test_pages_in_both_orders_and_with_other_filters(store: Store) -> None:
    async with world(store, {}) as here:
        titles = ("alpha", "beta", "gamma", "delta", "omega")
        requests = [await here.ask(title=title) for title in titles]
        ids = [request.session_id for request in requests]
        await here.client.close_session(ids[4])
        assert await listed(here.client, "needs-you", limit=2) == ids
        assert await listed(here.client, "needs-you", limit=2, order="newest") == ids[::-1]
        assert await listed(here.client, "needs-you", q="DELTA") == [ids[3]]
        assert await listed(here.client, "needs-you", status="closed") == [ids[4]]
        assert await listed(here.client, "needs-you", parent_session_id=ids[0]) == []
        assert await listed(here.client, "needs-you", provider="other") == []


async def test_cost_does_not_grow_with_the_number_of_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = 0
    original = session_states.state_of

    def counted(*arguments: Any) -> Any:
        nonlocal examined
        examined += 1
        return original(*arguments)

    async with SqliteStore(tmp_path / "data.db") as store, world(store, {}) as here:

        def fill(tx: Transaction) -> None:
            for _ in range(10_000):
                tx.add_session(evolve(a_session(), owner="local"))

        await store.transact(fill)
        request = await here.ask()
        await run_in(
            here.client, (await here.client.create_session(provider="manual")).id, "running"
        )
        monkeypatch.setattr(session_states, "state_of", counted)
        page = await here.client.list_sessions(state="needs-you", limit=50)
        assert [one.id for one in page.sessions] == [request.session_id]
        assert (page.next_cursor, examined) == (None, 1)
        await here.client.list_sessions(state="working", limit=50)
        assert examined == 3  # the one with a request is at work too
        page = await here.client.list_sessions(state="done", limit=50)
        assert examined == 3 + MAX_EXAMINED
        # The others are found page by page.
        assert page.next_cursor is not None
        assert await listed(here.client, "done") == []

"""Pages and streams whose items are large: they come in parts, and nothing is left out."""

from pathlib import Path

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Outcome, RunContext, open_embedded
from agent_orchestrator.domain.model import Run
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.engine.paging import BATCH_SIZE, PAGE_SIZE
from agent_orchestrator.hosts import this_host
from agent_orchestrator.operations.events import CaughtUp, StreamRequest
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing import ScriptedRunner

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

LARGE = PAGE_SIZE // 2
"""Characters: two of these end a page."""


class Wordy:
    """A runner that says and returns a long text."""

    name = "wordy"

    async def run(self, context: RunContext) -> Outcome:
        text = "x" * LARGE
        await context.emit("agent.message", {"text": text})
        return Outcome(text)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return ":memory:" if request.param == "memory" else str(tmp_path / "a.db")


async def wordy_session(client: Client, runs: int) -> str:
    session = await client.create_session()
    for number in range(runs):
        reply = await client.send_message(session.id, f"{number}")
        assert reply.run is not None
        waited = await client.wait_run(reply.run.id, timeout_s=60)
        assert waited.run.result is not None
    return session.id


async def test_page_of_runs_ends_at_the_size_limit(store: str) -> None:
    async with open_embedded(store, runners=[Wordy()]) as client:
        session = await wordy_session(client, 5)
        sizes: list[int] = []
        found: list[Run] = []
        cursor: str | None = None
        while cursor is not None or not sizes:
            page = await client.list_runs(session_id=session, limit=100, cursor=cursor)
            sizes.append(len(page.runs))
            found += page.runs
            cursor = page.next_cursor
    assert sizes == [2, 2, 1]
    assert len({run.id for run in found}) == 5


async def test_page_of_events_ends_at_the_size_limit(store: str) -> None:
    async with open_embedded(store, runners=[Wordy()]) as client:
        session = await wordy_session(client, 3)
        last_seq = (await client.get_session(session)).last_seq
        pages = [await client.list_events(session, limit=1000)]
        while pages[-1].has_more:
            cursor = pages[-1].next_cursor
            pages.append(await client.list_events(session, cursor=cursor, limit=1000))
    assert len(pages) >= 3
    assert all(page.events for page in pages)
    # The end of each run holds its result, so that a run is two large events.
    assert max(sum(event.event_type in LONG for event in page.events) for page in pages) == 2
    seen = [event.seq for page in pages for event in page.events]
    assert seen == list(range(1, last_seq + 1))


LONG = ("agent.message", "run.completed")


@pytest.mark.parametrize("readers", ["one", "all"])
async def test_stream_is_read_in_batches_of_limited_size(tmp_path: Path, readers: str) -> None:
    config = EngineConfig(
        providers={"wordy": ProviderConfig(Wordy(), "wordy")},
        routing=Routing("wordy"),
        cwd=str(tmp_path),
        host=this_host(),
    )
    async with SqliteStore(tmp_path / "a.db") as store, Orchestrator(store, config) as engine:
        client = Client(engine)
        session = await wordy_session(client, 2)
        last_seq = (await client.get_session(session)).last_seq
        seen: list[int] = []
        request = StreamRequest([session] if readers == "one" else [])
        with anyio.fail_after(60):
            async with engine.subscribe(request) as subscription:
                while len(seen) < last_seq:
                    received = await subscription.receive()
                    items = [item for item in received if not isinstance(item, CaughtUp)]
                    sizes = [len(str(item.event.data)) for item in items]
                    assert sum(sizes[:-1]) < BATCH_SIZE
                    seen += [item.event.seq for item in items]
    assert seen == list(range(1, last_seq + 1))


async def test_page_of_messages_ends_at_the_size_limit(store: str) -> None:
    texts = [f"{number}" + "x" * 999_990 for number in range(12)]
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider="manual")
        for text in texts:
            await client.send_message(session.id, text)
        page = await client.list_messages(session.id, limit=1000)
        rest = await client.list_messages(session.id, limit=1000, cursor=page.next_cursor)
    assert len(page.messages) == 9
    assert page.next_cursor == page.messages[-1].id
    assert rest.next_cursor is None
    assert [one.text for one in (*page.messages, *rest.messages)] == texts


async def test_pages_of_sessions_and_audit_entries_end_at_the_size_limit(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.sessions.PAGE_SIZE", 100_000)
    monkeypatch.setattr("agent_orchestrator.engine.audit.PAGE_SIZE", 1)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        made = [(await client.create_session(metadata={"note": "x" * 60_000})).id for _ in range(5)]
        sizes: list[int] = []
        found: list[str] = []
        cursor: str | None = None
        while cursor is not None or not sizes:
            page = await client.list_sessions(limit=1000, cursor=cursor)
            sizes.append(len(page.sessions))
            found += [session.id for session in page.sessions]
            cursor = page.next_cursor
        for number in range(5):
            await client.create_token(f"name-{number}", scopes=["read"])
        trail = await client.list_audit(limit=1000)
        every = [*trail.entries]
        while trail.next_cursor is not None:
            assert len(trail.entries) == 1
            trail = await client.list_audit(limit=1000, cursor=trail.next_cursor)
            every += trail.entries
    assert sizes == [2, 2, 1]
    assert found == made
    assert [entry.seq for entry in every] == [*range(1, len(every) + 1)]
    assert len(every) >= 5


async def test_a_search_reads_a_bounded_part_of_the_list(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.paging.MAX_EXAMINED", 4)
    monkeypatch.setattr("agent_orchestrator.engine.paging._SEARCHED_AT_ONCE", 2)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        titles = ["rare", *["common"] * 9, "rare", "common"]
        made = [await client.create_session(title=title) for title in titles]
        pages = [await client.list_sessions(q="RARE", order="newest", limit=5)]
        while pages[-1].next_cursor is not None:
            cursor = pages[-1].next_cursor
            pages.append(await client.list_sessions(q="rare", order="newest", cursor=cursor))
    assert [[one.id for one in page.sessions] for page in pages] == [
        [made[10].id],
        [],
        [made[0].id],
    ]


async def test_a_search_ends_with_a_batch_that_its_size_ended(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.sessions.PAGE_SIZE", 100_000)
    async with open_embedded(store, runners=[ScriptedRunner()]) as client:
        made = [
            (await client.create_session(title="big", metadata={"note": "x" * 60_000})).id
            for _ in range(5)
        ]
        sizes: list[int] = []
        found: list[str] = []
        cursor: str | None = None
        while cursor is not None or not sizes:
            page = await client.list_sessions(q="big", limit=1000, cursor=cursor)
            sizes.append(len(page.sessions))
            found += [session.id for session in page.sessions]
            cursor = page.next_cursor
    assert (sizes, found) == ([2, 2, 1], made)

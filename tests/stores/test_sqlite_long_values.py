"""Long values: how SQLite stores them, and how older versions did."""

import sqlite3
import tracemalloc
import weakref

import anyio
import pytest
from attrs import evolve
from loops import ON_ONE_LOOP
from older import without_search

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import RunResult
from agent_orchestrator.ports.changes import Draft
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_run, a_session, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

LONG = "é\n" * 100_000


async def test_long_values_of_an_older_schema_are_migrated(tmp_path):
    path = tmp_path / "data.db"
    session = a_session()
    run = a_run(session.id, status=RunStatus.COMPLETED, result=RunResult("short"))
    async with SqliteStore(path) as store:
        await put(store, session, run)
        draft = Draft("agent.message", {"text": "here"})
        await store.transact(lambda tx: tx.append(session.id, [draft], NOW))
    without_search(path)
    with sqlite3.connect(path) as connection:  # as the version before it would have left it
        connection.execute("DROP TABLE long_results")
        connection.execute("UPDATE runs SET result = ?", (LONG,))
        connection.execute("UPDATE events SET data = replace(data, 'here', ?)", ("ü" * 100_000,))
        connection.execute("ALTER TABLE events DROP COLUMN long_data")
        connection.execute("ALTER TABLE attempts DROP COLUMN writes")
        connection.execute("ALTER TABLE attempts DROP COLUMN host")
        connection.execute("DROP INDEX messages_from_child")
        connection.execute("ALTER TABLE messages DROP COLUMN images")
        connection.execute("ALTER TABLE runs DROP COLUMN chosen")
        connection.execute("ALTER TABLE requests DROP COLUMN option")
        connection.execute("ALTER TABLE runs DROP COLUMN kind")
        connection.execute("ALTER TABLE runs DROP COLUMN holder")
        connection.execute("DROP INDEX threads_by_id")
        for table in ("requests", "requests_of_owner", "requests_of_session", "requests_of_root"):
            connection.execute(f"DROP INDEX {table}_by_deadline")
        connection.execute("ALTER TABLE requests DROP COLUMN deadline")
        connection.execute("ALTER TABLE sessions DROP COLUMN last_line")
        connection.execute("ALTER TABLE sessions DROP COLUMN notices")
        connection.execute("ALTER TABLE sessions DROP COLUMN host")
        connection.execute("DROP INDEX sessions_limited")
        for unit in ("days", "events", "bytes"):
            connection.execute(f"ALTER TABLE sessions DROP COLUMN retain_{unit}")
        connection.execute("ALTER TABLE access_tokens DROP COLUMN purpose")
        connection.execute("ALTER TABLE access_tokens DROP COLUMN session_id")
        connection.execute("ALTER TABLE access_tokens DROP COLUMN seen_at")
        connection.execute("ALTER TABLE requests DROP COLUMN decided_on")
        connection.execute("ALTER TABLE requests DROP COLUMN decided_on_id")
        for trigger in ("run_counted", "run_counted_again"):
            connection.execute(f"DROP TRIGGER {trigger}")
        later = (
            "pruned_logs",
            "jobs",
            "image_uses",
            "images",
            "image_space",
            "seen",
            "notices",
            "notice_cursor",
            "push_subscriptions",
            "run_counts",
        )
        for table in later:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 20")
    connection.close()
    async with SqliteStore(path) as store:
        found = await store.read(lambda view: view.run(run.id))
        assert found == evolve(run, result=RunResult(LONG))
        [event] = await store.read(lambda view: view.events(session.id, after=0, limit=9))
        assert event.data == {"text": "ü" * 100_000}


async def test_reading_a_run_does_not_read_the_long_results_of_others(tmp_path):
    path = tmp_path / "data.db"
    session = a_session()
    runs = sorted(
        (a_run(session.id, status=RunStatus.COMPLETED) for _ in range(50)), key=lambda run: run.id
    )
    async with SqliteStore(path) as store:
        await put(store, session, *runs)

        async def pages_read():
            """Return how many pages it takes to find the runs without a result."""

            def query(view):
                before = page_looks(view)
                assert [view.run(run.id).result for run in runs[::2]] == [None] * 25
                return page_looks(view) - before

            return await store.read(query)

        def page_looks(view):
            codes = 7, 8  # SQLITE_DBSTATUS_CACHE_HIT and _MISS
            return sum(view._connection.status(code)[0] for code in codes)

        few = await pages_read()
        for run in runs[1::2]:
            long = evolve(run, result=RunResult(LONG))
            await store.transact(lambda tx, run=long: tx.put_run(run))
        assert await pages_read() < few + 100


async def test_readers_of_a_long_event_share_its_text(tmp_path):
    session = a_session()
    drafts = [Draft("agent.message", {"text": text}) for text in (LONG, LONG, "short")]
    async with SqliteStore(tmp_path / "data.db") as store:
        await put(store, session)
        await store.transact(lambda tx: tx.append(session.id, drafts, NOW))
        pages = [
            await store.read(lambda view: view.events(session.id, after=0, limit=9))
            for _ in range(3)
        ]
        fed = await store.read(lambda view: view.feed(after=None, limit=9))
    for number in (0, 1):
        texts = {id(page[number].data.text) for page in pages}
        texts.add(id(fed[number].event.data.text))
        assert len(texts) == 1
    assert pages[0][0].data.text is not pages[0][1].data.text
    assert [event.data["text"] for event in pages[0]] == [LONG, LONG, "short"]


async def test_concurrent_readers_read_a_long_event_once(tmp_path):
    session = a_session()
    text = "x" * 8_000_000
    async with SqliteStore(tmp_path / "data.db") as store:
        await put(store, session)
        draft = Draft("agent.message", {"text": text})
        await store.transact(lambda tx: tx.append(session.id, [draft], NOW))
        pages = []

        async def read():
            pages.append(await store.read(lambda view: view.events(session.id, after=0, limit=9)))

        tracemalloc.start()
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(read)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [event.data["text"] == text for [event] in pages] == [True] * 10
    assert peak < 1.5 * len(text)


async def test_readers_do_not_get_a_long_event_of_a_rolled_back_transaction(tmp_path):
    session = a_session()
    async with SqliteStore(tmp_path / "data.db") as store:
        await put(store, session)

        def change(tx, text, *, undo):
            tx.append(session.id, [Draft("agent.message", {"text": text})], NOW)
            [event] = tx.events(session.id, after=0, limit=9)
            assert event.data["text"] == text
            if undo:
                raise RuntimeError
            return event

        with pytest.raises(RuntimeError):
            await store.transact(lambda tx: change(tx, LONG, undo=True))
        held = await store.transact(lambda tx: change(tx, LONG[::-1], undo=False))
        [event] = await store.read(lambda view: view.events(session.id, after=0, limit=9))
        assert event == held
        assert event.data["text"] == LONG[::-1]


async def test_what_was_written_is_not_kept_until_the_next_commit(tmp_path):
    """An idle daemon would keep a long result in memory."""

    class Value:
        pass

    async with SqliteStore(tmp_path / "data.db") as store:
        value = Value()
        kept = weakref.ref(value)
        await store.transact(lambda _, value=value: None)
        del value
        with anyio.fail_after(60):
            while kept() is not None:  # the thread leaves its method just after the answer
                await anyio.sleep(0.01)

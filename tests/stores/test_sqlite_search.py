"""The index of words in SQLite: databases without one, backups, checks, and what is deleted."""

import contextlib
from functools import partial
from pathlib import Path

import apsw
import pytest
import shortcuts
from older import with_new_search

from agent_orchestrator.domain.access import Visibility
from agent_orchestrator.domain.errors import StoreOpenError
from agent_orchestrator.domain.model import Session
from agent_orchestrator.domain.search import MAX_SEARCHED, Search, phrases_of
from agent_orchestrator.ports.changes import Draft, PastEvent, Transaction
from agent_orchestrator.stores.sql import search as sql_search
from agent_orchestrator.stores.sql.search import BacklogPart
from agent_orchestrator.stores.sql.store import SqlStore
from agent_orchestrator.stores.sqlite import SqliteStore, schema
from agent_orchestrator.stores.sqlite.transaction import SqliteTransaction
from agent_orchestrator.testing.stores.samples import NOW, a_run, a_session, drafts, put
from agent_orchestrator.testing.stores.searches import find, log, say, until_complete

pytestmark = pytest.mark.anyio

LONG = "needle long " * 10_000


async def fill(store: SqliteStore, session: Session) -> list[str]:
    """Append texts of each kind among events that are not searched. Return what a search for "needle" finds."""
    run = a_run(session.id)
    await put(store, session, run)
    await log(store, session, "session.created", {"title": session.title})
    for number in range(40):
        await say(store, session, f"needle {number}")
        deltas = [Draft("agent.message.delta", {"text": "needle"})] * 10
        await store.transact(partial(_append, session, deltas))
    await log(store, session, "file.changed", {"changes": [{"path": "/needle/file"}]})
    await say(store, session, LONG, run_id=run.id)
    end = Draft("run.completed", {"result": {"text": LONG}}, run.id, 1)
    await store.transact(partial(_append, session, [end]))
    found = await find(store, "needle")
    assert found == [LONG[:MAX_SEARCHED], "/needle/file"] + [
        f"needle {n}" for n in range(39, -1, -1)
    ] + ["needle title"]
    return found


def _append(session: Session, events: list[Draft], tx: Transaction) -> None:
    tx.append(session.id, events, NOW)


async def test_database_of_before_is_indexed_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.db"
    session = a_session(title="needle title")
    async with SqliteStore(path) as store:
        expected = await fill(store, session)
    with_new_search(path)

    async def waits(_: SqlStore[apsw.Connection]) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(SqlStore, "_index_backlog", waits)
        async with SqliteStore(path) as store:
            assert not await store.read(lambda view: view.search_is_complete())
            assert await find(store, "needle") == []
            await say(store, session, "needle new")
            assert await find(store, "needle") == ["needle new"]
    monkeypatch.setattr(sql_search, "_PART", 50)
    commits: list[int] = []
    async with SqliteStore(path, on_commit=lambda changes, _: commits.append(changes)) as store:
        await say(store, session, "needle newer")  # while it goes on
        await until_complete(store)
        assert await find(store, "needle") == ["needle newer", "needle new", *expected]
        assert len(commits) >= 443 // 50
        assert await store.check() == []
    async with SqliteStore(path) as store:
        assert await store.read(lambda view: view.search_is_complete())
        assert await find(store, "needle") == ["needle newer", "needle new", *expected]


async def test_part_is_not_added_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.db"
    session = a_session(title="needle title")
    async with SqliteStore(path) as store:
        expected = await fill(store, session)
    with_new_search(path)

    async def waits(_: SqlStore[apsw.Connection]) -> None:
        pass

    monkeypatch.setattr(SqlStore, "_index_backlog", waits)
    async with SqliteStore(path) as store:
        while (part := await store.read(lambda view: view.backlog_part())) is not None:  # type: ignore[attr-defined]
            for _ in range(2):
                await store.transact(lambda tx, part=part: tx.add_backlog_part(part))  # type: ignore[attr-defined,misc]
        assert await find(store, "needle") == expected


async def test_what_was_deleted_since_it_was_read_is_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.db"
    session = a_session()
    async with SqliteStore(path) as store:
        await put(store, session)
        await say(store, session, LONG, "needle gone", "needle kept")
    with_new_search(path)

    async def waits(_: SqlStore[apsw.Connection]) -> None:
        pass

    monkeypatch.setattr(SqlStore, "_index_backlog", waits)
    async with SqliteStore(path) as store:
        part = await store.read(lambda view: view.backlog_part())  # type: ignore[attr-defined]
        await store.transact(lambda tx: tx.delete_events(session.id, through=2, digest="ab"))
        await store.transact(lambda tx: tx.add_backlog_part(part))  # type: ignore[attr-defined]
        assert await find(store, "needle") == ["needle kept"]
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        left = "SELECT (SELECT count(*) FROM search_index_docsize), (SELECT count(*) FROM search_beginnings)"
        assert connection.execute(left).fetchone() == (1, 0)


@pytest.mark.parametrize("part", [1, 200])
async def test_result_is_indexed_whose_message_was_deleted_since_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """The message with the same text was to be the only one in the index."""
    path = tmp_path / "data.db"
    session = a_session()
    async with SqliteStore(path) as store:
        run = a_run(session.id)
        await put(store, session, run)
        await say(store, session, "needle", run_id=run.id)
        end = Draft("run.completed", {"result": {"text": "needle"}}, run.id, 1)
        await store.transact(partial(_append, session, [end]))
        await say(store, session, "last")
    with_new_search(path)

    async def waits(_: SqlStore[apsw.Connection]) -> None:
        pass

    monkeypatch.setattr(SqlStore, "_index_backlog", waits)
    monkeypatch.setattr(sql_search, "_PART", part)
    async with SqliteStore(path) as store:

        async def read() -> BacklogPart | None:
            return await store.read(lambda view: view.backlog_part())  # type: ignore[attr-defined,no-any-return]

        async def add(part: BacklogPart | None) -> None:
            assert part is not None
            await store.transact(lambda tx: tx.add_backlog_part(part))  # type: ignore[attr-defined]

        if part == 1:  # the result is read alone, after the newest text
            await add(await read())
        stale = await read()
        await store.transact(lambda tx: tx.delete_events(session.id, through=1, digest="ab"))
        await add(stale)
        while (later := await read()) is not None:
            await add(later)
        assert await find(store, "needle") == ["needle"]
        assert await find(store, "last") == ["last"]


async def test_numbers_without_events_are_passed(tmp_path: Path) -> None:
    """A log that was imported may lack many events."""
    path = tmp_path / "data.db"
    session, imported = a_session(), a_session()
    [past] = drafts("needle past")
    async with SqliteStore(path) as store:
        await put(store, session, imported)
        await say(store, session, "needle old")
        await store.transact(
            lambda tx: tx.add_past(
                imported.id, [PastEvent(10**9, past, NOW)], oldest_cursor=10**9 - 1, digest="ab"
            )
        )
        await say(store, session, "needle new")
    with_new_search(path)
    async with SqliteStore(path) as store:
        await until_complete(store)
        assert await find(store, "needle") == ["needle new", "needle past", "needle old"]
        assert await store.check() == []


async def test_words_of_past_events_do_not_wait_in_memory_for_the_commit(tmp_path: Path) -> None:
    session = a_session()
    [past] = drafts("needle past")
    async with SqliteStore(tmp_path / "data.db") as store:
        await put(store, session)

        def change(tx: Transaction) -> int:
            assert isinstance(tx, SqliteTransaction)
            tx.add_past(session.id, [PastEvent(1, past, NOW)])
            return len(tx._unindexed)

        assert await store.transact(change) == 0
        assert await find(store, "needle") == ["needle past"]


async def test_backup_has_the_index_and_check_finds_its_damage(tmp_path: Path) -> None:
    path, copy = tmp_path / "data.db", tmp_path / "copy.db"
    session = a_session(title="needle title")
    async with SqliteStore(path) as store:
        expected = await fill(store, session)
        await store.back_up(copy, replace=False)
        assert await store.check() == []
    async with SqliteStore(copy) as store:
        assert await find(store, "needle") == expected
        await say(store, session, "needle after")
        assert await find(store, "needle") == ["needle after", *expected]
        assert await store.check() == []
        with contextlib.closing(apsw.Connection(str(copy))) as connection:
            connection.execute("DELETE FROM search_index_data WHERE id > 10")
        problems = await store.check()
        assert any("search_index" in problem for problem in problems), problems


async def test_deleted_events_leave_the_index(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    session = a_session(title="needle title")
    async with SqliteStore(path) as store:
        await fill(store, session)
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("DELETE FROM events WHERE position % 2 = 0 OR position > 100")
        left = "SELECT (SELECT count(*) FROM search_index_docsize), (SELECT count(*) FROM search_beginnings)"
        [texts] = connection.execute(
            "SELECT count(*) FROM events WHERE event_type IN ('session.created', 'agent.message')"
        ).fetchone()
        assert connection.execute(left).fetchone() == (texts, 0)
    async with SqliteStore(path) as store:
        assert len(await find(store, "needle")) == texts


async def test_build_of_sqlite_without_full_text_search_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.connection.migrate", shortcuts.MIGRATE)
    monkeypatch.setattr(schema, "SEARCH_MODULE", "fts5_of_another_build")
    with pytest.raises(StoreOpenError, match="has no module fts5_of_another_build"):
        async with SqliteStore(tmp_path / "data.db"):
            pass


async def test_words_of_others_are_not_examined(tmp_path: Path) -> None:
    """What a caller owns among many texts of others is on its first page."""
    async with SqliteStore(tmp_path / "data.db") as store:
        mine, others = a_session(owner="ann"), a_session(owner="bob")
        await put(store, mine, others)
        await say(store, mine, "needle mine")
        await store.transact(partial(_append, others, drafts(*["needle"] * 5_000)))
        wanted = Search(phrases_of("needle"))
        for within in (Visibility("ann"), Visibility(tree=mine.id)):
            found, cursor = await store.read(
                lambda view, within=within: view.search(wanted, within=within, limit=5)  # type: ignore[misc]
            )
            assert [one.text for one in found] == ["needle mine"]
            assert cursor is None

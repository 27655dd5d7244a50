"""Opening a database file: which files are made, with which settings, and which are refused."""

import contextlib
import os
import signal
import stat
import sys
from importlib.resources import files
from operator import methodcaller
from pathlib import Path

import anyio
import apsw
import pytest
from attrs import evolve
from older import insert

from agent_orchestrator.domain.errors import (
    ForeignDatabase,
    SchemaTooNew,
    StoreDamaged,
    StoreLocked,
    StoreOpenError,
    Unavailable,
)
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import ChoiceLimits, Option
from agent_orchestrator.stores.sql.rows import (
    RECORDS,
    REQUESTS,
    RUNS,
    SESSIONS,
)
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.connection import open_database
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrations
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_record,
    a_request,
    a_run,
    a_session,
    drafts,
    put,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """One event loop: the tests are about files and other processes."""
    return "asyncio"


@pytest.fixture(autouse=True)
def deadline():
    """The database work of these tests takes milliseconds; pytest-timeout guards the rest."""
    previous = os.umask(0o000)  # so that only our own modes protect the files
    yield
    os.umask(previous)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


async def refused(path: Path, kind: type[StoreOpenError], *words: str) -> None:
    """Open the file, which must be refused with these words and leave everything as it was."""
    before = contents(path.parent)
    with anyio.fail_after(60), pytest.raises(StoreOpenError) as raised:
        async with SqliteStore(path):
            pytest.fail("opened")
    assert type(raised.value) is kind
    for word in (str(path), *words):
        assert word in str(raised.value)
    assert contents(path.parent) == before


async def make(path: Path, events: int = 1) -> str:
    """Make a database with one session and some events, and close it."""
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            texts = [str(number) for number in range(events)]
            await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))
    return session.id


@pytest.mark.parametrize("mask", [0o022, 0])
async def test_files_and_directories_are_made_for_their_owner_only(tmp_path, mask):
    before = os.umask(mask)
    try:
        await _check_modes(tmp_path / "new" / "deeper" / "data.db")
    finally:
        os.umask(before)
    # A directory made for the database is ignored by git; an existing one is left alone.
    assert "\n*\n" in (tmp_path / "new" / "deeper" / ".gitignore").read_text()
    (tmp_path / "old").mkdir()
    await make(tmp_path / "old" / "data.db")
    assert not (tmp_path / "old" / ".gitignore").exists()


async def _check_modes(path):
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, a_session())
            names = {
                ".gitignore",
                "data.db",
                "data.db-wal",
                "data.db-shm",
                "data.db.lock",
                "data.db.commits",
                "data.db.ballast",
            }
            # The watermark has another name for a moment while it is made.
            while {entry.name for entry in path.parent.iterdir()} != names:
                await anyio.sleep(0.01)
            assert {mode(path.parent / name) for name in names} == {0o600}
            assert mode(path.parent) == mode(path.parent.parent) == 0o700
            assert (store.backend, store.location) == ("sqlite", str(path))
            assert store.schema_version == len(migrations())
    names = {".gitignore", "data.db", "data.db.lock", "data.db.commits", "data.db.ballast"}
    assert {entry.name for entry in path.parent.iterdir()} == names


async def test_file_name_with_special_characters_is_used_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("file:x?mode=memory", ":memory:", "a b%20ü#?.db"):
        session_id = await make(Path(name))
        assert (tmp_path / name).is_file()
        with anyio.fail_after(60):
            async with SqliteStore(name) as store:
                assert await store.read(lambda view, s=session_id: view.session(s)) is not None


async def test_connections_have_the_required_settings(tmp_path):
    database = open_database(tmp_path / "data.db")
    try:
        for connection in (database.writer, *database.readers):
            settings = {
                name: connection.pragma(name)
                for name in (
                    "journal_mode",
                    "synchronous",
                    "foreign_keys",
                    "trusted_schema",
                    "cell_size_check",
                    "application_id",
                    "user_version",
                    "query_only",
                )
            }
            assert settings == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "trusted_schema": 0,
                "cell_size_check": 1,
                "application_id": APPLICATION_ID,
                "user_version": len(migrations()),
                "query_only": int(connection is not database.writer),
            }
        strict = dict(
            database.writer.execute(
                "SELECT name, strict FROM pragma_table_list"
                " WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        )
        assert len(strict) >= 7
        assert set(strict.values()) == {1}
        with pytest.raises(apsw.ReadOnlyError):
            database.readers[0].execute("DELETE FROM runs")
    finally:
        database.close()


async def test_view_of_a_read_has_no_write_methods(tmp_path):
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            with pytest.raises(AttributeError):
                await store.read(lambda view: view.add_session(a_session()))


async def test_committed_events_are_there_after_a_restart(tmp_path):
    path = tmp_path / "data.db"
    session_id = await make(path, events=100)
    for _ in range(2):
        with anyio.fail_after(60):
            async with SqliteStore(path) as store:
                events = await store.read(lambda view: view.events(session_id, after=0, limit=500))
                assert [event.seq for event in events] == list(range(1, 101))


async def test_foreign_rollback_journal_is_set_aside(tmp_path):
    path = tmp_path / "data.db"
    session_id = await make(path)
    # A hot journal: SQLite would restore its pages.
    forged = apsw.Connection(str(tmp_path / "forged.db"))
    forged.execute("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(100000))")
    forged.pragma("cache_size", 1)
    forged.execute("BEGIN; UPDATE t SET x = randomblob(100000)")
    journal = (tmp_path / "forged.db-journal").read_bytes()
    assert journal.startswith(bytes.fromhex("d9d505f920a163d7"))
    forged.close()
    (tmp_path / "data.db-journal").write_bytes(journal)
    async with SqliteStore(path) as store:
        assert await store.read(lambda view: view.session(session_id)) is not None
    assert (tmp_path / "data.db-journal.unknown").read_bytes() == journal


async def test_an_empty_file_is_a_new_database(tmp_path):
    path = tmp_path / "data.db"
    path.touch(0o600)
    await make(path)
    assert path.stat().st_size > 0


@pytest.mark.parametrize("text", [b"x", b"not a database, but long enough " * 200, b"\0" * 8192])
async def test_file_that_is_not_a_database_is_refused(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    await refused(path, ForeignDatabase)


@pytest.mark.parametrize("wal", [False, True])
async def test_database_of_another_program_is_refused(tmp_path, wal):
    path = tmp_path / "theirs.db"
    connection = apsw.Connection(str(path))
    if wal:
        connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE sessions (id TEXT); INSERT INTO sessions VALUES ('x')")
    connection.close()
    await refused(path, ForeignDatabase)
    connection = apsw.Connection(str(path))
    connection.pragma("application_id", 1)
    connection.close()
    await refused(path, ForeignDatabase)


async def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "data.db"
    await make(path)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", len(migrations()) + 1)
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    await refused(path, SchemaTooNew, str(len(migrations()) + 1), "newer")
    (tmp_path / "data.db.lock").unlink()
    await refused(path, SchemaTooNew)


async def test_newer_schema_in_the_write_ahead_log_is_refused(tmp_path):
    path = tmp_path / "data.db"
    await make(path)
    # A process that dies without a checkpoint: the version is in the write-ahead log only.
    program = (
        "import apsw, os, sys\n"
        "c = apsw.Connection(sys.argv[1]); c.pragma('user_version', 99); os._exit(0)"
    )
    with anyio.fail_after(60):
        await anyio.run_process([sys.executable, "-c", program, str(path)])
    log = tmp_path / "data.db-wal"
    before = path.read_bytes(), log.read_bytes()
    with anyio.fail_after(60), pytest.raises(SchemaTooNew, match="99"):
        async with SqliteStore(path):
            pytest.fail("opened")
    assert (path.read_bytes(), log.read_bytes()) == before


@pytest.mark.parametrize("how", ["overwritten", "truncated"])
async def test_a_damaged_database_is_refused(tmp_path, how):
    path = tmp_path / "data.db"
    await make(path, events=2000)
    data = bytearray(path.read_bytes())
    assert len(data) > 100_000
    if how == "overwritten":
        data[40_000:60_000] = b"\xa5" * 20_000
    else:
        del data[50_000:]
    path.write_bytes(data)
    await refused(path, StoreDamaged, "damaged")
    (tmp_path / "data.db.lock").unlink()
    await refused(path, StoreDamaged)


@pytest.mark.parametrize("pages", [1, 2, 5, 40])
async def test_interrupted_checkpoint_is_completed_at_the_next_start(tmp_path, pages):
    """A process that dies in a checkpoint has written the first pages, with the final size."""
    path, log = tmp_path / "data.db", tmp_path / "data.db-wal"
    await make(path)
    program = (
        "import os, sys, anyio\n"
        "from agent_orchestrator.stores.sqlite import SqliteStore\n"
        "from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put\n"
        "async def main():\n"
        "    async with SqliteStore(sys.argv[1]) as store:\n"
        "        session = a_session()\n"
        "        await put(store, session)\n"
        "        texts = ['x' * 1000] * 2000\n"
        "        await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))\n"
        "        os._exit(0)\n"
        "anyio.run(main)\n"
    )
    with anyio.fail_after(60):
        await anyio.run_process([sys.executable, "-c", program, str(path)])
    unfinished, frames = path.read_bytes(), log.read_bytes()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version")  # a connection sees the log after its first read
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    finished = path.read_bytes()
    size = 4096 * pages
    assert len(unfinished) < len(finished)
    path.write_bytes(finished[:size] + unfinished[size:])
    log.write_bytes(frames)
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            assert await store.read(lambda view: view.event_count()) == 2001


async def test_second_store_is_refused_and_names_the_process_that_has_the_lock(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            link = tmp_path / "link.db"
            link.symlink_to(path)
            for name in (path, link):
                with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
                    async with SqliteStore(name):
                        pytest.fail("opened")
            await put(store, a_session())
        await make(path)


_HOLDER = """
import sys, anyio
from agent_orchestrator.stores.sqlite import SqliteStore
async def main():
    async with SqliteStore(sys.argv[1]):
        sys.stdout.write("open"); sys.stdout.flush()
        await anyio.sleep_forever()
anyio.run(main)
"""


async def test_lock_ends_with_its_process_even_when_it_is_killed(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with await anyio.open_process(
            [sys.executable, "-c", _HOLDER, str(path)], stderr=None
        ) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive()).startswith(b"open")
            with pytest.raises(StoreLocked, match=f"process {process.pid}"):
                async with SqliteStore(path):
                    pytest.fail("opened")
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await make(path)


async def test_child_processes_do_not_inherit_the_lock(tmp_path):
    """A child that outlives the store must not block the next one."""
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path):
            child = await anyio.open_process(["sleep", "60"])
        try:
            await make(path)
        finally:
            child.kill()
            await child.aclose()


async def test_impossible_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    await refused(tmp_path / "directory", StoreOpenError, "is a directory")
    before = contents(tmp_path)
    with pytest.raises(StoreOpenError, match="Not a directory"):
        async with SqliteStore(tmp_path / "file" / "data.db"):
            pytest.fail("opened")
    for place, words in (
        ("x" * 300, "File name too long"),
        (f"{'x' * 300}/data.db", "File name too long"),
        ("loop/data.db", "symbolic links"),
        ("loop/new/data.db", "symbolic links"),
    ):
        with pytest.raises(StoreOpenError, match=words):
            async with SqliteStore(tmp_path / place):
                pytest.fail("opened")
    assert contents(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_directory_without_write_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(0o500)
    with pytest.raises(StoreOpenError, match="Permission denied"):
        async with SqliteStore(tmp_path / "closed" / "data.db"):
            pytest.fail("opened")


async def test_failed_migration_leaves_the_previous_schema(tmp_path, monkeypatch):
    path = tmp_path / "data.db"
    session_id = await make(path)
    steps = (*migrations(), "CREATE TABLE extra (x TEXT) STRICT; CREATE TABLE runs (x)")
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.schema.migrations", lambda: steps)
    with pytest.raises(StoreOpenError, match="runs"):
        async with SqliteStore(path):
            pytest.fail("opened")
    steps = (*migrations(), "CREATE TABLE extra (x TEXT) STRICT")
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.schema.migrations", lambda: steps)
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            assert store.schema_version == len(migrations()) + 1
            assert await store.read(lambda view: view.session(session_id)) is not None
    monkeypatch.undo()
    await refused(path, SchemaTooNew)


async def test_calls_on_a_store_that_is_not_open_are_refused(tmp_path):
    store = SqliteStore(tmp_path / "data.db")
    with pytest.raises(Unavailable):
        await store.transact(lambda tx: tx.notify("x"))
    with pytest.raises(Unavailable):
        await store.read(lambda view: view.feed_head())


async def test_file_with_a_hard_link_is_refused(tmp_path):
    path = tmp_path / "data.db"
    async with SqliteStore(path):
        pass
    (tmp_path / "other.db").hardlink_to(path)
    before = path.read_bytes()
    with pytest.raises(StoreOpenError, match="hard link"):
        async with SqliteStore(tmp_path / "other.db"):
            pass
    assert path.read_bytes() == before


def test_migrations_are_numbered_without_gap_or_repeat() -> None:
    """With two of one number, a database at the first of them would miss the other."""
    folder = files("agent_orchestrator.stores.sqlite") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


async def test_records_of_an_older_schema_count_against_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    session = a_session()
    ended = a_run(session.id, status=RunStatus.COMPLETED)
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:22]:
            connection.execute(script)
        connection.pragma("user_version", 22)
        for table, names, values in (
            ("sessions", SESSIONS.columns, SESSIONS.values(session)),
            ("runs", RUNS.columns, RUNS.values(ended)),
            *(
                ("idempotency", RECORDS.columns, RECORDS.values(a_record(caller=caller, key=key)))
                for key in "abc"
                for caller in ("local", "ann", ended.id)
            ),
        ):
            insert(connection, table, names, values)
    async with SqliteStore(path) as store:
        for caller, most in (("local", 3), ("ann", 9)):
            record = a_record(caller=caller, key="d")
            await store.transact(methodcaller("add_record", record, max_count=most, max_size=99))
        found = await store.read(
            lambda view: {
                caller: [k for k in "abcd" if view.idempotency(caller, "POST /sessions", k)]
                for caller in ("local", "ann", ended.id)
            }
        )
    assert found == {"local": ["b", "c", "d"], "ann": ["a", "b", "c", "d"], ended.id: []}


async def test_effort_of_runs_of_an_older_schema_counts_as_chosen(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    session = a_session()
    runs = [a_run(session.id, effort="low"), a_run(session.id)]
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:24]:
            connection.execute(script)
        connection.pragma("user_version", 24)
        insert(connection, "sessions", SESSIONS.columns, SESSIONS.values(session))
        for run in runs:
            insert(connection, "runs", RUNS.columns, RUNS.values(run))
    async with SqliteStore(path) as store:
        found = [await store.read(lambda view, run=run: view.run(run.id)) for run in runs]  # type: ignore[misc]
    assert [run.chosen for run in found if run] == [ChoiceLimits("low"), ChoiceLimits()]


async def test_options_of_an_older_schema_become_answers(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    session = a_session()
    run = a_run(session.id)
    detail = {"command": "ls", "reaches": {"session": "more", "a.b \N{SNOWMAN}": "all of it"}}
    was = a_request(run, status="answered", decision="answer", answer="no\n", detail=detail)
    rows = (
        (was, '["a.b \N{SNOWMAN}", "no"]'),
        (evolve(was, id="req_2", answer="never"), '["a.b \N{SNOWMAN}", "no"]'),
        (evolve(was, id="req_3", detail=None), "null"),
    )
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
        for script in migrations()[:29]:
            connection.execute(script)
        connection.pragma("user_version", 29)
        insert(connection, "sessions", SESSIONS.columns, SESSIONS.values(session))
        insert(connection, "runs", RUNS.columns, RUNS.values(run))
        for request, options in rows:
            values = dict(zip(REQUESTS.columns.split(", "), REQUESTS.values(request), strict=True))
            values |= {"options": options}
            insert(connection, "requests", REQUESTS.columns, [*values.values()])
    async with SqliteStore(path) as store:
        found = [
            await store.read(lambda view, name=one.id: view.request(name))  # type: ignore[misc]
            for one, _ in rows
        ]
    options = (
        Option("a.b \N{SNOWMAN}", "a.b \N{SNOWMAN}", "answer", "all of it"),
        Option.named("no"),
    )
    assert found == [
        evolve(was, options=options, option="no"),
        evolve(rows[1][0], options=options),
        rows[2][0],
    ]

"""Which cursors are valid after a backup was restored, for each way to restore one."""

import shutil
import sqlite3

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.errors import CommitsLost, CursorAhead
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.connection import open_database
from agent_orchestrator.stores.sqlite.schema import migrations
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "x.db"


async def say(store, session, *texts):
    return await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))


async def begin(path, *texts):
    session = a_session()
    async with SqliteStore(path) as store:
        await put(store, session)
        await say(store, session, *texts)
    return session


async def add(path, session, *texts, **options):
    """Write some more; return the epoch and the cursor of a reader of all sessions."""
    async with SqliteStore(path, **options) as store:
        await say(store, session, *texts)
        return await store.read(lambda view: (view.epoch(), view.feed_head()))


async def common(path, session, epoch, cursor):
    """Return how far a reader's log and this one agree, for the session and for all sessions."""
    async with SqliteStore(path) as store:

        def query(view):
            seq = view.last_common_seq(session.id, epoch)
            try:
                view.feed(after=cursor, limit=1)
            except CursorAhead as error:
                resume = error.details["resume_cursor"]
                view.feed(after=resume, limit=1)
                return seq, int(resume)
            return seq, int(cursor.partition(".")[0])

        return await store.read(query)


async def test_cursors_stay_valid_over_plain_restarts(path):
    session = await begin(path, "a", "b")
    read = [await add(path, session, "c") for _ in range(3)]
    assert len({epoch for epoch, _ in read}) == 3
    for place, (epoch, cursor) in enumerate(read):
        assert await common(path, session, epoch, cursor) == (5, 3 + place)


async def test_cursors_after_a_backup_was_restored_twice_end_at_the_backup(path, tmp_path):
    backup = tmp_path / "backup.db"
    session = a_session()
    async with SqliteStore(path) as store:
        await put(store, session)
        await say(store, session, "a", "b")
        first = await store.read(lambda view: (view.epoch(), view.feed_head()))
        await store.back_up(backup, replace=False)
        await say(store, session, "c", "d")
        later = await store.read(lambda view: (view.epoch(), view.feed_head()))
    between = None
    for _ in range(2):
        shutil.copy(backup, path)
        again = await add(path, session, *"wxyz")
        # A cursor from before the backup is valid. A later one is valid up to the backup.
        assert await common(path, session, *first) == (2, 2)
        assert await common(path, session, *later) == (2, 2)
        assert await common(path, session, *again) == (6, 6)
        if between is not None:  # the restored log has no events of the first restore
            assert await common(path, session, *between) == (0, 0)
        between = again


async def test_cursors_after_an_older_file_was_restored_with_accept_loss(path, tmp_path):
    session = await begin(path, "a", "b")
    seen = await add(path, session, "c")
    shutil.copy(path, tmp_path / "old.db")
    lost = await add(path, session, "d", "e")
    shutil.copy(tmp_path / "old.db", path)
    with pytest.raises(CommitsLost):
        await add(path, session, "x")
    await add(path, session, *"xyz", accept_loss=True)
    assert await common(path, session, *seen) == (3, 3)
    assert await common(path, session, *lost) == (0, 0)


async def test_cursors_after_an_older_file_was_restored_without_its_watermark(path, tmp_path):
    session = await begin(path, "a", "b")
    shutil.copy(path, tmp_path / "old.db")
    lost = await add(path, session, "d", "e")
    shutil.copy(tmp_path / "old.db", path)
    path.with_name("x.db.commits").unlink()
    await add(path, session, *"xyz")
    assert await common(path, session, *lost) == (0, 0)


async def test_cursors_after_the_whole_directory_was_restored(path, tmp_path):
    """The watermark is restored with it, so only the reader's epoch shows it."""
    session = await begin(path, "a", "b")
    shutil.copytree(path.parent, tmp_path / "old")
    lost = await add(path, session, "d", "e")
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "old", path.parent)
    await add(path, session, *"xyz")
    assert await common(path, session, *lost) == (0, 0)


async def test_cursors_of_two_diverged_copies_are_not_mixed_up(path, tmp_path):
    """Two copies of one database with different events, each put in the place of the other."""
    session = await begin(path, "a")
    shutil.copy(path, tmp_path / "old.db")
    one = await add(path, session, "b", "c")
    shutil.copy(path, tmp_path / "one.db")
    shutil.copy(tmp_path / "old.db", path)
    other = await add(path, session, *"uvwxyz", accept_loss=True)
    shutil.copy(tmp_path / "one.db", path)
    async with SqliteStore(path) as store:
        assert [problem.code for problem in await store.problems()] == ["watermark_unusable"]
        await say(store, session, "d")
    assert await common(path, session, *one) == (3, 3)
    assert await common(path, session, *other) == (0, 0)


async def test_restoring_a_backup_twice_is_not_a_loss(path, tmp_path):
    session = await begin(path, "a")
    async with SqliteStore(path) as store:
        await store.back_up(tmp_path / "backup.db", replace=False)
    for _ in range(2):
        shutil.copy(tmp_path / "backup.db", path)
        async with SqliteStore(path) as store:
            assert await store.problems() == ()
            for _ in range(9):
                await say(store, session, "b")


async def test_database_opens_after_a_crash_right_after_a_restore(path, tmp_path, monkeypatch):
    session = await begin(path, "a")
    async with SqliteStore(path) as store:
        await store.back_up(tmp_path / "backup.db", replace=False)
    shutil.copy(tmp_path / "backup.db", path)
    with monkeypatch.context() as patched:
        patched.setattr(
            "agent_orchestrator.stores.sqlite.connection._write_first_watermark", interrupted
        )
        with pytest.raises(KeyboardInterrupt):
            open_database(path)
    async with SqliteStore(path) as store:
        assert await store.problems() == ()
        assert await say(store, session, "b") == 2


def interrupted(*_):
    raise KeyboardInterrupt


async def test_database_of_an_older_schema_begins_its_first_epoch(path):
    with sqlite3.connect(path) as connection:
        for script in migrations()[:11]:
            connection.executescript(script)
        connection.execute("PRAGMA user_version = 11")
        connection.execute("PRAGMA application_id = 0x41674F72")
    connection.close()
    session = await begin(path, "a", "b")
    async with SqliteStore(path) as store:
        # Cursors of older versions have no epoch, only a number.
        assert len(await store.read(lambda view: view.feed(after="1", limit=9))) == 1
        assert await store.read(lambda view: view.last_common_seq(session.id, "none")) == 0


async def test_finding_the_last_common_event_takes_few_queries(path, tmp_path):
    session = a_session()
    async with SqliteStore(path) as store:
        await put(store, session)
        await say(store, session, *["x"] * 100)
        epoch = await store.read(lambda view: view.epoch())
        await store.back_up(tmp_path / "backup.db", replace=False)
    shutil.copy(tmp_path / "backup.db", path)
    async with SqliteStore(path) as store:
        for _ in range(40):
            await say(store, session, *["y"] * 500)
        looked = []

        def query(view):
            execute = view._execute
            view._execute = lambda *a: looked.append(a) or execute(*a)
            return view.last_common_seq(session.id, epoch)

        with anyio.fail_after(45):
            assert await store.read(query) == 100
        assert len(looked) < 25

"""Backups and checks of a database in use."""

import os
import shutil
import stat
import threading

import anyio
import anyio.to_thread
import apsw
import pytest

from agent_orchestrator.domain.errors import (
    CommitsLost,
    Conflict,
    InvalidRequest,
    StoreDamaged,
    Unavailable,
)
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = pytest.mark.anyio


async def append(store, session, *texts):
    return await store.transact(lambda tx: tx.append(session.id, drafts(*texts), NOW))


async def count(store):
    return await store.read(lambda view: view.event_count())


async def codes(store):
    return [problem.code for problem in await store.problems()]


async def test_backup_taken_under_load_is_sound_and_can_be_restored(tmp_path):
    path, target = tmp_path / "data.db", tmp_path / "copy.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, *["x" * 1000] * 500)
            copied = anyio.Event()
            seqs = []

            async def write():
                while not copied.is_set():
                    seqs.append(await append(store, session, "y"))

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(write)
                for _ in range(3):
                    size = await store.back_up(target, replace=True)
                    assert size == target.stat().st_size > 500_000
                copied.set()
            assert seqs
            await append(store, session, "after the copy")
            last = await count(store)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert target.stat().st_nlink == 1
        assert not list(tmp_path.glob("*partial*"))
        # Restored: it is behind the watermark, which is not a loss.
        shutil.copy(target, path)
        async with SqliteStore(path) as store:
            assert 501 <= await count(store) < last
            assert await codes(store) == []
            assert await store.check() == []
            await append(store, session, "going on")
        # From here on it is like any other: an older copy of it is a loss.
        async with SqliteStore(path) as store:
            assert await codes(store) == []
        shutil.copy(path, tmp_path / "old.db")
        async with SqliteStore(path) as store:
            await append(store, session, "more")
        shutil.copy(tmp_path / "old.db", path)
        with pytest.raises(CommitsLost):
            async with SqliteStore(path):
                pytest.fail("opened")


async def test_backup_does_not_overwrite_a_file_without_replace(tmp_path):
    target = tmp_path / "there"
    target.touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            for name in ("there", "dangling"):
                with pytest.raises(Conflict, match="already exists"):
                    await store.back_up(tmp_path / name, replace=False)
            assert not target.read_bytes()
            for _ in range(2):
                await store.back_up(target, replace=True)
                assert target.read_bytes().startswith(b"SQLite format 3\0")


async def test_backup_replaces_only_an_unused_database_of_ours(tmp_path):
    (tmp_path / "agentd.toml").write_text("[daemon]")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "agentd.toml")
    foreign = apsw.Connection(str(tmp_path / "foreign.db"))
    foreign.execute("CREATE TABLE t (x)")
    foreign.close()
    with anyio.fail_after(60):
        async with (
            SqliteStore(tmp_path / "data.db") as store,
            SqliteStore(tmp_path / "used.db") as used,
        ):
            await put(used, a_session())
            for name, words in (
                ("agentd.toml", "not a database of agentd"),
                ("foreign.db", "not a database of agentd"),
                ("fifo", "not a regular file"),
                ("link", "not a regular file"),
                ("used.db", "in use"),
            ):
                with pytest.raises(Conflict, match=words) as raised:
                    await store.back_up(tmp_path / name, replace=True)
                assert raised.value.details["path"] == str(tmp_path / name)
            assert await used.check() == []
    assert (tmp_path / "agentd.toml").read_text() == "[daemon]"
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert list(tmp_path.glob("*partial*")) == list(tmp_path.glob(".*partial*")) == []


@pytest.mark.parametrize("replace", [False, True])
async def test_backup_to_the_databases_own_files_is_refused(tmp_path, replace):
    path = tmp_path / "data.db"
    (tmp_path / "link").symlink_to(tmp_path)
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, a_session())
            own = {entry.name for entry in tmp_path.iterdir() if entry.is_file()} | {
                "data.db-journal",
                "data.db.commits",
            }
            assert len(own) >= 6
            for name in own:
                for folder in (tmp_path, tmp_path / "link", tmp_path / ".." / tmp_path.name):
                    with pytest.raises(InvalidRequest, match="own files"):
                        await store.back_up(folder / name, replace=replace)
            await put(store, a_session())
            assert await store.check() == []


async def test_backup_without_disk_space_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, *["x" * 1000] * 500)

            def full(_):
                raise apsw.FullError("database or disk is full")

            monkeypatch.setattr(
                "agent_orchestrator.stores.sqlite.maintenance._set_backup_identity", full
            )
            # The watermark may be about to be rewritten.
            note = {tmp_path / "data.db.commits", tmp_path / "data.db.commits.new"}
            before = set(tmp_path.iterdir()) - note
            with pytest.raises(Unavailable, match="no space"):
                await store.back_up(tmp_path / "copy.db", replace=False)
            assert set(tmp_path.iterdir()) - note == before
            assert await codes(store) == []


async def test_long_maintenance_ends_when_its_caller_or_the_store_ends(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, *["x" * 500] * 2000)
            begun = threading.Event()

            def endless(connection):
                begun.set()
                connection.execute(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
                    " SELECT count(*) FROM n"
                ).fetchall()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store._run_aside, endless)
                assert await anyio.to_thread.run_sync(begun.wait, 60)
                tasks.cancel_scope.cancel()
            assert await store.check() == []
        begun.clear()
        outcomes = []

        async def work(store):
            try:
                await store._run_aside(endless)
            except Unavailable as error:
                outcomes.append(str(error))

        async with anyio.create_task_group() as tasks, SqliteStore(path) as store:
            tasks.start_soon(work, store)
            assert await anyio.to_thread.run_sync(begun.wait, 60)
        assert outcomes == ["the store is closing"]
        async with SqliteStore(path) as store:
            assert await count(store) == 2000


async def test_check_reports_damage_until_it_is_repaired(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, *["x" * 3000] * 50)
        good = path.read_bytes()
        async with SqliteStore(path) as store:
            with path.open("r+b") as file:
                file.seek(20 * 4096)
                file.write(b"\xa5" * 4096 * 4)
            assert await store.check()
            assert await codes(store) == ["database_damaged"]
            with path.open("r+b") as file:
                file.write(good)
            assert await store.check() == []
            assert await codes(store) == []


async def test_each_check_reads_the_index_of_words_as_it_is(tmp_path):
    """What SQLite remembers of the index from the last check was taken for damage."""
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            for _ in range(3):
                for number in range(40):  # so many that SQLite merges parts of the index
                    await append(store, session, f"word{number} " * 20)
                assert await store.check() == []
            other = apsw.Connection(str(path))
            other.execute("DELETE FROM search_index_data WHERE id > 10")
            other.close()
            assert "search_index" in (await store.check())[0]


async def test_check_finds_inconsistent_rows(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, "a", "b", "c")
            other = apsw.Connection(str(path))
            other.execute("DELETE FROM events WHERE position = 2")
            assert "positions" in (await store.check())[0]
            other.execute("UPDATE events SET session = 77 WHERE position = 3")
            assert "refers to" in (await store.check())[0]
            other.close()


async def test_check_at_the_start_has_a_time_limit(tmp_path, monkeypatch):
    """What the check at the start does not reach is left to an explicit check."""
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, *["x" * 500] * 4000)
        data = bytearray(path.read_bytes())
        data[200 * 4096 : 201 * 4096] = b"\xa5" * 4096
        path.write_bytes(data)
        with pytest.raises(StoreDamaged):
            async with SqliteStore(path):
                pytest.fail("opened")
        monkeypatch.setattr("agent_orchestrator.stores.sqlite.connection.CHECK_LIMIT_S", 0.0)
        async with SqliteStore(path) as store:
            assert await store.check()

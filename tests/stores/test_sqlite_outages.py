"""The disk is full, broken or read-only, or the database locked: the errors, and the recovery.

The faults are injected below SQLite, in its calls to write and sync, or are real: a small
file system that is full, another program's lock.
"""

import logging
import os
import shutil
import subprocess
import sys

import anyio
import apsw
import pytest

from agent_orchestrator.domain.errors import StoreOpenError, Unavailable
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.ballast import SIZE
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = pytest.mark.anyio


class Disk(apsw.VFS):
    """The system's files, with faults on demand."""

    def __init__(self):
        self.fails = {}
        """The error by (call, the end of the file's name)."""
        self.left = {}
        """The number of calls that succeed before it."""
        self.heals_after = None
        """The number of failures after which calls succeed again, if not None."""
        super().__init__("faulty", "unix")

    def break_(self, call, suffix, error, *, after=0):
        self.fails[call, suffix] = error
        self.left[call, suffix] = after

    def mend(self):
        self.fails.clear()

    def check(self, call, name):
        for (of_call, suffix), error in [*self.fails.items()]:
            if of_call == call and name.endswith(suffix):
                if self.left[of_call, suffix] > 0:
                    self.left[of_call, suffix] -= 1
                else:
                    if self.heals_after is not None:
                        self.heals_after -= 1
                        if not self.heals_after:
                            self.mend()
                    raise error

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.check("open", path or "")
        return _File(self, path or "", name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk, path, name, flags):
        self._disk = disk
        self._path = path
        super().__init__("unix", name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        self._disk.check("write", self._path)
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802
        self._disk.check("sync", self._path)
        super().xSync(flags)

    def xRead(self, amount, offset):  # noqa: N802
        self._disk.check("read", self._path)
        return super().xRead(amount, offset)


@pytest.fixture
def disk():
    disk = Disk()
    before = apsw.vfs_names()[0]
    apsw.set_default_vfs("faulty")
    yield disk
    apsw.set_default_vfs(before)
    disk.unregister()


async def append(store, session, text="x", *, reserve=False):
    return await store.transact(
        lambda tx: tx.append(session.id, drafts(text), NOW), reserve=reserve
    )


async def codes(store):
    return [problem.code for problem in await store.problems()]


async def healed(store):
    """Wait until the store reports no problem, asking as the status call does."""
    with anyio.fail_after(60):
        while await store.problems():
            await anyio.sleep(0.05)


async def opening_ends():
    """Wait for the read that a store makes by itself after its opening."""
    with anyio.fail_after(60):
        while any(task.name == "store's index" for task in anyio.get_running_tasks()):
            await anyio.sleep(0.01)


async def texts(store, session):
    events = await store.read(lambda view: view.events(session.id, after=0, limit=500))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.data["text"] for event in events]


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("write", apsw.IOError("disk I/O error"), "disk_error"),
        ("sync", apsw.IOError("disk I/O error"), "disk_error"),
        ("write", apsw.ReadOnlyError("attempt to write a readonly database"), "database_read_only"),
    ],
)
async def test_disk_error_is_reported_until_the_disk_works_again(tmp_path, disk, call, error, code):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, "before")
            connection = store._database.writer
            notified = []
            with store.listen(notified.append):
                disk.break_(call, "-wal", error)
                for _ in range(3):
                    with pytest.raises(Unavailable, match=str(path)) as raised:
                        await append(store, session, "lost")
                    assert raised.value.retry_after_s >= 1
                    assert raised.value.details["problem"] == code
                    assert await codes(store) == [code]
                    assert await texts(store, session) == ["before"]
            assert notified == []
            disk.mend()
            await healed(store)
            assert store._database.writer is not connection
            assert await append(store, session, "after") == 2
        async with SqliteStore(path) as store:
            assert await codes(store) == []
            assert await texts(store, session) == ["before", "after"]


async def test_commit_with_an_unknown_outcome_says_so(tmp_path, disk):
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            session = a_session()
            await put(store, session)
            disk.break_("sync", "-wal", apsw.IOError("disk I/O error"))
            with pytest.raises(Unavailable, match="it is unknown"):
                await append(store, session)
            disk.mend()


@pytest.mark.parametrize(("call", "step"), [("write", 7), ("sync", 1)])
async def test_failing_writes_are_not_acknowledged_and_acknowledged_ones_not_lost(
    tmp_path, disk, call, step
):
    """The fault comes at each call of several commits in turn, and ends again."""
    path = tmp_path / "data.db"
    acknowledged, tried = [], []
    with anyio.fail_after(120):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            for after in range(30):
                disk.break_(call, "-wal", apsw.IOError("disk I/O error"), after=after % 10 * step)
                for number in range(3):
                    text = f"{after}/{number}"
                    tried.append(text)
                    try:
                        await append(store, session, text)
                    except Unavailable:
                        pass
                    else:
                        acknowledged.append(text)
                disk.mend()
                await healed(store)
            assert 0 < len(acknowledged) < len(tried)
            assert await texts(store, session) == acknowledged
        async with SqliteStore(path) as store:
            assert await texts(store, session) == acknowledged
            assert await codes(store) == []


async def test_write_error_affects_only_callers_of_the_commit_and_no_readers(tmp_path, disk):
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "data.db") as store:
            session = a_session()
            await put(store, session)
            disk.break_("write", "-wal", apsw.IOError("disk I/O error"))
            outcomes = []

            async def write(number):
                try:
                    await append(store, session, str(number))
                except Unavailable as error:
                    outcomes.append(error)

            async with anyio.create_task_group() as tasks:
                for number in range(150):
                    tasks.start_soon(write, number)
                for _ in range(20):
                    assert await texts(store, session) == []
            assert len({id(error) for error in outcomes}) == 150
            disk.mend()
            await healed(store)


async def test_full_disk_refuses_new_work_and_accepts_reserved_writes(tmp_path, disk):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            ballast = tmp_path / "data.db.ballast"
            assert ballast.stat().st_blocks * 512 >= SIZE
            assert ballast.stat().st_mode & 0o777 == 0o600

            # Writes fail while the ballast is there: it takes the last space.
            class Full(Exception):
                pass

            original = Disk.check

            def check(self, call, name):
                if call == "write" and name.endswith("-wal") and ballast.exists():
                    raise apsw.FullError("database or disk is full")
                original(self, call, name)

            disk.check = check.__get__(disk)
            with pytest.raises(Unavailable, match=r"disk .* is full") as raised:
                await append(store, session, "new")
            assert raised.value.details["problem"] == "disk_full"
            assert str(path) in str(raised.value)
            assert not ballast.exists()
            assert await append(store, session, "outcome", reserve=True) == 1
            with pytest.raises(Unavailable):
                await append(store, session, "new")
            # In one commit with others, too.
            results = []

            async def write(text, *, reserve):
                try:
                    results.append(await append(store, session, text, reserve=reserve))
                except Unavailable:
                    results.append(text)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: write("new", reserve=False))
                tasks.start_soon(lambda: write("outcome 2", reserve=True))
            assert sorted(results, key=str) == [2, "new"]
            assert await codes(store) == ["disk_full"]
            disk.check = original.__get__(disk)
            await healed(store)
            assert ballast.stat().st_blocks * 512 >= SIZE
            assert await append(store, session, "room again") == 3
            assert await texts(store, session) == ["outcome", "outcome 2", "room again"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system takes root")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip(f"no small file system here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_store_recovers_when_a_full_disk_has_space_again(small_disk):
    path = small_disk / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            acknowledged = []

            async def fill():
                for number in range(1000):
                    await append(store, session, f"{number} " + "x" * 100_000)
                    acknowledged.append(number)

            with pytest.raises(Unavailable, match=r"disk .* is full"):
                await fill()
            assert acknowledged
            stuffing = small_disk / "stuffing"
            with stuffing.open("wb") as file:
                try:
                    # All space but the ballast's is taken by another file.
                    free = os.statvfs(small_disk)
                    file.write(b"x" * (free.f_bavail * free.f_frsize - 2 * 1024 * 1024))
                except OSError:
                    pytest.fail("it was to fit")
            assert "disk_full" in await codes(store)  # the watermark beside it may fail, too
            with pytest.raises(Unavailable):
                await append(store, session, "new")
            seq = await append(store, session, "outcome", reserve=True)
            assert seq == len(acknowledged) + 1
            stuffing.unlink()
            assert len(await texts(store, session)) == seq
            await anyio.run_process(["mount", "-o", "remount,size=40m", str(small_disk)])
            await healed(store)
            assert await append(store, session, "room") == seq + 1
        async with SqliteStore(path) as store:
            assert len(await texts(store, session)) == seq + 1


def stuff(place, *, leave):
    """Fill a file system except for ``leave`` bytes."""
    free = os.statvfs(place)
    room = free.f_bavail * free.f_frsize - leave
    (place / "stuffing").write_bytes(b"x" * room)


@pytest.mark.parametrize("has_ballast", [True, False])
async def test_store_opened_on_a_full_disk_reads_and_refuses_new_work(small_disk, has_ballast):
    path = small_disk / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, "a")
        if has_ballast:
            stuff(small_disk, leave=0)
        else:
            (small_disk / "data.db.ballast").unlink()
            stuff(small_disk, leave=512 * 1024)
        async with SqliteStore(path) as store:
            assert "disk_full" in await codes(store)  # the watermark beside it may fail, too
            assert await texts(store, session) == ["a"]
            with pytest.raises(Unavailable):
                await append(store, session, "b")
            assert await append(store, session, "outcome", reserve=True) == 2
            (small_disk / "stuffing").unlink()
            await healed(store)
            assert await append(store, session, "b") == 3


_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


async def test_lock_of_another_program_is_reported_after_a_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.connection.BUSY_TIMEOUT_MS", 300)
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            async with await anyio.open_process(
                [sys.executable, "-c", _LOCKER, str(path)], stderr=None
            ) as process:
                assert process.stdout is not None
                assert process.stdin is not None
                assert (await process.stdout.receive()).startswith(b"locked")
                for _ in range(2):
                    with pytest.raises(Unavailable, match="locked by another program"):
                        await append(store, session, "x")
                assert await codes(store) == ["database_locked"]
                assert await texts(store, session) == []
                await process.stdin.aclose()
                await process.wait()
            await healed(store)
            assert await append(store, session, "y") == 1


async def test_database_that_lost_commits_while_open_refuses_writes(tmp_path, disk):
    """After an error the connection is replaced. It must find all acknowledged commits."""
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, "a")
            disk.break_("write", "-wal", apsw.IOError("disk I/O error"))
            with pytest.raises(Unavailable):
                await append(store, session, "b")
            disk.mend()
            other = apsw.Connection(str(path))
            other.execute("UPDATE commits SET count = count - 2")
            other.close()
            for _ in range(2):
                await anyio.sleep(0.3)  # past the pause between tries
                with pytest.raises(Unavailable, match="2 commits lost"):
                    await append(store, session, "b")
            assert await codes(store) == ["commits_lost"]
            assert await texts(store, session) == ["a"]


async def test_damaged_page_is_reported_to_the_caller_that_reads_it(tmp_path):
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session, other = a_session(), a_session()
            await put(store, session, other)
            for _ in range(3):
                await append(store, session, "x" * 200_000)
            root = store._database.writer.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'events'"
            ).fetchone()[0]
        with path.open("r+b") as file:
            file.seek((root - 1) * 4096)
            page = file.read(4096)
            file.seek((root - 1) * 4096)
            file.write(b"\x00" * 4096)
        with pytest.raises(StoreOpenError, match="damaged"):
            async with SqliteStore(path):
                pytest.fail("opened")
        with path.open("r+b") as file:
            file.seek((root - 1) * 4096)
            file.write(page)
        async with SqliteStore(path) as store:
            with path.open("r+b") as file:
                file.seek((root - 1) * 4096)
                file.write(b"\x00" * 4096)
            with pytest.raises(Unavailable, match="damaged"):
                await texts(store, session)
            assert await codes(store) == ["database_damaged"]
            assert await store.read(lambda view: view.session(other.id)) is not None
            with path.open("r+b") as file:
                file.seek((root - 1) * 4096)
                file.write(page)


@pytest.mark.parametrize("lasts", [True, False], ids=["for good", "for a moment"])
async def test_page_that_cannot_be_read_is_reported_as_a_disk_error(tmp_path, disk, lasts):
    """SQLite calls the database malformed in either case."""
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            session, other = a_session(), a_session()
            await put(store, session, other)
            for _ in range(3):
                await append(store, session, "x" * 200_000)
        async with SqliteStore(path) as store:
            await store.read(lambda view: view.session(other.id))
            await opening_ends()
            error = apsw.IOError("disk I/O error")
            error.extendedresult = apsw.SQLITE_IOERR_CORRUPTFS  # as the unix VFS reports EIO
            disk.break_("read", "data.db", error)
            if not lasts:
                disk.heals_after = 1
            with pytest.raises(Unavailable, match=r"could not be read|cannot be read") as raised:
                await texts(store, session)
            assert raised.value.details["problem"] == "disk_error"
            assert await codes(store) == ["disk_error"]
            if lasts:
                assert any("error code" in one or "I/O" in one for one in await store.check())
                assert await codes(store) == ["disk_error"]
            disk.mend()
            disk.heals_after = None
            assert len(await texts(store, session)) == 3
            assert await store.check() == []
            assert await codes(store) == []
        for after in (2, 5, 20):  # of some 150 pages
            disk.break_("read", "data.db", error, after=after)
            with pytest.raises(StoreOpenError) as refused:
                async with SqliteStore(path):
                    pytest.fail("opened")
            assert "damaged" not in str(refused.value)
            disk.mend()
        async with SqliteStore(path) as store:
            assert len(await texts(store, session)) == 3


async def test_write_ahead_log_is_kept_if_the_last_checkpoint_fails(tmp_path, disk, caplog):
    path = tmp_path / "data.db"
    with anyio.fail_after(60), caplog.at_level(logging.WARNING):
        async with SqliteStore(path) as store:
            session = a_session()
            await put(store, session)
            await append(store, session, "a")
            disk.break_("write", "data.db", apsw.IOError("disk I/O error"))
        disk.mend()
        assert "write-ahead log" in caplog.text
        async with SqliteStore(path) as store:
            assert await texts(store, session) == ["a"]
            assert await codes(store) == []

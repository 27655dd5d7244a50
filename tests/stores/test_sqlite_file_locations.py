"""The open file and the file at its path: one daemon per file, no writes to a file that was moved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anyio
import apsw
import pytest

from agent_orchestrator.domain.errors import (
    Conflict,
    StoreLocked,
    StoreOpenError,
    Unavailable,
)
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.ballast import Ballast
from agent_orchestrator.stores.sqlite.files import OWN_FILES
from agent_orchestrator.stores.sqlite.health import Health
from agent_orchestrator.stores.sqlite.watermark import Watermark, WatermarkFile
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """One event loop: the tests are about files and other processes."""
    return "asyncio"


async def append(store, session, text="x"):
    return await store.transact(lambda tx: tx.append(session.id, drafts(text), NOW))


async def codes(store):
    return [problem.code for problem in await store.problems()]


async def last_seq(store, session):
    found = await store.read(lambda view: view.session(session.id))
    return None if found is None else found.last_seq


async def make(path, *, events=1):
    session = a_session()
    async with SqliteStore(path) as store:
        await put(store, session)
        for _ in range(events):
            await append(store, session)
    return session


# --- links beside the database ----------------------------------------------------------------


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("end", OWN_FILES[1:])
async def test_symbolic_link_in_the_place_of_a_database_file_is_not_followed(tmp_path, end, is_new):
    path, other = tmp_path / "x.db", tmp_path / "other"
    other.write_text("as it was")
    if not is_new:
        await make(path)
    beside = path.with_name(path.name + end)
    beside.unlink(missing_ok=True)
    beside.symlink_to(other)
    with pytest.raises(StoreOpenError, match=f"{end} is a symbolic link"):
        await make(path)
    assert other.read_text() == "as it was"


async def test_symbolic_link_made_beside_an_open_database_is_not_followed(tmp_path):
    path, other = tmp_path / "x.db", tmp_path / "other"
    other.write_text("as it was")
    watermark, ballast = WatermarkFile(path), Ballast(path)
    watermark.path.with_name(f"{watermark.path.name}.new").symlink_to(other)
    watermark.write(Watermark("name", 7))
    assert watermark.read() == Watermark("name", 7)
    ballast.path.symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        ballast.fill()
    assert other.read_text() == "as it was"


# --- the file is moved or replaced ------------------------------------------------------------


def sizes(path):
    """Return the sizes of a database's files, without the watermark, which is written aside."""
    files = path.parent.glob("x.db*")
    return {file: file.stat().st_size for file in files if ".commits" not in file.name}


def removed(path):
    path.unlink()


def renamed(path):
    path.rename(path.with_name("y.db"))


def directory_renamed(path):
    path.parent.rename(path.parent.with_name("elsewhere"))


def directory_removed(path):
    shutil.rmtree(path.parent)


def directory_replaced(path):
    path.parent.rename(path.parent.with_name("elsewhere"))
    shutil.copytree(path.parent.with_name("elsewhere"), path.parent)


def replaced(path):
    shutil.copy(path, path.with_name("backup.db"))
    path.with_name("backup.db").rename(path)


def log_removed(path):
    path.with_name(path.name + "-wal").unlink()


def log_replaced(path):
    log = path.with_name(path.name + "-wal")
    shutil.copy(log, log.with_name("log"))
    log.with_name("log").rename(log)


def index_removed(path):
    path.with_name(path.name + "-shm").unlink()


TAKEN = [
    removed,
    renamed,
    directory_renamed,
    directory_removed,
    directory_replaced,
    replaced,
    log_removed,
    log_replaced,
    index_removed,
]


@pytest.mark.parametrize("take", TAKEN)
async def test_write_is_refused_if_a_database_file_was_moved_or_replaced(tmp_path, take):
    path = tmp_path / "data" / "x.db"
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, session)
            await append(store, session)
            take(path)
            left = sizes(path)
            # The problem is reported before anything is written.
            assert await codes(store) == ["database_replaced"]
            for _ in range(2):
                with pytest.raises(
                    Unavailable, match=r"x\.db.*(put it back|start it again)"
                ) as raised:
                    await append(store, session)
                assert raised.value.details["problem"] == "database_replaced"
                with pytest.raises(Unavailable):
                    await store.transact(
                        lambda tx: tx.append(session.id, drafts("x"), NOW), reserve=True
                    )
            assert await last_seq(store, session) == 1
            assert "x.db" in (await store.check())[0]
            # The open file can be backed up; a check and a backup make no file under the old name.
            await store.back_up(tmp_path / "saved.db", replace=False)
            assert sizes(path) == left
        async with SqliteStore(tmp_path / "saved.db") as store:
            assert await last_seq(store, session) == 1


async def test_writes_resume_when_the_file_is_back_in_its_place(tmp_path):
    path, away = tmp_path / "x.db", tmp_path / "y.db"
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, session)
            path.rename(away)
            with pytest.raises(Unavailable):
                await append(store, session)
            away.rename(path)
            assert await codes(store) == []
            assert await append(store, session) == 1
        async with SqliteStore(path) as store:
            assert await last_seq(store, session) == 1


async def test_renamed_database_is_complete_after_closing(tmp_path):
    path, away = tmp_path / "x.db", tmp_path / "y.db"
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, session)
            await append(store, session)
            path.rename(away)
        async with SqliteStore(away) as store:
            assert await last_seq(store, session) == 1


async def test_write_is_refused_if_the_symbolic_link_now_leads_elsewhere(tmp_path):
    one, other, link = tmp_path / "one.db", tmp_path / "other.db", tmp_path / "x.db"
    await make(other)
    link.symlink_to(one)
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(link) as store:
            await put(store, session)
            link.unlink()
            link.symlink_to(other)
            with pytest.raises(Unavailable, match=r"x\.db was replaced"):
                await append(store, session)


async def test_commit_is_not_acknowledged_if_the_file_vanishes_during_it(tmp_path, monkeypatch):
    """The file is removed between the check before the commit and the one after it."""
    path = tmp_path / "x.db"
    session = a_session()
    find = Health.check_files

    def looked(self, *, is_written):
        if is_written and path.exists():
            path.unlink()
        return find(self, is_written=is_written)

    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, session)
            monkeypatch.setattr(Health, "check_files", looked)
            with pytest.raises(Unavailable, match="it is unknown"):
                await append(store, session)


async def test_files_of_another_database_in_the_same_place_are_left_alone(tmp_path):
    """The directory was replaced by one with its own watermark."""
    path = tmp_path / "data" / "x.db"
    note = path.with_name("x.db.commits")
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            await put(store, session)
            path.parent.rename(tmp_path / "elsewhere")
            path.parent.mkdir()
            note.write_text("theirs")
            with pytest.raises(Unavailable):
                await append(store, session)
        assert [file.name for file in path.parent.iterdir()] == ["x.db.commits"]
        assert note.read_text() == "theirs"


async def test_checking_the_files_takes_a_few_stat_calls_per_commit(tmp_path, monkeypatch):
    stats = []
    stat = Path.stat
    session = a_session()
    with anyio.fail_after(60):
        async with SqliteStore(tmp_path / "x.db") as store:
            await put(store, session)
            monkeypatch.setattr(
                Path, "stat", lambda self, **kw: stats.append(self) or stat(self, **kw)
            )
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(append, store, session)
            monkeypatch.undo()
            assert await last_seq(store, session) == 200
    assert 0 < len(stats) < 200  # per group commit, not per change


async def test_backup_over_a_hard_link_of_the_database_is_refused(tmp_path):
    path = tmp_path / "x.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            os.link(path, tmp_path / "same.db")
            with pytest.raises(Conflict, match="in use"):
                await store.back_up(tmp_path / "same.db", replace=True)


# --- one file, two names ----------------------------------------------------------------------

_HOLDER = """
import sys, anyio
from agent_orchestrator.stores.sqlite import SqliteStore
async def main():
    async with SqliteStore(sys.argv[1]):
        print("open", flush=True)
        sys.stdin.read()
try:
    anyio.run(main)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def opened_by_another(path):
    """Open the store in another process; return its output."""
    argv = [sys.executable, "-c", _HOLDER, str(path)]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    ).stdout


async def test_lock_is_on_the_database_file_itself(tmp_path):
    """Also if the lock file was removed or the database renamed."""
    path = tmp_path / "data" / "x.db"
    with anyio.fail_after(60):
        async with SqliteStore(path):
            path.with_name("x.db.lock").unlink()
            with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
                async with SqliteStore(path):
                    pytest.fail("opened")
            path.rename(path.with_name("y.db"))
            before = sorted(path.parent.iterdir())
            said = opened_by_another(path.with_name("y.db"))
            assert said.startswith(f"StoreLocked {path.with_name('y.db')} is in use by process ")
            assert sorted(path.parent.iterdir()) == before


def test_refused_store_keeps_sqlites_locks_of_the_open_one(tmp_path):
    """Closing any descriptor of a file drops all the locks a process has on it."""
    program = """
import anyio, os, sys
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.domain.errors import StoreLocked
def locks():
    inode = os.stat(sys.argv[1]).st_ino
    lines = [line.split() for line in open("/proc/locks")]
    return sorted(l[1] for l in lines if l[5].endswith(f":{inode}") and l[4] == str(os.getpid()))
async def main():
    async with SqliteStore(sys.argv[1]):
        before = locks()
        assert "POSIX" in before and "FLOCK" in before, before
        os.unlink(sys.argv[1] + ".lock")
        try:
            async with SqliteStore(sys.argv[1]):
                raise SystemExit("opened")
        except StoreLocked:
            pass
        assert locks() == before
    print("kept", flush=True)
anyio.run(main)
"""
    argv = [sys.executable, "-c", program, str(tmp_path / "x.db")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "kept\n", done.stderr


def in_a_mount_namespace(script, *args):
    """Run a shell script as root of a new mount namespace."""
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh", *args]
    if os.geteuid() == 0:
        argv[1:3] = []
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")


@pytest.fixture
def mounts():
    if in_a_mount_namespace("mount --bind /tmp /tmp").returncode:
        pytest.skip("no mount namespaces here")


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("way", ["file", "directory"])
async def test_file_mounted_in_two_places_has_one_daemon(tmp_path, way):
    """As docker's ``-v ./x.db:/data/x.db`` and ``-v ./data:/data`` make it."""
    path, other = tmp_path / "one" / "x.db", tmp_path / "two" / "x.db"
    await make(path)
    other.parent.mkdir()
    other.touch()
    bind = f'mount --bind "{path}" "{other}"'
    if way != "file":
        bind = f'mount --bind "{path.parent}" "{other.parent}"'
    script = f'{bind}; exec "$1" -c "$2" "{other}" </dev/null'
    async with SqliteStore(path):
        done = await anyio.to_thread.run_sync(in_a_mount_namespace, script, sys.executable, _HOLDER)
    assert done.stdout.startswith("StoreLocked"), (done.stdout, done.stderr)
    if way == "file":
        # It is also refused without another daemon: the log would not be beside the file.
        before = path.read_bytes()
        done = await anyio.to_thread.run_sync(in_a_mount_namespace, script, sys.executable, _HOLDER)
        assert "mount point" in done.stdout, (done.stdout, done.stderr)
        assert not list(other.parent.glob("x.db?*"))
        assert path.read_bytes() == before


async def test_hard_link_to_an_open_database_is_refused(tmp_path):
    path = tmp_path / "x.db"
    with anyio.fail_after(60):
        async with SqliteStore(path) as store:
            os.link(path, tmp_path / "y.db")
            with pytest.raises(StoreOpenError, match=r"hard link|in use"):
                async with SqliteStore(tmp_path / "y.db"):
                    pytest.fail("opened")
            await put(store, a_session())


# --- forked children --------------------------------------------------------------------------

_FORK = """
import os, anyio, traceback

async def fork(store, child):
    '''Fork, and call a function in the child, which ends with status 0 if that succeeds.'''
    # A connection that another thread uses during a fork stays in use in the child, which could never
    # close it. The store reads once after its opening, to find texts that are not indexed.
    while any(task.name == "store's index" for task in anyio.get_running_tasks()):
        await anyio.sleep(0.001)
    pid = os.fork()
    if not pid:
        try:
            child()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid

def is_successful(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

_FORKS = f"""
{_FORK}
import gc, os, sys, anyio, multiprocessing, subprocess
from concurrent.futures import ProcessPoolExecutor
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_session, put

def nothing():
    return os.getpid()

def wait(pipe):
    os.read(pipe, 1)

def use(store):
    '''Try to use the file and to release its lock: the child has the objects, and may do neither.'''
    try:
        store._check_accepting()
    except Unavailable as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("not refused")
    for lock in store._database.locks:
        lock.release()
    for connection in (*store._database.readers, store._database.writer):
        connection.close()

async def main(path, how):
    children, inner, outer = [], *os.pipe()
    async with SqliteStore(path) as store:
        await put(store, a_session())
        if how == "pool":
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
            assert pool.submit(nothing).result() != os.getpid()
        elif how == "multiprocessing":
            child = multiprocessing.get_context("fork").Process(target=wait, args=(inner,))
            child.start()
        elif how == "exec":
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
        elif how == "using":
            assert is_successful(await fork(store, lambda: use(store)))
            assert os.path.exists(path + "-wal")
            await put(store, a_session(id="ses_other"))
            try:
                async with SqliteStore(path):
                    raise SystemExit("opened twice")
            except Exception as error:
                assert type(error).__name__ == "StoreLocked", error
    async with SqliteStore(path) as store:
        await put(store, a_session(id="ses_more"))
    print("opened again", flush=True)
    if how == "pool":
        pool.shutdown()
    elif how == "multiprocessing":
        os.write(outer, b"x")
        child.join()
    elif how == "exec":
        child.kill()
        child.wait()

anyio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("how", ["pool", "multiprocessing", "exec", "using"])
def test_forked_child_does_not_hold_the_lock(tmp_path, how):
    argv = [sys.executable, "-W", "ignore", "-c", _FORKS, str(tmp_path / "x.db"), how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "opened again\n", done.stderr


def test_forked_child_that_closes_late_does_not_remove_the_next_ones_log(tmp_path):
    """SQLite removes the log of a database when its last connection is closed: by name."""
    program = f"""
{_FORK}
import subprocess, sys
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_session, put
def close_late(store, inner, outer):
    os.close(outer)
    os.read(inner, 1)
    for one in (store._database.maintenance, *store._database.readers, store._database.writer):
        one.close()
async def main(path):
    inner, outer = os.pipe()
    async with SqliteStore(path) as store:
        await put(store, a_session(id="ses_0"))
        child = await fork(store, lambda: close_late(store, inner, outer))
    subprocess.run([sys.executable, "-c", NEXT, path], check=True)
    assert os.path.getsize(path + "-wal")
    os.write(outer, b"x")
    assert is_successful(child)
    async with SqliteStore(path) as store:
        found = await store.read(lambda view: view.sessions(limit=9))
    print(*(session.id for session in found), flush=True)
NEXT = '''
import os, sys, anyio
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_session, put
async def main():
    async with SqliteStore(sys.argv[1]) as store:
        await put(store, a_session(id="ses_1"))
        os._exit(0)
anyio.run(main)
'''
anyio.run(main, sys.argv[1])
"""
    argv = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "x.db")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ses_0 ses_1\n", done.stderr


def test_lock_does_not_keep_other_programs_from_reading(tmp_path):
    """Other programs read beside a daemon as before: their locks are POSIX locks."""
    program = """
import anyio, subprocess, sys
from agent_orchestrator.stores.sqlite import SqliteStore
async def main(path):
    async with SqliteStore(path):
        look = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM runs').fetchone())"
        subprocess.run([sys.executable, "-c", look, path], check=True)
anyio.run(main, sys.argv[1])
"""
    argv = [sys.executable, "-c", program, str(tmp_path / "x.db")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "(0,)\n", done.stderr


def test_bundled_sqlite_supports_closing_without_a_checkpoint(tmp_path):
    connection = apsw.Connection(str(tmp_path / "x.db"))
    connection.pragma("journal_mode", "wal")
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert (tmp_path / "x.db-wal").stat().st_size

"""Private files of runs: only their user can read them, and none is left behind."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator.hosts import scratch, trees
from agent_orchestrator.user_state import user_state

pytestmark = pytest.mark.anyio

_HOLDER = """
import sys
import anyio
from agent_orchestrator.hosts import scratch, trees
async def main():
    async with scratch.private_directory() as path:
        scratch.write(path / "x", b"x")
        print(path, flush=True)
        sys.stdin.read()
anyio.run(main)
"""

_LOCKER = """
import fcntl, os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trees, "REMOVE_TIMEOUT_S", 300.0)  # the tests may run on a busy machine


@contextmanager
def program(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a Python program that ends with the scope."""
    command = [sys.executable, "-c", *arguments]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with made:
        try:
            yield made
        finally:
            made.kill()


def names() -> set[str]:
    """Return the names in the directory of all runs."""
    state = user_state()
    assert state is not None
    return {path.name for path in state.runs.iterdir()}


async def test_only_directories_of_killed_processes_are_removed() -> None:
    with program(_HOLDER) as holder:
        async with scratch.private_directory() as own:
            assert holder.stdout is not None
            other = Path(holder.stdout.readline().strip())
            assert (other / "x").read_bytes() == b"x"
            scratch.remove_stale()
            assert names() == {own.name, other.name}
            holder.kill()
            holder.wait()
            scratch.remove_stale()
            assert names() == {own.name}
        assert not names()


async def test_private_files_are_new_and_readable_by_their_user_only() -> None:
    async with scratch.private_directory() as own:
        scratch.write(own / "x", b"x")
        (own / "link").symlink_to(own / "x")
        for taken in ("x", "link"):
            with pytest.raises(FileExistsError):
                scratch.write(own / taken, b"y")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (own.parent, own, own / "x")]
    assert modes == [0o700, 0o700, 0o600]


async def test_temporary_directory_is_used_without_a_state_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scratch, "user_state", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch.remove_stale()
    async with scratch.private_directory() as own:
        scratch.write(own / "x", b"x")
        assert own.parent == tmp_path
    assert not own.exists()


async def test_symbolic_link_in_the_place_of_a_run_is_not_followed(tmp_path: Path) -> None:
    async with scratch.private_directory():
        state = user_state()
        assert state is not None
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "x").touch()
        (state.runs / "run-link").symlink_to(tmp_path / "kept")
        scratch.remove_stale()
    assert (tmp_path / "kept" / "x").exists()


@contextmanager
def locked_by_another() -> Iterator["subprocess.Popen[str]"]:
    """Have the directory of all runs locked by another process; yield that."""
    state = user_state()
    assert state is not None
    state.runs.mkdir(parents=True, mode=0o700, exist_ok=True)
    with program(_LOCKER, str(state.runs)) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        yield locker


async def test_lock_of_another_process_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with locked_by_another() as locker:
        tries = []
        lock = scratch._lock

        def counted(path: Path, how: int) -> int:
            tries.append(path)
            if len(tries) == 3:
                locker.kill()
                locker.wait()
            return lock(path, how)

        monkeypatch.setattr(scratch, "_lock", counted)
        with anyio.fail_after(60):
            async with scratch.private_directory() as own:
                assert own.exists()
        assert len(tries) == 4  # the third try got it, the fourth is of its own directory


async def test_waiting_for_the_lock_can_be_cancelled() -> None:
    with locked_by_another(), anyio.fail_after(60):
        with anyio.move_on_after(0.2) as scope:
            async with scratch.private_directory():
                raise AssertionError("it is locked")
        assert scope.cancelled_caught
        assert not names()


async def test_lock_that_is_not_released_is_an_error_naming_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scratch, "_LOCK_TIMEOUT_S", 0.1)
    state = user_state()
    assert state is not None
    with locked_by_another() as locker:
        with pytest.raises(OSError, match="has locked it") as caught, anyio.fail_after(60):
            async with scratch.private_directory():
                raise AssertionError("it is locked")
        assert str(state.runs) in str(caught.value)
        assert f"process {locker.pid} " in str(caught.value)
        assert not names()


DEPTH = sys.getrecursionlimit() + 100


def fill(top: Path, depth: int) -> None:
    """Make a directory in a directory and so on, a file and a link in each."""
    place = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT, dir_fd=place))
        os.symlink("..", "link", dir_fd=place)
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


@ON_ONE_LOOP
@pytest.mark.parametrize("has_state", [True, False])
async def test_a_very_deep_directory_is_removed(
    has_state: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not has_state:
        monkeypatch.setattr(scratch, "user_state", lambda: None)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with scratch.private_directory() as own:
        fill(own, DEPTH)
    assert not own.exists()


@ON_ONE_LOOP
async def test_stale_directories_of_any_form_are_removed() -> None:
    async with scratch.private_directory():
        state = user_state()
        assert state is not None
        before = names()
        for name in ("run-deep", "run-kept", "run-shut"):
            (state.runs / name).mkdir()
        fill(state.runs / "run-deep", DEPTH)
        for number in range(500):
            (state.runs / "run-kept" / str(number)).mkdir()
        inner = state.runs / "run-kept" / "shut"
        (inner / "in" / "deeper").mkdir(parents=True)
        (inner / "in").chmod(0)
        inner.chmod(0)
        (state.runs / "run-shut" / "x").mkdir(parents=True)
        (state.runs / "run-shut").chmod(0)
        scratch.remove_stale()
        assert names() == before


async def test_symbolic_links_in_a_directory_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept" / "x").mkdir(parents=True)
    mode = stat.S_IMODE((tmp_path / "kept").stat().st_mode)
    (tmp_path / "kept").chmod(0o500)
    async with scratch.private_directory() as own:
        (own / "d").mkdir()
        (own / "link").symlink_to(tmp_path / "kept")
        (own / "d" / "link").symlink_to(tmp_path / "kept")
    assert not own.exists()
    assert (tmp_path / "kept" / "x").exists()
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o500
    (tmp_path / "kept").chmod(mode)


async def test_directory_that_takes_too_long_to_remove_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trees, "REMOVE_TIMEOUT_S", -1.0)
    async with scratch.private_directory() as own:
        (own / "d").mkdir()
    assert own.exists()
    monkeypatch.setattr(trees, "REMOVE_TIMEOUT_S", 10.0)
    scratch.remove_stale()
    assert not own.exists()


def test_removal_of_a_wide_directory_keeps_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "top" / "inner"
    inner.mkdir(parents=True)
    for number in range(100):
        (inner / str(number)).touch()
    monkeypatch.setattr(trees, "REMOVE_TIMEOUT_S", 10.0)
    seconds = iter(range(10_000))  # each call of the clock advances it by a second
    monkeypatch.setattr(trees.time, "monotonic", lambda: float(next(seconds)))
    trees.remove(tmp_path / "top")
    assert 80 < len(list(inner.iterdir())) < 100


def test_empty_directories_are_removed_without_moving_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / "top" / "inner" / str(number)).mkdir(parents=True)
    monkeypatch.setattr(trees, "_is_moved", lambda *_: pytest.fail("it was moved"))
    trees.remove(tmp_path / "top")
    assert not (tmp_path / "top").exists()


_MOUNTED = """
import subprocess, sys
from pathlib import Path
from agent_orchestrator.hosts import trees
top, kept = map(Path, sys.argv[1:])
for name, what in (("bound", ["--bind", kept]), ("deep/down/bound", ["--bind", kept]), ("tmpfs", ["-t", "tmpfs", "x"])):
    (top / name).mkdir(parents=True)
    subprocess.run(["mount", *what, top / name], check=True)
(top / "tmpfs" / "x").touch()
(top / "file").touch()
(top / "bound-file").touch()
subprocess.run(["mount", "--bind", kept / "x", top / "bound-file"], check=True)
trees.remove(top)
print(*sorted(str(path.relative_to(top)) for path in top.rglob("*")))
subprocess.run(["mount", "--bind", kept, top], check=True)
trees.remove(top)
"""


async def test_mounted_file_systems_in_a_directory_are_not_removed(tmp_path: Path) -> None:
    kept, top = tmp_path / "kept", tmp_path / "top"
    (kept / "inner").mkdir(parents=True)
    (kept / "x").write_text("as it was")
    (kept / "inner").chmod(0o500)
    kept.chmod(0o555)
    top.mkdir()
    command = ["unshare", "--mount", sys.executable, "-c", _MOUNTED, str(top), str(kept)]
    run = partial(subprocess.run, command, capture_output=True, text=True, timeout=60)
    done = await anyio.to_thread.run_sync(run)
    if "Operation not permitted" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stderr
    left = done.stdout.split()
    assert "file" not in left
    assert [name.rpartition("/")[2] for name in left].count("inner") == 2
    assert (kept / "x").read_text() == "as it was"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o555
    assert stat.S_IMODE((kept / "inner").stat().st_mode) == 0o500
    trees.remove(top)  # the mounts are gone
    assert not top.exists()

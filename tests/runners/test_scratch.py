"""Private files of runs: nobody else reads them, and none is left."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent_orchestrator.runners import scratch
from agent_orchestrator.user_state import user_state

_HOLDER = """
import sys
from agent_orchestrator.runners import scratch
with scratch.private_directory() as path:
    scratch.write(path / "x", b"x")
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_only_what_a_killed_process_has_left_is_removed() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder, scratch.private_directory() as own:
        try:
            assert holder.stdout is not None
            other = Path(holder.stdout.readline().strip())
            assert (other / "x").read_bytes() == b"x"
            scratch.remove_leftovers()
            assert other.exists()
        finally:
            holder.kill()
        holder.wait()
        scratch.remove_leftovers()
        assert not other.exists()
        assert own.exists()
    assert not own.exists()


def test_its_files_are_its_users_and_new() -> None:
    with scratch.private_directory() as own:
        scratch.write(own / "x", b"x")
        (own / "link").symlink_to(own / "x")
        for taken in ("x", "link"):
            with pytest.raises(FileExistsError):
                scratch.write(own / taken, b"y")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (own.parent, own, own / "x")]
    assert modes == [0o700, 0o700, 0o600]


def test_without_a_state_directory_it_is_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scratch, "user_state", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch.remove_leftovers()
    with scratch.private_directory() as own:
        scratch.write(own / "x", b"x")
        assert own.parent == tmp_path
    assert not own.exists()


def test_a_link_in_the_place_of_a_run_is_not_followed(tmp_path: Path) -> None:
    with scratch.private_directory():
        state = user_state()
        assert state is not None
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "x").touch()
        (state.runs / "run-link").symlink_to(tmp_path / "kept")
        scratch.remove_leftovers()
    assert (tmp_path / "kept" / "x").exists()

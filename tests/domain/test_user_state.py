"""The directory of a user's private files."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from agent_orchestrator.user_state import (
    make_private_directory,
    read_private,
    user_state,
    write_private,
)

NOBODY = 4_000_000_000 % 2**31  # no entry in the user database


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _root(environ: dict[str, str]) -> Path | None:
    found = user_state(environ)
    return found and found.root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of this user in the user database."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    entry = pwd.getpwuid(os.geteuid())
    changed = pwd.struct_passwd((*entry[:5], str(path), entry[6]))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: changed)
    return path


def test_state_directory_is_below_xdg_state_home_or_home(home: Path, tmp_path: Path) -> None:
    other, xdg = tmp_path / "other", tmp_path / "xdg" / "state"
    other.mkdir()
    own = home / ".local/state/agent-orchestrator"
    assert _root({"XDG_STATE_HOME": str(xdg), "HOME": str(other)}) == xdg / "agent-orchestrator"
    assert _root({"HOME": str(other)}) == other / ".local/state/agent-orchestrator"
    assert _root({}) == own  # as cron's environment
    assert _root({"XDG_STATE_HOME": "relative", "HOME": "also/relative"}) == own
    assert not xdg.exists()  # nothing is created
    assert list(home.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand over files")
def test_home_of_another_user_is_not_used(home: Path, tmp_path: Path) -> None:
    alice = tmp_path / "alice"
    alice.mkdir()
    os.chown(alice, 1000, 1000)
    environ = {
        "HOME": str(alice),
        "XDG_STATE_HOME": str(alice / "state"),
        "XDG_RUNTIME_DIR": str(alice),
    }
    assert _root(environ) == home / ".local/state/agent-orchestrator"


def test_state_is_in_the_runtime_directory_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != Path("/"))
    assert _root({"HOME": "/"}) is None  # the home of an unknown user in a container
    assert _root({"HOME": "/", "XDG_RUNTIME_DIR": "/" + "x" * 300}) is None
    runtime = tmp_path / "run"
    assert _root({"HOME": "/", "XDG_RUNTIME_DIR": str(runtime)}) is None
    runtime.mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert _root({"XDG_RUNTIME_DIR": str(runtime)}) == runtime / "agent-orchestrator"


def test_unusable_xdg_state_home_is_ignored(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for odd in (str(file), "/proc/self", "/dev/null/x", "/" + "x" * 300):
        for environ in ({"XDG_STATE_HOME": odd}, {"XDG_RUNTIME_DIR": odd}, {"HOME": odd}):
            assert _root(environ) == home / ".local/state/agent-orchestrator"


def test_directories_and_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "a" / "b" / "c"
        make_private_directory(path)
        write_private(path / "token", b"secret")
    finally:
        os.umask(before)
    assert [_mode(one) for one in (path.parent.parent, path.parent, path)] == [0o700] * 3
    assert _mode(path / "token") == 0o600
    assert read_private(path / "token") == b"secret"
    path.chmod(0o777)
    make_private_directory(path)
    assert _mode(path) == 0o700
    assert [one.name for one in path.iterdir()] == ["token"]


def test_private_file_with_unsafe_owner_or_mode_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert read_private(path) is None
    write_private(path, b"secret")
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_private(link) is None
    path.chmod(0o640)
    assert read_private(path) is None
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1000, -1)
        assert read_private(path) is None
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert read_private(tmp_path / "pipe") is None
    assert read_private(tmp_path) is None
    with pytest.raises(OSError, match="directory"):
        make_private_directory(path)

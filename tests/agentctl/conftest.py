"""What the tests of agentctl share."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import Ctl, Daemon, running


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    yield from running(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own."""
    yield from running(tmp_path)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that wants a token."""
    yield from running(tmp_path, "--auth-token", "s3cret")


@pytest.fixture
def ctl(shared: Daemon) -> Ctl:
    """Calls to the daemon the tests share."""
    return shared.ctl


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()

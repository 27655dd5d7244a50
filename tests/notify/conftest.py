"""Fixtures for tests of notices: a receiver, a push service, and a store of each kind in the same process."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver, receiving, status

from agent_orchestrator.engine import notice_feed
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def service(receiver: Receiver) -> Receiver:
    """A receiver that answers as a push service does."""
    receiver.answer = status(201)
    return receiver


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Any = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data.db")
    async with opened:
        yield opened


@pytest.fixture
def without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine send one batch of notices after the other at once."""
    monkeypatch.setattr(notice_feed, "PAUSE_S", 0.0)

"""The contract every store must keep, for the two that are shipped."""

import pytest

from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores import StoreContract

pytestmark = pytest.mark.anyio


class TestMemoryStore(StoreContract):
    def open_store(self, directory):
        return MemoryStore()


class TestSqliteStore(StoreContract):
    def open_store(self, directory):
        return SqliteStore(directory / "data.db")

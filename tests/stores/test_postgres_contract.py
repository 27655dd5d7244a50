"""The contract every store must keep, for the one on PostgreSQL."""

import pytest

from agent_orchestrator.testing.stores import StoreContract

pytestmark = pytest.mark.anyio


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, database):
        self.database = database

    def open_store(self, directory):
        from agent_orchestrator.stores.postgres import PostgresStore

        return PostgresStore(self.database())

"""The client contract, in the same process, over each store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.testing.clients import ClientContract
from agent_orchestrator.testing.scripted import ScriptedRunner


class TestOverMemory(ClientContract):
    @pytest.fixture
    async def client(self) -> AsyncIterator[Client]:
        async with open_embedded(":memory:", runners=[ScriptedRunner()], max_concurrency=2) as one:
            yield one


@ON_ONE_LOOP  # the contract of stores runs on both
class TestOverSqlite(ClientContract):
    @pytest.fixture
    async def client(self, tmp_path: Path) -> AsyncIterator[Client]:
        path = tmp_path / "data.db"
        async with open_embedded(path, runners=[ScriptedRunner()], max_concurrency=2) as one:
            yield one

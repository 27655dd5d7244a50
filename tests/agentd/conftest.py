"""The daemon speaks asyncio only: so do its tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from serving import ADMIN, Serving, serving
from waiting_agents import Agents


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture(params=[(ADMIN,), ()], ids=["tokens", "open"])
async def agents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agents]:
    agents = Agents()
    async with serving(
        tmp_path, tokens=request.param, agents={"agent": agents}, max_concurrency=8
    ) as server:
        agents.server = server
        yield agents

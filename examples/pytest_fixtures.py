"""Fixtures that open the engine for a test, for pytest-asyncio and for anyio's plug-in.

pytest -p pytest_asyncio examples/pytest_fixtures.py
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.demo import DemoRunner


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    # pytest-asyncio enters a fixture in one task and leaves it in another.
    async with open_embedded(":memory:", runners=[DemoRunner()]) as client:
        yield client


@pytest.mark.asyncio
async def test_with_pytest_asyncio(client: Client) -> None:
    assert await status_of_a_run(client) == "completed"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def embedded() -> AsyncIterator[Client]:
    async with open_embedded(":memory:", runners=[DemoRunner()]) as client:
        yield client


@pytest.mark.anyio
async def test_with_anyios_plugin(embedded: Client) -> None:
    assert await status_of_a_run(embedded) == "completed"


async def status_of_a_run(client: Client) -> str:
    session = await client.create_session()
    sent = await client.send_message(session.id, "Hello")
    assert sent.run is not None  # a user's message always has one
    return (await client.wait_run(sent.run.id, timeout_s=60)).run.status

"""The daemon speaks asyncio only: so do its tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from serving import Serving, serving


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running

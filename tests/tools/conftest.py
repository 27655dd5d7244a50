"""A server with agents that wait, and clients of the ``mcp`` package for them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from calling import Standing, standing


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Standing]:
    async with standing(tmp_path) as there:
        yield there

"""On which event loops a test runs, where not on both."""

import pytest

ON_ONE_LOOP = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""Marks a test whose subject is outside the event loop, as a file or another program is.

How the library reads, waits and cancels has tests of its own, which run on both loops.
"""

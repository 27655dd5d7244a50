"""A client of a daemon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from agent_orchestrator.client import Client
from agent_orchestrator.transports.http import HttpTransport


@asynccontextmanager
async def connect(
    url: str = "http://127.0.0.1:8765",
    *,
    token: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Client]:
    """Return a client of the daemon at a URL. Runs on asyncio and on trio.

    Nothing is sent before the first call, which raises
    :class:`~agent_orchestrator.domain.errors.Unreachable` if no daemon answers.

    :param token: the bearer token, where the daemon wants one.
    :param transport: how bytes travel, for tests and proxies; TCP without one.
    """
    # trust_env: a proxy of the user's shell must not see what goes to his own daemon.
    # verify: loading certificates takes 20 ms, and plain HTTP has none.
    async with httpx.AsyncClient(
        verify=not url.startswith("http:"),
        base_url=url,
        transport=transport,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
    ) as http:
        yield Client(HttpTransport(http, token=token))

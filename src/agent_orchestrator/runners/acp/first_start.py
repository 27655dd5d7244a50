"""Starts of agents that must be alone when they first use a home directory.

opencode 1.18 makes its database at its first start. A second process that starts meanwhile fails, as it tries to make the
same tables.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
from anyio.lowlevel import RunVar

from agent_orchestrator.runners.acp.agent import AcpAgent

_Home = tuple[str | None, ...]

_homes: Final[RunVar[dict[_Home, anyio.Lock | None]]] = RunVar("agent_orchestrator.acp_homes")
"""The lock of each home, which the process that starts there has; None once one has started."""


@asynccontextmanager
async def first_start(agent: AcpAgent, env: Mapping[str, str]) -> AsyncIterator[None]:
    """Wait until no other process of this engine starts in a home for the first time.

    In the scope, the process starts. If the scope raises, the next one is the first again.
    """
    if not agent.home:
        yield
        return
    home = tuple(env.get(name) for name in agent.home)
    homes = _homes.get({})
    _homes.set(homes)
    async with AsyncExitStack() as stack:
        if (lock := homes.setdefault(home, anyio.Lock())) is not None:
            await stack.enter_async_context(lock)
            if homes[home] is None:
                await stack.aclose()
        yield
        homes[home] = None

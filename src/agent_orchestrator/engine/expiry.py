"""How long the agents may work in a store that other daemons can use as well.

When the lease of this daemon has expired, another daemon may take over its runs. So the agents must have ended
by then, also if this process is stopped, or cannot reach the store. Their supervisors see to that.
"""

import logging
from typing import Final

import anyio
from attrs import evolve

from agent_orchestrator.engine.core import Core

logger = logging.getLogger("agent_orchestrator.expiry")

EXTEND_S: Final = 1.0
"""Seconds between two checks of the lease."""


def limit_agents(core: Core) -> None:
    """Let the agents end with the lease of the store, if it has one. Call it before any is started."""
    if core.store.lease is None:
        return

    def ends_at() -> float:
        lease = core.store.lease
        assert lease is not None, "a store has a lease always or never"
        return lease.expires_at

    core.config = evolve(core.config, host=core.config.host.limited(ends_at))


async def keep_agents(core: Core) -> None:
    """Extend the time of the agents with the lease, until cancelled. Returns at once without a lease."""
    while core.store.lease is not None:
        check_agents(core)
        await anyio.sleep(EXTEND_S)


def check_agents(core: Core) -> None:
    """Extend the time of the agents. If it has passed, they were killed: their runs go back to the queue."""
    if not core.config.host.extend() and core.workers.running:
        logger.error("the lease expired before it was extended: the agents were killed")
        core.workers.release("the daemon could not extend its lease in time")

"""Beginning anew after the lease of a shared store was lost."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio

from agent_orchestrator.domain.errors import StoreOpenError, Unavailable
from agent_orchestrator.engine.core import Core, StopDeadline
from agent_orchestrator.engine.daemons import profile_of
from agent_orchestrator.engine.running_attempt import RunningAttempt
from agent_orchestrator.engine.worker_pool import WorkerPool

logger = logging.getLogger("agent_orchestrator.sharing")

RETRY_S: Final = 1.0
"""Seconds until the next try to begin anew."""


async def keep_lease(core: Core, pool: WorkerPool) -> None:
    """Begin anew whenever the lease was lost. Returns at once if no other daemon can use the store.

    The other daemons take over the runs. So the agents are killed, and none of their late writes is
    committed: the lease fences all writes, and the new one none of the former attempts.
    """
    async with anyio.create_task_group() as tasks:
        while (lease := core.store.lease) is not None:
            await lease.lost.wait()
            logger.error(
                "the lease of %s was lost: killing its agents and beginning anew", core.instance
            )
            now = StopDeadline(anyio.current_time())
            core.stop_deadline.move_to(now.ends_at)
            core.stop_deadline = now
            stopped = pool.release("the daemon lost its lease")
            await _join_again(core)
            # In the background: they may need the store to end, and so the next lease, if this one is lost too.
            tasks.start_soon(_await_end, core, pool, stopped)


async def _await_end(core: Core, pool: WorkerPool, stopped: Sequence[RunningAttempt]) -> None:
    """Wait until the attempts that are being stopped have ended. Later ones get their time to stop again."""
    deadline = core.stop_deadline
    await pool.wait_ended(stopped)
    if core.stop_deadline is deadline and not core.draining:
        core.stop_deadline = StopDeadline()


async def tell_draining(core: Core) -> None:
    """Record that this daemon takes no new work, for the others. If that fails, they notice when it ends."""
    lease = core.store.lease
    if lease is None or lease.lost.is_set():
        return
    with suppress(StoreOpenError, Unavailable):
        await core.store.join(profile_of(core.config, draining=True))


async def _join_again(core: Core) -> None:
    while True:
        try:
            await core.store.join(profile_of(core.config, draining=core.draining))
        except (StoreOpenError, Unavailable) as error:
            logger.warning("the daemon cannot begin anew, trying again: %s", error)
            await anyio.sleep(RETRY_S)
        else:
            logger.warning("the daemon goes on as %s", core.instance)
            return

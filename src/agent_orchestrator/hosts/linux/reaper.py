"""Ends the agents of lost engines."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Remains
from agent_orchestrator.hosts.linux.orphans import kill_orphans
from agent_orchestrator.processes import live_process

_log = logging.getLogger(__name__)

MAX_CONCURRENT: Final = 8
"""Maximum number of concurrent searches: each reads the process table."""


async def reap(attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
    """End all processes of these attempts; see :meth:`agent_orchestrator.host.Host.reap`."""
    found: dict[tuple[str, int], Remains] = {}
    limiter = anyio.CapacityLimiter(MAX_CONCURRENT)

    async def end(attempt: Attempt) -> None:
        async with limiter:
            found[attempt.run_id, attempt.attempt] = await _remains_of(attempt)

    async with anyio.create_task_group() as tasks:
        for attempt in attempts:
            tasks.start_soon(end, attempt)
    return found


async def _remains_of(attempt: Attempt) -> Remains:
    if live_process(os.getpid()) is None:
        return Remains("unknown", reason="/proc does not show the processes of this machine")
    try:
        orphans = await kill_orphans(attempt.tag, attempt.pid, attempt.process_start_id)
    except Exception as error:  # noqa: BLE001 - one attempt must not block the others
        _log.exception("finding processes of %s failed", attempt.tag)
        return Remains("unknown", reason=f"finding them failed: {error!r}")
    return Remains("alive" if orphans.alive else "gone", orphans.killed, orphans.alive)

"""Ends the agents that engines left when they were lost: the engine's ``reaper``."""

from collections.abc import Mapping, Sequence
from typing import Final

import anyio

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.ports import Remains
from agent_orchestrator.runners.custody import end_survivors

AT_ONCE: Final = 8
"""Attempts looked for at once: each look reads the process table."""


async def reap(attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], Remains]:
    """End all processes of these attempts; see :class:`~agent_orchestrator.ports.Reaper`."""
    found: dict[tuple[str, int], Remains] = {}
    places = anyio.CapacityLimiter(AT_ONCE)

    async def end(attempt: Attempt) -> None:
        async with places:
            left = await end_survivors(attempt.mark, attempt.pid, attempt.pid_birth)
        found[attempt.run_id, attempt.attempt] = Remains(left.killed, left.alive)

    async with anyio.create_task_group() as tasks:
        for attempt in attempts:
            tasks.start_soon(end, attempt)
    return found

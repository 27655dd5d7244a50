"""Whether a provider would work now."""

import logging
from collections.abc import Mapping

from agent_orchestrator.ports import Availability, Probing, Runner

logger = logging.getLogger("agent_orchestrator.providers")


async def probe(runner: Runner, env: Mapping[str, str]) -> Availability:
    """Ask a runner whether it would work; one that cannot tell is taken at its word."""
    if not isinstance(runner, Probing):
        return Availability(available=True)
    try:
        return await runner.probe(env)
    except Exception as error:
        logger.exception("probing runner %s failed", runner.name)
        return Availability(available=False, reason=f"probing it failed: {error}")

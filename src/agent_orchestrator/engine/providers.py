"""Probing the availability of a provider."""

import logging
from collections.abc import Mapping

from agent_orchestrator.host import Host, use_host
from agent_orchestrator.ports.runner import Availability, Probing, Runner

logger = logging.getLogger("agent_orchestrator.providers")


async def probe(runner: Runner, env: Mapping[str, str], host: Host) -> Availability:
    """Return the availability of a runner on a host. One that cannot be probed counts as available."""
    if not isinstance(runner, Probing):
        return Availability(available=True)
    try:
        with use_host(host):
            return await runner.probe(env)
    except Exception as error:
        logger.exception("probing runner %s failed", runner.name)
        return Availability(available=False, reason=f"probing it failed: {error}")

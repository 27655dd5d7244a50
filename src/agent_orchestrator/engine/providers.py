"""Probing the availability of providers."""

import logging
from collections.abc import Mapping

from attrs import evolve

from agent_orchestrator.engine.config import EngineConfig
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


async def with_default(config: EngineConfig) -> EngineConfig:
    """Return the configuration with the first preferred provider that is available as the default.

    If none is, the first one stays the default, so that its reason is shown.
    """
    for name in config.routing.prefer:
        provider = config.providers[name]
        found = await probe(provider.runner, config.agent_env(provider), config.host)
        if found.available:
            return evolve(config, routing=evolve(config.routing, default=name))
        logger.info("provider %s is not ready: %s", name, found.reason)
    return config

"""The daemon's OpenTelemetry traces: the setting ``traces = "otlp"``."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

import anyio.to_thread

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.engine import ProviderConfig
from agent_orchestrator.ports.observer import Observer
from agent_orchestrator.ports.runner import capabilities_of
from agentd.settings import Settings

FLUSH_S: Final = 2.0
"""Maximum seconds at the end to send the last spans."""

SECRETS: Final = frozenset({"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"})
"""Variables with the daemon's credentials for the collector. Agents do not get them."""

_log = logging.getLogger("agentd")


def agents_environment(settings: Settings) -> dict[str, str]:
    """Return the daemon's environment without its credentials, as a base for agents' environments."""
    hidden = SECRETS if settings.traces == "otlp" else frozenset()
    if settings.store is not None:
        hidden |= {"PGPASSWORD"}
    return {name: value for name, value in os.environ.items() if name not in hidden}


@asynccontextmanager
async def tracing(
    traces: str, providers: Mapping[str, ProviderConfig]
) -> AsyncIterator[tuple[Observer, ...]]:
    """Send traces of runs over OTLP while the scope is open. The OTEL_* variables say where.

    :param traces: ``off`` or ``otlp``.
    :raises ConfigError: if the extra is not installed.
    """
    if traces == "off":
        yield ()
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from agent_orchestrator.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"traces: {traces} needs a package that is not installed ({error.name}): "
            "pip install 'agent-orchestrator[otel]'"
        ) from None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override these attributes.
    resource = Resource({SERVICE_VERSION: version("agent-orchestrator")}).merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "agentd"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    all_vendors = {
        name: capabilities_of(provider.runner).vendor for name, provider in providers.items()
    }
    vendors = {name: vendor for name, vendor in all_vendors.items() if vendor is not None}
    try:
        yield (Tracing(provider, vendors=vendors),)
    finally:
        # In a daemon thread, so that a collector that does not answer cannot delay the exit.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ending.join, FLUSH_S)
        if ending.is_alive():
            _log.warning("the last traces could not be sent to their collector")

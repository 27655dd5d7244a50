"""OpenTelemetry in the daemon: what ``traces = "otlp"`` turns on."""

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
from agent_orchestrator.ports import Observer, capabilities_of

FLUSH_S: Final = 2.0
"""Seconds the last spans have, at the end, to reach their collector."""

SECRETS: Final = frozenset({"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"})
"""Variables by which the daemon shows itself to the collector. Not for agents."""

_log = logging.getLogger("agentd")


def agents_environment(traces: str) -> dict[str, str]:
    """Return what agents' environments are made of."""
    hidden = SECRETS if traces == "otlp" else frozenset()
    return {name: value for name, value in os.environ.items() if name not in hidden}


@asynccontextmanager
async def tracing(
    traces: str, providers: Mapping[str, ProviderConfig]
) -> AsyncIterator[tuple[Observer, ...]]:
    """Send runs as traces over OTLP while the scope is open; OpenTelemetry's own variables say where.

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
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
    resource = Resource({SERVICE_VERSION: version("agent-orchestrator")}).merge(Resource.create())
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "agentd"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    vendors = {name: capabilities_of(one.runner).vendor for name, one in providers.items()}
    makers = {name: vendor for name, vendor in vendors.items() if vendor is not None}
    try:
        yield (Tracing(provider, makers=makers),)
    finally:
        # A collector that does not answer must not hold up the end: the thread dies with the process.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ending.join, FLUSH_S)
        if ending.is_alive():
            _log.warning("the last traces could not be sent to their collector")

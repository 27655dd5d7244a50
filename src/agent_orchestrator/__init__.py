"""A gateway for CLI coding agents: durable sessions, runs and events.

The front door. The names in ``__all__`` are public; it is imported on first use, so that a
command-line client does not pay for the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_orchestrator.client import Client, EventStream
    from agent_orchestrator.detached import DetachedScope
    from agent_orchestrator.domain.access import Grant, Principal
    from agent_orchestrator.domain.errors import (
        AgentFailed,
        ConfigError,
        OrchestratorError,
        StoreOpenError,
        Unreachable,
    )
    from agent_orchestrator.domain.events import EventType
    from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
    from agent_orchestrator.domain.model import (
        Event,
        Invocation,
        Message,
        Option,
        Run,
        RunError,
        RunResult,
        Session,
        Source,
        Thread,
        Usage,
    )
    from agent_orchestrator.embedded import open_embedded
    from agent_orchestrator.engine import (
        EngineConfig,
        EnvPolicy,
        Orchestrator,
        ProviderConfig,
        Routing,
        TreeLimits,
    )
    from agent_orchestrator.ports.runner import Availability, Outcome, RunContext, Runner
    from agent_orchestrator.ports.store import Store
    from agent_orchestrator.remote import connect
    from agent_orchestrator.runners.function import FunctionRunner

_HOMES = {
    "AgentFailed": "domain.errors",
    "Availability": "ports.runner",
    "Client": "client",
    "ConfigError": "domain.errors",
    "DetachedScope": "detached",
    "EngineConfig": "engine",
    "EnvPolicy": "engine",
    "Event": "domain.model",
    "EventStream": "client",
    "EventType": "domain.events",
    "FunctionRunner": "runners.function",
    "Invocation": "domain.model",
    "Message": "domain.model",
    "Option": "domain.model",
    "Orchestrator": "engine",
    "OrchestratorError": "domain.errors",
    "Outcome": "ports.runner",
    "Grant": "domain.access",
    "Principal": "domain.access",
    "ProviderConfig": "engine",
    "Routing": "engine",
    "Run": "domain.model",
    "RunContext": "ports.runner",
    "RunError": "domain.model",
    "RunResult": "domain.model",
    "RunStatus": "domain.lifecycle",
    "Runner": "ports.runner",
    "Session": "domain.model",
    "Source": "domain.model",
    "Store": "ports.store",
    "StoreOpenError": "domain.errors",
    "Thread": "domain.model",
    "TreeLimits": "engine",
    "Unreachable": "domain.errors",
    "Usage": "domain.model",
    "connect": "remote",
    "is_terminal": "domain.lifecycle",
    "open_embedded": "embedded",
}

__all__ = [
    "AgentFailed",
    "Availability",
    "Client",
    "ConfigError",
    "DetachedScope",
    "EngineConfig",
    "EnvPolicy",
    "Event",
    "EventStream",
    "EventType",
    "FunctionRunner",
    "Grant",
    "Invocation",
    "Message",
    "Option",
    "Orchestrator",
    "OrchestratorError",
    "Outcome",
    "Principal",
    "ProviderConfig",
    "Routing",
    "Run",
    "RunContext",
    "RunError",
    "RunResult",
    "RunStatus",
    "Runner",
    "Session",
    "Source",
    "Store",
    "StoreOpenError",
    "Thread",
    "TreeLimits",
    "Unreachable",
    "Usage",
    "connect",
    "is_terminal",
    "open_embedded",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

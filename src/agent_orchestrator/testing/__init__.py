"""Contract suites for runners, stores, clients and hosts, and tools for testing them.

The suites need pytest and the pytest plugin of anyio. They are imported on use, so that the other tools
do not need these.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_orchestrator.testing.clients import ClientContract
    from agent_orchestrator.testing.hosts import HostContract
    from agent_orchestrator.testing.runners import (
        RecordingContext,
        RunnerContract,
        tagged_processes,
    )
    from agent_orchestrator.testing.scripted import ScriptedRunner
    from agent_orchestrator.testing.stores import StoreContract

_MODULES = {
    "ClientContract": "clients",
    "HostContract": "hosts",
    "RecordingContext": "runners",
    "RunnerContract": "runners",
    "ScriptedRunner": "scripted",
    "StoreContract": "stores",
    "tagged_processes": "runners",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClientContract",
    "HostContract",
    "RecordingContext",
    "RunnerContract",
    "ScriptedRunner",
    "StoreContract",
    "tagged_processes",
]

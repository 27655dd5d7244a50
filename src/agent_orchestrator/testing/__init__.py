"""For authors of runners, stores and hosts: suites that tell whether one behaves, and parts to test with.

The suites need pytest and anyio's plugin for it; they are imported when asked for, so that the other
parts do without.
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

_ROOMS = {
    "ClientContract": "clients",
    "HostContract": "hosts",
    "RecordingContext": "runners",
    "RunnerContract": "runners",
    "ScriptedRunner": "scripted",
    "StoreContract": "stores",
    "tagged_processes": "runners",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
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

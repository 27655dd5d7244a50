"""The engine: decides about calls and executes runs, over a store and runners."""

from agent_orchestrator.configuration import TreeLimits
from agent_orchestrator.engine.config import (
    EngineConfig,
    EnvPolicy,
    ProviderConfig,
    Routing,
)
from agent_orchestrator.engine.orchestrator import DrainReport, Orchestrator

__all__ = [
    "DrainReport",
    "EngineConfig",
    "EnvPolicy",
    "Orchestrator",
    "ProviderConfig",
    "Routing",
    "TreeLimits",
]

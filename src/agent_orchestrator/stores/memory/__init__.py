"""A store in memory, for tests and as a reference for other stores."""

from agent_orchestrator.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]

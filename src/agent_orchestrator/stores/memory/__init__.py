"""The store in memory: for tests, and to compare others with."""

from agent_orchestrator.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]

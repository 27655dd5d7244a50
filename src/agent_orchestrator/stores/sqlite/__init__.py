"""The store on one SQLite file, which one process at a time may have open."""

from agent_orchestrator.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]

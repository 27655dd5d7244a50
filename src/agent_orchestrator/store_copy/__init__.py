"""Copying a whole database: from SQLite to PostgreSQL, or back."""

from agent_orchestrator.store_copy.copying import CopyFailed, CopyReport, Progress, copy_store

__all__ = ["CopyFailed", "CopyReport", "Progress", "copy_store"]

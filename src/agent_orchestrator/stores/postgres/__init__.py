"""The store on a PostgreSQL database. It needs the extra ``agent-orchestrator[postgres]``."""

from agent_orchestrator.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]

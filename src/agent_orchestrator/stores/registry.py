"""Selection of a store by its location."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.ports.store import Store

OnCommit = Callable[[int, float], None]
"""Called in the writer's thread after a commit, with the number of its changes and its duration in
seconds. It must not block or raise."""

POSTGRESQL: Final = frozenset({"postgresql", "postgres"})
"""The URL schemes of a PostgreSQL database."""

GROUP = "agent_orchestrator.stores"
"""Entry points: the name is a URL scheme, the object a callable that makes a store from a URL."""


def open_store(
    location: str, *, listen: str | None = None, on_commit: OnCommit | None = None
) -> Store:
    """Return the store at a location, not opened yet.

    :param location: the path of a SQLite file; ``:memory:``; ``postgresql://…``, a URL as libpq has it;
        or ``scheme://…``, a URL for the store that an installed package registered for the scheme.
    :param listen: the URL of the same PostgreSQL database for notifications, past a connection pooler.
    :param on_commit: called by the stores on SQLite and PostgreSQL.
    :raises ConfigError: if no package registered the scheme, or the extra for it is not installed.
    """
    scheme, separator, _ = location.partition("://")
    if separator and scheme in POSTGRESQL:
        return _postgres(location, listen, on_commit)
    if separator:
        for entry in entry_points(group=GROUP, name=scheme):
            store: Store = entry.load()(location)
            return store
        raise ConfigError(f"store: no installed package has a store for {scheme}://")
    if location == ":memory:":
        from agent_orchestrator.stores.memory import MemoryStore

        return MemoryStore()
    from agent_orchestrator.stores.sqlite import SqliteStore

    return SqliteStore(location, on_commit=on_commit)


def _postgres(url: str, listen: str | None, on_commit: OnCommit | None) -> Store:
    try:
        from agent_orchestrator.stores.postgres import PostgresStore
    except ImportError as error:
        raise ConfigError(
            f"store: postgresql:// needs a package that is not installed ({error.name or error}):"
            " pip install 'agent-orchestrator[postgres]'"
        ) from None
    return PostgresStore(url, listen=listen, on_commit=on_commit)

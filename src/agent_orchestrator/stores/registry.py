"""Selection of a store by its location."""

from importlib.metadata import entry_points

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.ports.store import Store

GROUP = "agent_orchestrator.stores"
"""Entry points: the name is a URL scheme, the object a callable that makes a store from a URL."""


def open_store(location: str) -> Store:
    """Return the store at a location, not opened yet.

    :param location: the path of a SQLite file; ``:memory:``; or ``scheme://…``, a URL for the
        store that an installed package registered for the scheme.
    :raises ConfigError: if no package registered the scheme.
    """
    scheme, separator, _ = location.partition("://")
    if separator:
        for entry in entry_points(group=GROUP, name=scheme):
            store: Store = entry.load()(location)
            return store
        raise ConfigError(f"store: no installed package has a store for {scheme}://")
    if location == ":memory:":
        from agent_orchestrator.stores.memory import MemoryStore

        return MemoryStore()
    from agent_orchestrator.stores.sqlite import SqliteStore

    return SqliteStore(location)

"""Which store a location means."""

from importlib.metadata import entry_points

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.ports import Store

GROUP = "agent_orchestrator.stores"
"""Entry points: a URL scheme and a callable that makes a store of the whole URL."""


def open_store(location: str) -> Store:
    """Return the store at a location, not yet open.

    A path is a SQLite file, ``:memory:`` a store that forgets, and ``scheme://…`` whatever a
    package has installed for that scheme.

    :raises ConfigError: if nothing is installed for the scheme.
    """
    scheme, separator, _ = location.partition("://")
    if separator:
        for entry in entry_points(group=GROUP, name=scheme):
            store: Store = entry.load()(location)
            return store
        raise ConfigError(f"store: no package offers a store for {scheme}://")
    if location == ":memory:":
        from agent_orchestrator.stores.memory import MemoryStore

        return MemoryStore()
    from agent_orchestrator.stores.sqlite import SqliteStore

    return SqliteStore(location)

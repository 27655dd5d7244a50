"""Schema migrations."""

from functools import cache
from importlib.resources import files
from typing import Final

import apsw

from agent_orchestrator.domain.errors import StoreOpenError

SEARCH_MODULE: Final = "fts5"
"""The module of SQLite that the index of words needs."""

APPLICATION_ID: Final = 0x41674F72
"""``AgOr`` in the file header. It identifies our databases, also for ``file(1)``."""


@cache
def migrations() -> tuple[str, ...]:
    """Return the migration scripts. Script n migrates to schema version n."""
    folder = files("agent_orchestrator.stores.sqlite") / "migrations"
    scripts = sorted((entry for entry in folder.iterdir()), key=lambda entry: entry.name)
    return tuple(entry.read_text("utf-8") for entry in scripts if entry.name.endswith(".sql"))


def schema_version() -> int:
    """Return the current schema version. Newer databases cannot be read."""
    return len(migrations())


_HAS_MODULE: Final = "SELECT 1 FROM pragma_module_list WHERE name = ?"


def migrate(connection: apsw.Connection) -> None:
    """Migrate a database to the current schema version, each step in one transaction.

    :raises StoreOpenError: if this build of SQLite lacks a module. Nothing was changed then.
    """
    if connection.execute(_HAS_MODULE, (SEARCH_MODULE,)).fetchone() is None:
        raise StoreOpenError(
            f"this build of SQLite ({apsw.sqlite_lib_version()}) has no module {SEARCH_MODULE}, which searches"
            " need: install apsw from PyPI, which brings an SQLite that has it"
        )
    for version in range(connection.pragma("user_version") + 1, schema_version() + 1):
        with immediate(connection):
            connection.execute(migrations()[version - 1])
            connection.pragma("user_version", version)


class immediate:  # noqa: N801 - used as a statement
    """A transaction that holds the write lock from its beginning."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

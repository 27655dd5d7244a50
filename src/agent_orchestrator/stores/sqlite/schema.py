"""The steps that lead a database from nothing to the present schema."""

from functools import cache
from importlib.resources import files
from typing import Final

import apsw

APPLICATION_ID: Final = 0x41674F72
"""``AgOr`` in the file's header: by it (``file``, too) a database is known to be ours."""


@cache
def migrations() -> tuple[str, ...]:
    """Return the scripts in order; the n-th leads to schema version n."""
    folder = files("agent_orchestrator.stores.sqlite") / "migrations"
    scripts = sorted((entry for entry in folder.iterdir()), key=lambda entry: entry.name)
    return tuple(entry.read_text("utf-8") for entry in scripts if entry.name.endswith(".sql"))


def schema_version() -> int:
    """Return the version this program writes, the newest it can read."""
    return len(migrations())


def migrate(connection: apsw.Connection) -> None:
    """Bring the database to the present version, each step in a transaction of its own."""
    for version in range(connection.pragma("user_version") + 1, schema_version() + 1):
        with immediate(connection):
            connection.execute(migrations()[version - 1])
            connection.pragma("user_version", version)


class immediate:  # noqa: N801 - used as a statement
    """A transaction that has the right to write from its first moment."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

"""Rows as a database of an older version has them."""

import contextlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import apsw


def insert(connection: apsw.Connection, table: str, names: str, values: Sequence[Any]) -> None:
    """Insert a row without the columns that came later.

    :param names: those of today, separated by commas.
    """
    known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    row = {
        name: value
        for name, value in zip(names.split(", "), values, strict=True)
        if name.strip() in known
    }
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", (*row.values(),))


def without_search(path: Path) -> None:
    """Remove the index of words from a database, as it was before there was one."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("DROP TRIGGER event_not_searched")
        for table in ("search_index", "search_beginnings", "search_backlog"):
            connection.execute(f"DROP TABLE {table}")


def with_new_search(path: Path) -> None:
    """Replace the index of words by an empty one, as its migration makes it in a database that has events."""
    without_search(path)
    folder = files("agent_orchestrator.stores.sqlite") / "migrations"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute((folder / "0039_search.sql").read_text("utf-8"))

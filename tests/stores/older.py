"""Rows as a database of an older version has them."""

from collections.abc import Sequence
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

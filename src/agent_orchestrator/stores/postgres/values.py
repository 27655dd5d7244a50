"""Values that a column of texts cannot hold as they are.

PostgreSQL refuses texts that contain NUL. Such a text, and one that begins with U+0001, is stored as
U+0001 and the text as JSON. No other text begins so: equal texts are stored equally, different ones
differently.

Queries use the same mark where a column has a text or something else: U+0001 and digits are an integer,
U+0001, ``x`` and hexadecimal digits are bytes.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

MARK: Final = "\x01"

MARK_SQL: Final = "chr(1)"
"""The mark in SQL."""


def cell(value: Any) -> Any:
    """Return what is sent to the database for a value."""
    if type(value) is str:
        return encoded(value) if "\0" in value or value[:1] == MARK else value
    if isinstance(value, str):
        return cell(str(value))  # an enumeration's member
    if isinstance(value, list):
        return [cell(entry) for entry in value]
    return value


def encoded(text: str) -> str:
    """Return a marked text."""
    return MARK + json.dumps(text, ensure_ascii=False)


def value_of(cell: str) -> Any:
    """Return the value of a cell that begins with the mark."""
    kind = cell[1:2]
    if kind == '"':
        return json.loads(cell[1:])
    return bytes.fromhex(cell[2:]) if kind == "x" else int(cell[1:])


def row_of(_: Any) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return a function that converts the cells of a row: a row factory of psycopg."""
    return _row


def _row(cells: Sequence[Any]) -> tuple[Any, ...]:
    for one in cells:
        if type(one) is str and one[:1] == MARK:
            return tuple(
                value_of(one) if type(one) is str and one[:1] == MARK else one for one in cells
            )
    return tuple(cells)

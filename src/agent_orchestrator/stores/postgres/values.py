"""Values that a column of texts cannot hold as they are.

PostgreSQL refuses texts that contain NUL. Such a text, and one that begins with U+0001, is stored as
U+0001 and the text as JSON. No other text begins so: equal texts are stored equally, different ones
differently.

Queries use the same mark where a column has a text or something else: U+0001 and digits are an integer,
U+0001, ``x`` and hexadecimal digits are bytes.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

MARK: Final = "\x01"

MARK_SQL: Final = "chr(1)"
"""The mark in SQL."""


def parameter(value: Any) -> bytes | None:
    """Return a parameter in the text format of the database; bytes as they are."""
    kind = type(value)
    if kind is str:
        text: str = encoded(value) if "\0" in value or value[:1] == MARK else value
        return text.encode()
    if value is None or kind is bytes:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return b"%d" % value
    if kind is bool:
        return b"t" if value else b"f"
    if kind is list:
        return _array(value)
    return parameter(str(value))  # an enumeration's member


def _array(values: list[Any]) -> bytes:
    """Return a list of texts or integers in the text format of an array."""
    entries = ((parameter(value) or b"").replace(b"\\", b"\\\\") for value in values)
    return b"{" + b",".join(b'"' + entry.replace(b'"', b'\\"') + b'"' for entry in entries) + b"}"


def encoded(text: str) -> str:
    """Return a marked text."""
    return MARK + json.dumps(text, ensure_ascii=False)


def value_of(cell: str) -> Any:
    """Return the value of a cell that begins with the mark."""
    kind = cell[1:2]
    if kind == '"':
        return json.loads(cell[1:])
    return bytes.fromhex(cell[2:]) if kind == "x" else int(cell[1:])


def row_of(cells: Sequence[Any]) -> tuple[Any, ...]:
    """Return a row whose cells are converted."""
    for one in cells:
        if type(one) is str and one[:1] == MARK:
            return tuple(
                value_of(one) if type(one) is str and one[:1] == MARK else one for one in cells
            )
    return tuple(cells)

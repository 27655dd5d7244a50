"""The tables of a store for a copy. Both kinds of store have them under the same names."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from attrs import define, frozen

Key = tuple[Any, ...]
"""The values of the key of a row."""

Row = tuple[Any, ...]


@frozen
class Table:
    """A table that is copied.

    :param key: the columns of its primary key, or of another unique key that both stores have.
    :param only_here: columns that one of the stores has for itself.
    :param is_copied_anew: whether each attempt copies it from its start: opening the source adds a row.
    """

    name: str
    key: tuple[str, ...]
    only_here: frozenset[str] = frozenset()
    is_copied_anew: bool = False


TABLES: Final = (
    Table("sessions", ("number",)),
    Table("messages", ("id",)),
    Table("images", ("digest",), only_here=frozenset({"number"})),
    Table("image_uses", ("message_id", "digest")),
    Table("image_space", ("id",)),
    Table("runs", ("id",), only_here=frozenset({"host"})),
    Table("long_results", ("run_id",), only_here=frozenset({"number"})),
    Table("events", ("position",)),
    Table("pruned_logs", ("session",)),
    Table("attempts", ("run_id", "attempt")),
    Table("activity", ("run_id", "attempt")),
    Table("requests", ("id",)),
    Table("threads", ("session_id", "provider")),
    Table("grants", ("session_id", "principal")),
    Table("access_tokens", ("id",)),
    Table("idempotency", ("number",)),
    Table("audit", ("seq",)),
    Table("seen", ("reader", "session_id")),
    Table("notices", ("id",)),
    Table("notice_cursor", ("id",)),
    Table("push_subscriptions", ("id",)),
    Table("epochs", ("number",), is_copied_anew=True),
)
"""The copied tables. A table follows those that its rows refer to."""

DERIVED: Final = {"run_counts": "SELECT provider, status, count FROM run_counts WHERE count <> 0"}
"""Tables that triggers fill from the copied ones, each with a query of its expected content."""

OWN: Final = frozenset({"commits", "daemons", "head", "inquiries", "jobs", "origin", "schema"})
"""Tables about a database itself. A copy has other rows in them."""

INDEX: Final = frozenset({"search_index", "search_beginnings", "search_backlog"})
"""Tables of the index of words, which each database has in its own form. The copy makes its own from the
events after its first start."""

MAKE_INDEX: Final = "INSERT INTO search_backlog (id, position) VALUES (1, ?)"
"""Lets a store add the events up to a position to the index. Only if there are events."""

HAS_CONTENT: Final = (
    "sessions",
    "access_tokens",
    "audit",
    "idempotency",
    "notices",
    "push_subscriptions",
)
"""Tables in which only a used database has rows. The first start of a daemon fills other tables."""


@frozen
class Column:
    """A column of a table in one database.

    :param is_text: whether its values can be long: a text or bytes.
    """

    name: str
    is_text: bool


@define
class Content:
    """The content of a table: the number of its rows, and a digest that does not depend on their order."""

    rows: int = 0
    total: int = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.rows += 1
            self.total += int.from_bytes(_digest(row))

    @property
    def sha256(self) -> str:
        """The sum of the SHA-256 of each row, in hexadecimal."""
        return f"{self.total % 2**256:064x}"


def _digest(row: Sequence[Any]) -> bytes:
    digest = hashlib.sha256()
    for cell in row:
        if cell is None:
            digest.update(b"-")
        elif isinstance(cell, int):  # a boolean of PostgreSQL is 0 or 1 in SQLite
            digest.update(b"i%d;" % cell)
        else:
            data = cell.encode() if isinstance(cell, str) else cell
            digest.update(b"%s%d;" % (b"t" if isinstance(cell, str) else b"b", len(data)))
            digest.update(data)
    return digest.digest()

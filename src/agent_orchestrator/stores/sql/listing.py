"""SQL for pages of rows that a caller may see, without scanning rows of other sessions.

An index by owner finds the rows of a principal's own sessions. The rows of granted sessions, and of
an agent's descendants, are in many sessions, each of which has them sorted by key. How they are merged depends
on the database.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from attrs import frozen

from agent_orchestrator.domain.access import Visibility
from agent_orchestrator.operations.options import RequestOrder

Statement = tuple[str, tuple[Any, ...]]


@frozen
class Ordering:
    """The order of a list.

    :param key: the column to sort by. It is unique: it is the id, or ends with it.
    :param newest: whether the greatest key comes first.
    :param index_condition: the condition of the partial indexes on the key. A query must repeat it.
    """

    key: str = "id"
    newest: bool = False
    index_condition: str = ""

    def after_key(self, key: str = "") -> str:
        """Return the SQL condition for the rows after a given key. The given key is its parameter.

        :param key: the column, if it is not :attr:`key`.
        """
        start = f"{self.index_condition} AND " if self.index_condition else ""
        return f"{start}{key or self.key} {'<' if self.newest else '>'} ?"

    @property
    def start(self) -> str:
        """A value that comes before all keys in this order."""
        return "~" if self.newest else ""

    @property
    def first(self) -> str:
        """The SQL aggregate that returns the first of several keys."""
        return "max" if self.newest else "min"

    @property
    def direction(self) -> str:
        return "DESC" if self.newest else "ASC"


ORDERINGS: Final[Mapping[RequestOrder, Ordering]] = {
    "oldest": Ordering(),
    "newest": Ordering(newest=True),
    "deadline": Ordering("deadline", index_condition="status = 'pending'"),
}

Merge = Callable[[str, Statement, Ordering, str | None, Mapping[str, Any]], Statement]
"""Returns a statement that selects the keys of rows of several sessions, in order. Its last parameter is
a limit. Arguments: the table, a query that selects the ``session_id`` of each session, the order, the key after
which the rows begin, and conditions with their values."""

TREE: Final = """
    WITH RECURSIVE tree (id) AS (
        VALUES (?) UNION
        SELECT s.id FROM sessions s JOIN tree ON s.parent_session_id = tree.id)
    SELECT id FROM tree"""

LINEAGE: Final = """
    WITH RECURSIVE lineage (id) AS (
        VALUES (?) UNION
        SELECT s.parent_session_id FROM lineage JOIN sessions s ON s.id = lineage.id
        WHERE s.parent_session_id IS NOT NULL)
    SELECT id FROM lineage"""

GRANTED: Final = "SELECT session_id FROM grants WHERE principal = ?"
GRANTED_TO_WRITE: Final = f"{GRANTED} AND role <> 'reader'"


def where_all(parts: Mapping[str, Any]) -> Statement:
    """Return a WHERE clause that joins the comparisons whose value is not None, and those values."""
    conditions = {part: value for part, value in parts.items() if value is not None}
    return (" WHERE " + " AND ".join(conditions) if conditions else ""), tuple(conditions.values())


def visibility_conditions(
    within: Visibility, column: str, *, can_write: bool = False
) -> tuple[dict[str, Any], ...]:
    """Return alternative conditions on a table with an owner. A visible row meets one of them.

    For queries in which another condition already selects few rows.

    :param column: the column with the session id.
    :param can_write: exclude sessions that the principal may only read.
    """
    below = {f"+{column} IN ({TREE})": within.tree}
    if within.principal is None:
        return (below,)
    granted = GRANTED_TO_WRITE if can_write else GRANTED
    return (
        {"+owner = ?": within.principal, **below},
        {f"+{column} IN ({granted})": within.principal, **below},
    )


def sessions_within(
    within: Visibility, status: str | None, ordering: Ordering, after: str | None
) -> tuple[Statement, ...]:
    """Return statements that select session ids. The last parameter of each is a limit."""
    if within.tree is not None:
        conditions = {
            ordering.after_key(): after,
            f"id IN ({TREE})": within.tree,
            "+status = ?": status,
        }
        return tuple(
            in_order("sessions", ordering, {**conditions, **alternative})
            for alternative in visibility_conditions(Visibility(principal=within.principal), "id")
        )
    owned = {"owner = ?": within.principal, "status = ?": status, ordering.after_key(): after}
    granted = {
        "principal = ?": within.principal,
        ordering.after_key("session_id"): after,
        "status = ?": status,
    }
    text, values = where_all(granted)
    shared = "SELECT session_id FROM grants CROSS JOIN sessions ON id = session_id"
    return (
        in_order("sessions", ordering, owned),
        (f"{shared}{text} ORDER BY session_id {ordering.direction} LIMIT ?", values),
    )


def rows_within(
    table: Literal["runs", "requests"],
    within: Visibility,
    status: str | None,
    ordering: Ordering,
    after: str | None,
    others: Mapping[str, Any] | None = None,
    *,
    merge: Merge,
    can_write: bool = False,
) -> tuple[Statement, ...]:
    """Return statements that select keys of visible runs or requests. The last parameter is a limit.

    :param others: further conditions and their values.
    :param can_write: exclude sessions that the principal may only read.
    """
    conditions = {"status = ?": status, **(others or {})}
    if within.tree is not None:
        if within.principal is None:
            source = f"SELECT id AS session_id FROM ({TREE}) AS tree"
            return (merge(table, (source, (within.tree,)), ordering, after, conditions),)
        members = [
            where_all(alternative)
            for alternative in visibility_conditions(
                Visibility(within.principal), "id", can_write=can_write
            )
        ]
        return tuple(
            merge(
                table,
                (
                    f"SELECT id AS session_id FROM sessions{text} AND id IN ({TREE})",
                    (*values, within.tree),
                ),
                ordering,
                after,
                conditions,
            )
            for text, values in members
        )
    start = ordering.start if after is None else after
    owned = {"owner = ?": within.principal, ordering.after_key(): start, **conditions}
    granted = GRANTED_TO_WRITE if can_write else GRANTED
    return (
        in_order(table, ordering, owned),
        merge(table, (granted, (within.principal,)), ordering, after, conditions),
    )


def in_order(table: str, ordering: Ordering, parts: Mapping[str, Any]) -> Statement:
    """Return a statement that selects the keys of the rows that meet the conditions, in order."""
    text, values = where_all(parts)
    order = f"ORDER BY {ordering.key} {ordering.direction}"
    return f"SELECT {ordering.key} FROM {table}{text} {order} LIMIT ?", values

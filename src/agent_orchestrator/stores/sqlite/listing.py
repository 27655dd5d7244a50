"""Pages of what a caller may see, as SQL: the ids that come next, found without a look at other rows.

What a principal owns is found by the owner's index. What it was granted, and what an agent has below it,
is spread over sessions that each have their rows in order: the next id of each is looked up, and the least
of them is taken, as often as the page has places. SQLite keeps the rows of a recursive query that has an
ORDER BY in a priority queue (https://sqlite.org/lang_with.html), which is just that.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from agent_orchestrator.domain.access import Visibility

Listed = Literal["sessions", "runs", "requests"]
Statement = tuple[str, tuple[Any, ...]]

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
GRANTED_TO_WORK: Final = f"{GRANTED} AND role <> 'reader'"


def where_all(parts: Mapping[str, Any]) -> Statement:
    """Return the condition that all comparisons hold whose value is not None, and the values."""
    given = {part: value for part, value in parts.items() if value is not None}
    return (" WHERE " + " AND ".join(given) if given else ""), tuple(given.values())


def visibility_conditions(
    within: Visibility, column: str, *, to_work: bool = False
) -> tuple[dict[str, Any], ...]:
    """Return conditions on a table with an owner, of which one holds for each row that may be seen.

    They serve where another condition finds the rows, and there are few.

    :param column: has the id of the session.
    :param to_work: what a principal may only read is left out.
    """
    below = {f"+{column} IN ({TREE})": within.tree}
    if within.principal is None:
        return (below,)
    granted = GRANTED_TO_WORK if to_work else GRANTED
    return (
        {"+owner = ?": within.principal, **below},
        {f"+{column} IN ({granted})": within.principal, **below},
    )


def sessions_within(
    within: Visibility, status: str | None, after: str | None
) -> tuple[Statement, ...]:
    """Return statements that find ids of sessions; each takes a limit last."""
    if within.tree is not None:
        found = {"id > ?": after, f"id IN ({TREE})": within.tree, "+status = ?": status}
        return tuple(
            _in_order("SELECT id FROM sessions", {**found, **way})
            for way in visibility_conditions(Visibility(principal=within.principal), "id")
        )
    own = {"owner = ?": within.principal, "status = ?": status, "id > ?": after}
    granted = {"principal = ?": within.principal, "session_id > ?": after, "status = ?": status}
    text, values = where_all(granted)
    shared = "SELECT session_id FROM grants CROSS JOIN sessions ON id = session_id"
    return (
        _in_order("SELECT id FROM sessions", own),
        (f"{shared}{text} ORDER BY session_id LIMIT ?", values),
    )


def rows_within(
    table: Literal["runs", "requests"],
    within: Visibility,
    status: str | None,
    after: str | None,
    others: Mapping[str, Any] | None = None,
    *,
    to_work: bool = False,
) -> tuple[Statement, ...]:
    """Return statements that find ids of runs or requests of any session; each takes a limit last.

    :param others: more conditions, and their values.
    :param to_work: what a principal may only read is left out.
    """
    more = dict(others or {})
    if within.tree is not None:
        source, source_values = f"SELECT id AS session_id FROM ({TREE})", (within.tree,)
        if within.principal is None:
            return (_walk(table, source, source_values, status, after, more),)
        members = [
            where_all(way)
            for way in visibility_conditions(Visibility(within.principal), "id", to_work=to_work)
        ]
        return tuple(
            _walk(
                table,
                f"SELECT id AS session_id FROM sessions{text} AND id IN ({TREE})",
                (*values, within.tree),
                status,
                after,
                more,
            )
            for text, values in members
        )
    own = {"owner = ?": within.principal, "status = ?": status, "id > ?": after, **more}
    granted = GRANTED_TO_WORK if to_work else GRANTED
    return (
        _in_order(f"SELECT id FROM {table}", own),
        _walk(table, granted, (within.principal,), status, after, more),
    )


def _in_order(select: str, parts: Mapping[str, Any]) -> Statement:
    text, values = where_all(parts)
    return f"{select}{text} ORDER BY id LIMIT ?", values


def _walk(
    table: str,
    source: str,
    source_values: tuple[Any, ...],
    status: str | None,
    after: str | None,
    more: Mapping[str, Any],
) -> Statement:
    """Return a statement that takes the ids of several sessions' rows in order.

    :param source: selects the ``session_id`` of each.
    """
    text, values = where_all({"status = ?": status, **more})
    condition = text.replace(" WHERE ", " AND ", 1)
    following = (
        f"(SELECT min(id) FROM {table} WHERE session_id = place.session_id{condition} AND id > %s)"
    )
    walk = (
        f"WITH RECURSIVE walk (session_id, id) AS (SELECT place.session_id, {following % '?'}"
        f" FROM ({source}) AS place UNION ALL SELECT place.session_id, {following % 'place.id'}"
        " FROM walk AS place WHERE place.id IS NOT NULL ORDER BY 2 NULLS LAST LIMIT ?)"
        " SELECT id FROM walk WHERE id IS NOT NULL"
    )
    # Both parts have the same conditions; the limit follows them.
    return walk, (*values, after or "", *source_values, *values)

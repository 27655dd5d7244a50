"""The rows of several sessions, merged by their keys.

A recursive query holds the next key of each session and takes the first until the page is full. SQLite
keeps the rows of a recursive query with ORDER BY in a priority queue
(https://sqlite.org/lang_with.html).
"""

from collections.abc import Mapping
from typing import Any

from agent_orchestrator.stores.sql.listing import Ordering, Statement, where_all


def merged(
    table: str,
    sessions: Statement,
    ordering: Ordering,
    after: str | None,
    conditions: Mapping[str, Any],
) -> Statement:
    """Return the statement (see :data:`agent_orchestrator.stores.sql.listing.Merge`)."""
    source, source_values = sessions
    text, values = where_all(conditions)
    condition = text.replace(" WHERE ", " AND ", 1)
    following = (
        f"(SELECT {ordering.first}({ordering.key}) FROM {table}"
        f" WHERE session_id = place.session_id{condition} AND {ordering.after_key()})"
    )
    next_one = following.removesuffix("?)") + "place.key)"
    walk = (
        f"WITH RECURSIVE walk (session_id, key) AS (SELECT place.session_id, {following}"
        f" FROM ({source}) AS place UNION ALL SELECT place.session_id, {next_one}"
        f" FROM walk AS place WHERE place.key IS NOT NULL ORDER BY 2 {ordering.direction} NULLS LAST"
        " LIMIT ?) SELECT key FROM walk WHERE key IS NOT NULL"
    )
    # The condition appears twice, so its values do too. The caller appends the limit.
    start = ordering.start if after is None else after
    return walk, (*values, start, *source_values, *values)

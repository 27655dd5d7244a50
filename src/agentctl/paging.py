"""Reading all pages of a list."""

from typing import Any

import attrs

from agent_orchestrator.operations.table import Operation
from agentctl.connection import DaemonConnection

_PAGE: int = 1000


async def pages(
    connection: DaemonConnection,
    operation: Operation[Any, Any],
    items: str,
    *,
    limit: int | None,
    cursor: str | None,
    **filters: Any,
) -> Any:
    """Return one page if a limit or cursor is given, else all pages merged into one.

    :param items: the field of the answer that contains the items.
    """
    if limit is not None or cursor is not None:
        return await connection.call(operation, limit=limit, cursor=cursor, **filters)
    entries: list[Any] = []
    while True:
        page = await connection.call(operation, limit=_PAGE, cursor=cursor, **filters)
        entries += getattr(page, items)
        cursor = page.next_cursor
        if cursor is None:
            return attrs.evolve(page, **{items: entries})

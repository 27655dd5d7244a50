"""Listings that come in pages."""

from typing import Any

import attrs

from agent_orchestrator.operations import Operation
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
    """Return one page, or with neither limit nor cursor the whole listing as one.

    :param items: the field of the answer that holds the items.
    """
    if limit is not None or cursor is not None:
        return await connection.call(operation, limit=limit, cursor=cursor, **filters)
    found: list[Any] = []
    while True:
        page = await connection.call(operation, limit=_PAGE, cursor=cursor, **filters)
        found += getattr(page, items)
        cursor = page.next_cursor
        if cursor is None:
            return attrs.evolve(page, **{items: found})

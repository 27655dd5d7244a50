"""Reading all pages of a list or a tree."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from agent_orchestrator.operations.sessions import GET_TREE, SessionTree, TreePage
from agent_orchestrator.operations.table import Operation

if TYPE_CHECKING:
    from agentctl.connection import DaemonConnection

_PAGE: int = 1000


async def pages(
    connection: "DaemonConnection",
    operation: Operation[Any, Any],
    *,
    limit: int | None = None,
    cursor: str | None = None,
    **filters: Any,
) -> Any:
    """Return one page if a limit or cursor is given, else all pages merged into one."""
    if limit is not None or cursor is not None:
        return await connection.call(operation, limit=limit, cursor=cursor, **filters)
    entries: list[Any] = []
    async for page in each_page(connection, operation, **filters):
        entries += items_of(page)
    return attrs.evolve(page, **{_items_field(page): entries})


def items_of(page: Any) -> Sequence[Any]:
    """Return the items of a page of any list."""
    items: Sequence[Any] = getattr(page, _items_field(page))
    return items


def _items_field(page: Any) -> str:
    name: str = attrs.fields(type(page))[0].name  # the items are the first field of each page
    return name


async def each_page(
    connection: "DaemonConnection", operation: Operation[Any, Any], **filters: Any
) -> AsyncIterator[Any]:
    """Yield the pages of a list, at least one."""
    cursor: str | None = None
    while True:
        page = await connection.call(operation, limit=_PAGE, cursor=cursor, **filters)
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


async def tree_pages(
    connection: "DaemonConnection", session_id: str, limit: int | None, cursor: str | None
) -> TreePage:
    """Return one page of a tree if a limit or cursor is given, else the whole tree as one page."""
    tree: TreePage = await connection.call(
        GET_TREE,
        session_id=session_id,
        cursor=cursor,
        **({} if limit is None else {"limit": limit}),
    )
    while limit is None and cursor is None and tree.next_cursor is not None:
        page: TreePage = await connection.call(
            GET_TREE, session_id=tree.session.id, cursor=tree.next_cursor
        )
        tree = attrs.evolve(_joined(tree, page), next_cursor=page.next_cursor)
    return tree


Branch = TypeVar("Branch", bound=SessionTree)


def _joined(tree: Branch, page: SessionTree) -> Branch:
    """Return a tree with the next page added."""
    children = [*tree.children]
    for child in page.children:
        if child.repeated and children:  # it continues the last child
            children[-1] = _joined(children[-1], child)
        else:
            children.append(child)
    return attrs.evolve(tree, children=tuple(children))

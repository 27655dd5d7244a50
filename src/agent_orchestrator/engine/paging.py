"""Pages of lists, limited by the number and the size of their items."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final, TypeVar

PAGE_SIZE: Final = 8 * 2**20
"""Characters of text after which a page ends. A thousand large items would not fit into memory: a run's
result, or one line of an agent, may have 64 million."""

BATCH_SIZE: Final = 2**20
"""The same for one read of a stream."""


T = TypeVar("T")


def page(
    query: Callable[[str | None, int], Sequence[T]],
    after: str | None,
    limit: int,
    *,
    cursor_of: Callable[[T], str] = attrgetter("id"),
) -> tuple[tuple[T, ...], str | None]:
    """Return a page, and the cursor of the next page if there is one.

    :param query: returns the items after a cursor, up to a number of items and :data:`PAGE_SIZE`.
    :param cursor_of: returns the cursor of an item.
    """
    rows = query(after, limit + 1)
    items = tuple(rows[:limit])
    if not items:
        return (), None
    # A page with fewer items than the limit may have ended because of its size.
    last = cursor_of(items[-1])
    more = len(rows) > limit or bool(query(last, 1))
    return items, last if more else None

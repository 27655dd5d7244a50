"""Pages of lists: at most so many items, and fewer where they are large."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final, TypeVar

PAGE_SIZE: Final = 8 * 2**20
"""Characters of text after which a page ends before its limit: a run's result, or what an agent says
in one line, may have 64 million, and a page of a thousand of them no place in anybody's memory."""

BATCH_SIZE: Final = 2**20
"""The same for what a stream reads at once."""


T = TypeVar("T")


def page(
    query: Callable[[str | None, int], Sequence[T]],
    after: str | None,
    limit: int,
    *,
    cursor_of: Callable[[T], str] = attrgetter("id"),
) -> tuple[tuple[T, ...], str | None]:
    """Return a page, and the cursor of the next one where there is more.

    :param query: returns what comes after a cursor, at most so many and so large.
    :param cursor_of: returns the cursor after an item.
    """
    found = query(after, limit + 1)
    items = tuple(found[:limit])
    if not items:
        return (), None
    # Where there are too few for the limit, the page may have ended for its size.
    last = cursor_of(items[-1])
    more = len(found) > limit or bool(query(last, 1))
    return items, last if more else None

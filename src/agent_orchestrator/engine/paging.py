"""Pages of lists, limited by the number and the size of their items, and searches of lists."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final, TypeVar

PAGE_SIZE: Final = 8 * 2**20
"""Characters of text after which a page ends. A thousand large items would not fit into memory: a run's
result, or one line of an agent, may have 64 million."""

BATCH_SIZE: Final = 2**20
"""The same for one read of a stream."""

MAX_EXAMINED: Final = 2_000
"""Maximum number of items that a search reads for a page, so that its cost does not grow with the list."""

_SEARCHED_AT_ONCE: Final = 200


T = TypeVar("T")


def page(
    query: Callable[[str | None, int], Sequence[T]],
    after: str | None,
    limit: int,
    *,
    cursor_of: Callable[[T], str] = attrgetter("id"),
    matches: Callable[[T], bool] | None = None,
) -> tuple[tuple[T, ...], str | None]:
    """Return a page, and the cursor of the next page if there is one.

    :param query: returns the items after a cursor, up to a number of items and :data:`PAGE_SIZE`.
    :param cursor_of: returns the cursor of an item.
    :param matches: whether an item belongs to the list. A page then reads at most
        :data:`MAX_EXAMINED` items, and may be empty although more items follow.
    """
    if matches is not None:
        return _search(query, after, limit, cursor_of, matches)
    rows = query(after, limit + 1)
    items = tuple(rows[:limit])
    if not items:
        return (), None
    # A page with fewer items than the limit may have ended because of its size.
    last = cursor_of(items[-1])
    more = len(rows) > limit or bool(query(last, 1))
    return items, last if more else None


def _search(
    query: Callable[[str | None, int], Sequence[T]],
    after: str | None,
    limit: int,
    cursor_of: Callable[[T], str],
    matches: Callable[[T], bool],
) -> tuple[tuple[T, ...], str | None]:
    found: list[T] = []
    for batch in _batches(query, after, cursor_of):
        for item in batch:
            after = cursor_of(item)
            if matches(item):
                found.append(item)
            if len(found) == limit:
                break
        if len(found) == limit:
            break
    more = after is not None and bool(query(after, 1))
    return tuple(found), after if more else None


def _batches(
    query: Callable[[str | None, int], Sequence[T]],
    after: str | None,
    cursor_of: Callable[[T], str],
) -> Iterator[Sequence[T]]:
    """Yield the items that a search reads. A batch that its size has ended is the last."""
    for _ in range(MAX_EXAMINED // _SEARCHED_AT_ONCE):
        batch = query(after, _SEARCHED_AT_ONCE)
        yield batch
        if len(batch) < _SEARCHED_AT_ONCE:
            return
        after = cursor_of(batch[-1])


def has_words(words: str, texts: Iterable[str | None]) -> bool:
    """Return whether each of the words is in one of the texts. Case does not matter."""
    folded = [text.casefold() for text in texts if text]
    return all(any(word in text for text in folded) for word in words.casefold().split())

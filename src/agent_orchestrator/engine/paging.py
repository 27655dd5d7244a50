"""Pages of lists: at most so many items, and fewer where they are large."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

PAGE_SIZE: Final = 8 * 2**20
"""Characters of text after which a page ends before its limit: a run's result, or what an agent says
in one line, may have 64 million, and a page of a thousand of them no place in anybody's memory."""

BATCH_SIZE: Final = 2**20
"""The same for what a stream reads at once."""


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


def page(
    look: Callable[[str | None, int], Sequence[T]], after: str | None, limit: int
) -> tuple[tuple[T, ...], str | None]:
    """Return a page, and the cursor of the next one where there is more.

    :param look: returns what comes after an identifier, at most so many.
    """
    found = look(after, limit + 1)
    items = tuple(found[:limit])
    if not items:
        return (), None
    # Where there are too few for the limit, the page may have ended for its size.
    more = len(found) > limit or bool(look(items[-1].id, 1))
    return items, items[-1].id if more else None

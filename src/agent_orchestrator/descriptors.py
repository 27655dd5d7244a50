"""How many files this process may have open, and warnings that do not come again and again."""

import errno
import resource
import time
from collections.abc import Callable
from typing import Final

_MAX_DESCRIPTORS: Final = 1 << 20
"""What "no limit" is taken for: what Linux allows by default (``fs.nr_open``)."""

SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""The numbers of errors that say that no more files can be opened for now."""

_usual_limit: int | None = None


def descriptor_limit() -> int:
    """Return how many files this process may have open (the soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    Programs that runners start keep the limit there was (:func:`usual_descriptor_limit`): some fail
    with descriptors above 1,023, and some close each that might be open.
    """
    global _usual_limit  # noqa: PLW0603 - as the limit, it belongs to the process
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _usual_limit = soft if _usual_limit is None else _usual_limit
    return descriptor_limit()


def usual_descriptor_limit() -> int:
    """Return the soft limit of open files before this process raised it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if _usual_limit is None else _usual_limit


class RateLimitedWarning:
    """Says when a warning that may come again and again is to be logged.

    :param seconds: between two of them.
    :param clock: seconds that only go up.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._count = 0
        self._next: float | None = None

    def due(self) -> int:
        """Count an occurrence; return how many there are to tell of, 0 if it is too early."""
        self._count += 1
        now = self._clock()
        if self._next is not None and now < self._next:
            return 0
        self._next = now + self._seconds
        count, self._count = self._count, 0
        return count

"""The limit of open files of this process, and a rate limit for warnings."""

import errno
import resource
import time
from collections.abc import Callable
from typing import Final

_MAX_DESCRIPTORS: Final = 1 << 20
"""The limit to assume for "no limit": the default of Linux (``fs.nr_open``)."""

SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""The error numbers for a lack of file descriptors."""

_usual_limit: int | None = None


def descriptor_limit() -> int:
    """Return this process's soft limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    Runners start programs with the earlier limit (:func:`usual_descriptor_limit`): some programs fail
    with descriptors above 1,023, others close every descriptor up to the limit.
    """
    global _usual_limit  # noqa: PLW0603 - the limit is global too
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
    """Limits how often a warning is logged.

    :param seconds: minimum time between two warnings.
    :param clock: a monotonic clock, in seconds.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._count = 0
        self._next: float | None = None

    def due(self) -> int:
        """Count an occurrence. Return the number of occurrences to log now; 0 means do not log."""
        self._count += 1
        now = self._clock()
        if self._next is not None and now < self._next:
            return 0
        self._next = now + self._seconds
        count, self._count = self._count, 0
        return count

"""Returning memory to the system."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_LARGE_BLOCK: Final = 2**20


def return_large_blocks() -> None:
    """Return free blocks of 1 MiB or more to the system at once.

    By default glibc keeps free blocks of up to 32 MiB, so that a process can hold several times the
    memory that it uses. Other C libraries ignore this.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


MANY_CONNECTIONS: Final = 100
"""Number of connections from which on their end is worth a collection."""

RECLAIM_AFTER_S: Final = 1.0
"""Seconds from the end of connections to the collection, so that their tasks have ended."""


def reclaim() -> None:
    """Free objects that refer to each other, and return the free memory to the system.

    The collector of Python would find them after many more allocations only, and an idle daemon makes few.
    This takes about 0.1 ms for each open stream.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class Reclaimer:
    """Calls a function some time after the number of connections has fallen to half.

    The canceled tasks of a stream refer to each other (exceptions, their tracebacks and frames).

    :param schedule: calls a function after a number of seconds.
    :param act: the function.
    """

    def __init__(
        self,
        schedule: Callable[[float, Callable[[], None]], object],
        act: Callable[[], None] = reclaim,
    ) -> None:
        self._schedule = schedule
        self._act = act
        self._peak = 0
        self._is_scheduled = False

    def update(self, count: int) -> None:
        """Note the number of open connections."""
        self._peak = max(self._peak, count)
        if self._peak >= MANY_CONNECTIONS and 2 * count <= self._peak and not self._is_scheduled:
            self._is_scheduled = True
            self._schedule(RECLAIM_AFTER_S, self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        self._peak = 0
        self._act()

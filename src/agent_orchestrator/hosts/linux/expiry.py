"""The times until which agents may work, which their supervisors read by themselves.

They are in memory that this process shares with its fork servers and supervisors. So a supervisor knows the time
even if this process is stopped, and moving it takes no message to each of them.
"""

import fcntl
import heapq
import mmap
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from math import inf
from typing import Final

from attrs import define, field

from agent_orchestrator.hosts.linux import forkserver as program

_SEAL_FUTURE_WRITE: Final = 0x10
"""``F_SEAL_FUTURE_WRITE``, which Python does not name: whoever opens the memory again can only read it."""


class ExpiryTable:
    """The shared memory: a number for each engine with a lease. The first one is for all other engines."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("agent-expiries", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, program.EXPIRIES_SIZE)
        self._memory = mmap.mmap(self.descriptor, program.EXPIRIES_SIZE)
        self.moments = memoryview(self._memory).cast("d")
        self.moments[0] = inf
        self._free = list(range(1, len(self.moments)))
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE
        with suppress(OSError):  # an older kernel
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def take(self) -> int:
        """Return a free number.

        :raises OSError: if there is none.
        """
        if not self._free:
            raise OSError("too many engines with a lease in this process")
        return heapq.heappop(self._free)

    def give_back(self, number: int) -> None:
        """Free a number."""
        self.moments[number] = 0.0
        heapq.heappush(self._free, number)


@cache
def expiry_table() -> ExpiryTable:
    """Return the table of this process."""
    return ExpiryTable()


@define(eq=False)
class Expiry:
    """Until when the agents of one engine may work.

    :param ends_at: returns the time, by :func:`time.monotonic`.
    :ivar number: its number in the table.
    """

    ends_at: Callable[[], float]
    number: int = field(init=False)
    _has_passed: bool = field(default=False, init=False)
    _noted: float = field(default=0.0, init=False)
    """The last time that has passed and was noted. Each counts once."""

    def __attrs_post_init__(self) -> None:
        table = expiry_table()
        self.number = table.take()
        weakref.finalize(self, table.give_back, self.number)

    def update(self) -> None:
        """Write the present time."""
        moments = expiry_table().moments
        written = moments[self.number]
        if written <= time.monotonic() and written != self._noted:
            self._has_passed, self._noted = True, written
        moments[self.number] = self.ends_at()

    def begin(self) -> None:
        """Write the present time for an agent that is being started."""
        self.update()
        if expiry_table().moments[self.number] <= time.monotonic():
            self._has_passed = True  # its supervisor ends it at once

    def extend(self) -> bool:
        """Write the present time. Return False if an earlier one has passed since the last call."""
        self.update()
        has_passed, self._has_passed = self._has_passed, False
        return not has_passed

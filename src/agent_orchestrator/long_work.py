"""Work on long values in a worker thread, without keeping the event loop waiting.

Threads of Python take turns. The event loop gives up its turn at each system call, and a thread that
is busy keeps its turn for 5 ms (``sys.getswitchinterval``). A loop that makes a dozen system calls for
an answer then waits a dozen times. The turns are shorter while a long value is handled. They are not
always so, because each change of turns costs time.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

Result = TypeVar("Result")

SHORT_TURN_S: Final = 0.0005
"""Seconds of a thread's turn while a long value is handled."""


class _Turns:
    """The length of the turns of this process. Can be used in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._usual_s = 0.0

    @contextmanager
    def short(self) -> Iterator[None]:
        """Shorten the turns until the last scope ends."""
        with self._lock:
            if self._users == 0:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual_s, SHORT_TURN_S))
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    sys.setswitchinterval(self._usual_s)


short_turns: Final = _Turns().short
"""A scope of work on a long value, in a thread other than the event loop's."""


async def run_long(
    function: Callable[..., Result], *args: Any, limiter: CapacityLimiter | None = None
) -> Result:
    """Return a function's result for long values. It is called in a worker thread, with short turns.

    :param limiter: limits how many such calls run at once. None: as many as anyio has threads.
    """
    return await run_sync(_with_short_turns, function, args, limiter=limiter)


def _with_short_turns(function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    with short_turns():
        return function(*args)

"""Identifiers: opaque strings with a prefix, sortable by creation time."""

import base64
import os
import threading
import time
from typing import Literal, Protocol

Kind = Literal["ses", "run", "msg", "req", "dmn"]

_RANDOM_BITS = 80


class IdSource(Protocol):
    """Makes identifiers; tests pass a predictable one."""

    def __call__(self, kind: Kind) -> str:
        """Return a new identifier ``<kind>_…`` that sorts after all this source made before."""
        ...


def _encode(number: int) -> str:
    """Return 128 bits in base 32 with the "extended hex" alphabet, whose order is that of the
    numbers (RFC 4648, section 7), in lower case.
    """
    return base64.b32hexencode(number.to_bytes(16))[:26].decode().lower()


class SortableIds:
    """Identifiers in the manner of ULID: 48 bits of milliseconds, then 80 random bits.

    Within one millisecond, or when the clock steps back, the random part counts up, so that the
    order of the identifiers is the order in which this source made them. Safe to call from threads.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self, kind: Kind) -> str:
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | int.from_bytes(os.urandom(10))
        with self._lock:
            if fresh >> _RANDOM_BITS <= self._last >> _RANDOM_BITS:
                fresh = self._last + 1
            self._last = fresh
        return f"{kind}_{_encode(fresh)}"

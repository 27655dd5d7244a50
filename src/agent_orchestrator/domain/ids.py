"""Identifiers: opaque strings with a prefix, sortable by creation time."""

import os
import threading
import time
from typing import Literal, Protocol

Kind = Literal["ses", "run", "msg", "req", "evt", "dmn"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: its order is the order of the numbers it writes."""

_RANDOM_BITS = 80


class IdSource(Protocol):
    """Makes identifiers; tests pass a predictable one."""

    def __call__(self, kind: Kind) -> str:
        """Return a new identifier ``<kind>_…`` that sorts after all this source made before."""
        ...


def _encode(number: int) -> str:
    digits = []
    for _ in range(26):
        digits.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(digits))


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

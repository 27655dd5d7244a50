"""Identifiers: opaque strings with a prefix, sortable by creation time."""

import base64
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol

Kind = Literal["ses", "run", "msg", "req", "dmn", "tok", "ntc", "psh"]

_RANDOM_BITS = 80
_STEP_BYTES = 8
_LENGTH = 26
_SKEW_MS = 60_000
"""How far the clocks of two machines may differ."""


class IdSource(Protocol):
    """Makes identifiers; tests pass a predictable one."""

    def __call__(self, kind: Kind) -> str:
        """Return a new identifier ``<kind>_…`` that sorts after all earlier ones of this source."""
        ...


# The "extended hex" alphabet of RFC 4648, section 7, keeps the order of the numbers.
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_PAIRS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_SHIFTS: Final = tuple(range(120, -1, -10))


def _encode(number: int) -> str:
    # A third of the time of `base64.b32hexencode`, which matters for every message.
    number <<= 2  # 130 bits: 26 digits of five
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def _decode(identifier: str) -> int:
    """Return the number in an identifier; 0 if it has none."""
    _, _, text = identifier.partition("_")
    if len(text) != _LENGTH:
        return 0
    try:
        return int.from_bytes(base64.b32hexdecode(text.upper() + "=" * (-_LENGTH % 8)))
    except ValueError:
        return 0


_FORM: Final = re.compile(rf"[{_ALPHABET}]{{{_LENGTH}}}")


def form_problem(kind: Kind, identifier: str, *, now_ms: int) -> str | None:
    """Return why an identifier of another source cannot be used here; None if it can.

    All later ones sort after it. So it must not be of the future.

    :param now_ms: milliseconds since 1970.
    """
    prefix, _, text = identifier.partition("_")
    if prefix != kind or not _FORM.fullmatch(text) or text[-1] not in _ALPHABET[::4]:
        return f"is not an id of this program, such as {kind}_ and {_LENGTH} digits"
    if _decode(identifier) >> _RANDOM_BITS > now_ms + _SKEW_MS:
        return "is an id of the future"
    return None


class SortableIds:
    """Identifiers like ULIDs: 48 bits of milliseconds, then 80 random bits.

    Within a millisecond, or when the clock steps back, the number is counted up, so that identifiers
    sort in the order of their creation. It is counted up by a random amount, because several sources may
    follow the same identifier. Safe to call from several threads.

    :param clock_ns: nanoseconds since 1970.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._last = 0
        self._lock = threading.Lock()
        self._clock_ns = clock_ns

    def follow(self, identifiers: Iterable[str]) -> None:
        """Make all later identifiers sort after these of an earlier source, even if the clock was set back.

        Identifiers of another form are ignored.
        """
        newest = max((_decode(identifier) for identifier in identifiers), default=0)
        with self._lock:
            self._last = max(self._last, newest)

    @property
    def newest(self) -> str:
        """An identifier of no kind, after which the next one sorts: for another source to follow."""
        return f"_{_encode(self._last)}"

    def __call__(self, kind: Kind) -> str:
        number = (self._clock_ns() // 1_000_000 << _RANDOM_BITS) | int.from_bytes(os.urandom(10))
        with self._lock:
            if number >> _RANDOM_BITS <= self._last >> _RANDOM_BITS:
                number = self._last + 1 + int.from_bytes(os.urandom(_STEP_BYTES))
            self._last = number
        return f"{kind}_{_encode(number)}"

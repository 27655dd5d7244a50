r"""Splits a byte stream into lines, and decodes a line as JSON, without I/O. Only ``\n`` ends a line.
``str.splitlines`` also cuts at U+2028, U+0085 and others, which agents print raw inside JSON strings.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.fields import MAX_DIGITS
from agent_orchestrator.wire import strict_json

MAX_LINE: Final = 64 * 2**20
"""Maximum bytes of a line that is delivered completely."""

HEAD_SIZE: Final = 64 * 2**10
"""Bytes that are delivered of a line longer than :data:`MAX_LINE`."""

_SHORT: Final = 2**20
"""Maximum bytes of a line that is kept in parts until it is complete. A longer line is joined and hashed
while it arrives, because doing that at its end would take too long."""

MAX_JSON_DEPTH: Final = 32
"""Maximum depth of a value. A deeper value becomes its JSON text, because encoders recurse."""


@frozen
class Truncation:
    """A line that was too long to keep.

    :param size: bytes of the whole line, without its newline.
    :param sha256: hexadecimal digest of the whole line.
    """

    size: int
    sha256: str


@frozen
class Line:
    r"""One line without its ``\n``. If it was truncated, ``data`` is its head."""

    data: bytes | bytearray
    truncation: Truncation | None = None


class LineFramer:
    """Splits chunks of bytes into lines, in linear time.

    :param max_line: maximum bytes of a line that is delivered completely.
    :param head: bytes that are delivered of a longer line.
    """

    def __init__(self, max_line: int = MAX_LINE, head: int = HEAD_SIZE) -> None:
        self._max_line = max_line
        self._head = head
        self._parts: list[bytes] = []
        self._size = 0
        self._long = bytearray()
        """The line so far, if it is longer than :data:`_SHORT`."""
        self._digest: Any = None

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Take the next bytes and return the lines they complete. Consume the iterator."""
        first, *others = chunk.split(b"\n")
        self._add(first)
        if not others:
            return
        yield self._take()
        last = others.pop()
        for piece in others:
            if len(piece) <= self._max_line:
                yield Line(piece)
            else:
                self._add(piece)
                yield self._take()
        self._add(last)

    def finish(self) -> Iterator[Line]:
        r"""Return the last line if the stream ended without ``\n``."""
        if self._size:
            yield self._take()

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        had_room = self._size <= self._max_line
        self._size += len(piece)
        if self._digest is None:
            self._parts.append(piece)
            if self._size <= min(_SHORT, self._max_line):
                return
            piece = b"".join(self._parts)
            self._parts.clear()
            self._digest = hashlib.sha256()
        self._digest.update(piece)
        if had_room:
            self._long += piece
            if self._size > self._max_line:
                self._long = self._long[: self._head]

    def _take(self) -> Line:
        data: bytes | bytearray = b"".join(self._parts)
        truncation = None
        if self._digest is not None:
            data = self._long
            if self._size > self._max_line:
                truncation = Truncation(self._size, self._digest.hexdigest())
        self._parts, self._size, self._long, self._digest = [], 0, bytearray(), None
        return Line(data, truncation)


def decoded(data: bytes | bytearray) -> str:
    """Return the text; bytes that are not UTF-8 become U+FFFD."""
    return data.decode("utf-8", "replace")


def json_object(data: bytes | bytearray) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is not a JSON object.

    Values that JSON libraries accept but a store refuses are changed: half a surrogate pair becomes
    U+FFFD, and a number beyond a float's range, or with very many digits, becomes text.
    """
    if data.lstrip()[:1] != b"{":
        return None
    try:
        value = _DECODER.decode(decoded(data))
        if not isinstance(value, dict):
            return None
        return replace_surrogates(value) if _SURROGATE.search(data) else value
    except (ValueError, RecursionError):
        return None


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def json_number(digits: str) -> float | str:
    """Return a number as a float, or as text if it is beyond a float's range."""
    value = float(digits)
    return value if math.isfinite(value) else digits


def json_integer(digits: str) -> int | str:
    """Return a number as an integer, or as text if it has more than :data:`MAX_DIGITS` digits."""
    return int(digits) if len(digits) - digits.startswith("-") <= MAX_DIGITS else digits


# Shared, because json.loads would create a decoder for each call.
_DECODER = json.JSONDecoder(parse_float=json_number, parse_int=json_integer, parse_constant=str)


def replace_surrogates(value: Any) -> Any:
    """Return a value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(entry) for key, entry in value.items()}
    return value


def limit_depth(value: Any, max_depth: int = MAX_JSON_DEPTH) -> Any:
    """Return the value with parts that are too deep replaced by their JSON text."""
    return _cut(value, max_depth) if _is_deep(value, max_depth) else value


def _is_deep(value: Any, max_depth: int) -> bool:
    # Level by level, without a call for each value: values may have a hundred thousand parts.
    level = [value]
    for _ in range(max_depth):
        inner: list[Any] = []
        for container in level:
            parts = container.values() if isinstance(container, Mapping) else container
            inner += [part for part in parts if isinstance(part, (dict, list))]
        if not inner:
            return False
        level = inner
    return True


def _cut(value: Any, depth: int) -> Any:
    if isinstance(value, (Mapping, list)) and depth <= 0:
        return strict_json.text_of(value) if strict_json.is_long(value) else json.dumps(value)
    if isinstance(value, Mapping):
        return {key: _cut(part, depth - 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_cut(part, depth - 1) for part in value]
    return value

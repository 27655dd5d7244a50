r"""A byte stream cut into lines, and a line read as JSON: no input or output, only bytes.

Lines end at ``\n`` and nowhere else. ``str.splitlines`` also cuts at U+2028, U+0085 and others,
which agents print raw inside JSON strings (codex 0.169 does).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

MAX_LINE: Final = 64 * 2**20
"""Bytes of a line that is delivered whole."""

HEAD: Final = 64 * 2**10
"""Bytes kept of a longer one."""

_MAX_DEPTH: Final = 32
"""Beyond it a value is kept as its JSON text: encoders recurse."""


@frozen
class Truncation:
    """What is known of a line that was too long to keep.

    :param size: bytes of the whole line, without its end.
    :param sha256: hexadecimal digest of the whole line.
    """

    size: int
    sha256: str


@frozen
class Line:
    r"""One line without its ``\n``; when truncated, ``data`` is its head."""

    data: bytes
    truncation: Truncation | None = None


class LineFramer:
    """Cuts chunks into lines, whatever the chunks' borders, in time linear in the bytes.

    :param max_line: bytes a line may have to be delivered whole.
    :param head: bytes delivered of a longer one.
    """

    def __init__(self, max_line: int = MAX_LINE, head: int = HEAD) -> None:
        self._max_line = max_line
        self._head = head
        self._parts: list[bytes] = []
        self._size = 0
        self._digest: Any = None

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Take the next bytes and return the lines they complete. Consume the iterator."""
        first, *rest = chunk.split(b"\n")
        self._add(first)
        if not rest:
            return
        yield self._take()
        last = rest.pop()
        for piece in rest:
            if len(piece) <= self._max_line:
                yield Line(piece)
            else:
                self._add(piece)
                yield self._take()
        self._add(last)

    def finish(self) -> Iterator[Line]:
        r"""Return the last line when the stream ended without ``\n``."""
        if self._size:
            yield self._take()

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        self._size += len(piece)
        if self._digest is not None:
            self._digest.update(piece)
            return
        self._parts.append(piece)
        if self._size > self._max_line:
            whole = b"".join(self._parts)
            self._digest = hashlib.sha256(whole)
            self._parts = [whole[: self._head]]

    def _take(self) -> Line:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        truncation = None
        if self._digest is not None:
            truncation = Truncation(self._size, self._digest.hexdigest())
        self._parts, self._size, self._digest = [], 0, None
        return Line(data, truncation)


def decoded(data: bytes) -> str:
    """Return the text; bytes that are not UTF-8 become U+FFFD."""
    return data.decode("utf-8", "replace")


def json_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object a line holds, or None when it holds something else.

    What JSON libraries let through but a store refuses is made storable: half a surrogate pair
    becomes U+FFFD, a number beyond a float's range stays text.
    """
    if data.lstrip()[:1] != b"{":
        return None
    try:
        value = _DECODER.decode(decoded(data))
        if not isinstance(value, dict):
            return None
        return _mended(value) if _SURROGATE.search(data) else value
    except (ValueError, RecursionError):
        return None


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")


def _number(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


# json.loads makes a new one at each call.
_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=str)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(entry) for entry in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(entry) for key, entry in value.items()}
    return value


def shallow(value: Any, depth: int = 0) -> Any:
    """Return the value with whatever lies too deep replaced by its JSON text."""
    if isinstance(value, (Mapping, list)) and depth >= _MAX_DEPTH:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {key: shallow(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [shallow(part, depth + 1) for part in value]
    return value

"""Reading of long lines without blocking the event loop.

A long line is read in a worker thread, in slices, because each call of C code holds the interpreter lock
and so blocks the event loop. A line that would take far more memory than its size is cut instead.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, cast

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from attrs import frozen

from agent_orchestrator.long_work import run_long
from agent_orchestrator.runners.lines import (
    HEAD_SIZE,
    MAX_JSON_DEPTH,
    MAX_LINE,
    Line,
    Truncation,
    decoded,
    json_integer,
    json_number,
    json_object,
    limit_depth,
    replace_surrogates,
)
from agent_orchestrator.wire.long_json import SLICE_SIZE, take_strings

LONG_LINE: Final = 64 * 2**10
"""Minimum bytes of a line that is read in a worker thread, one slice at a time."""

MANY: Final = 2_000
"""Minimum number of brackets, commas and colons of a shorter line that is read in a worker thread too. Each
takes some microseconds."""

MAX_STRUCTURE: Final = 2**17
"""Maximum number of brackets, commas and colons outside of strings in a long line that is read as JSON. The
values between them take some 100 bytes each."""

MAX_SKELETON: Final = 4 * 2**20
"""Maximum bytes of a long line that is read as JSON, without its strings but with its keys."""

_MAX_READERS: Final = 2
"""Maximum number of long lines that are read at the same time."""


@frozen
class Text:
    """The text of a line that is not a JSON object.

    :param text: the line, or its head if it was cut.
    :param truncation: the size and hash of a line that was cut.
    """

    text: str
    truncation: Truncation | None = None

    @property
    def note(self) -> dict[str, Any]:
        """Return the fields of an event with this text that describe the cut; empty if it was not
        cut.
        """
        if self.truncation is None:
            return {}
        return {"truncated": {"size": self.truncation.size, "sha256": self.truncation.sha256}}


_limiter: RunVar[CapacityLimiter] = RunVar("agent_orchestrator.long_lines")

Said = TypeVar("Said")
Read = TypeVar("Read")


async def read(line: Line, reader: Callable[[Line], Read]) -> Read:
    """Return the reader's result for a line. A long line is read in a worker thread."""
    return await run_in_thread(reader, line) if _takes_long(line.data) else reader(line)


def _takes_long(data: bytes | bytearray) -> bool:
    return len(data) >= LONG_LINE or (
        len(data) >= MANY and sum(data.count(sign) for sign in _STRUCTURE) >= MANY
    )


async def run_in_thread(reader: Callable[[Said], Read], value: Said) -> Read:
    """Call a reader with a long value in a worker thread, and return its result."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(_MAX_READERS)
        _limiter.set(limiter)
    return await run_long(reader, value, limiter=limiter)


# --- JSON -----------------------------------------------------------------------------------


class _TooLarge(Exception):
    pass


def read_object(line: Line) -> dict[str, Any] | Text:
    """Return the JSON object that a line holds, or the line as text if it holds none.

    Call it with :func:`read`: it blocks for a long line. A long line of more values than
    :data:`MAX_STRUCTURE` makes is cut.
    """
    data = line.data
    if line.truncation is not None or data[:LONG_LINE].lstrip()[:1] != b"{":
        return read_text(line)
    try:
        value = _short_object(data) if len(data) < LONG_LINE else _long_object(data)
    except _TooLarge:
        return _cut(data)
    except (ValueError, RecursionError):
        value = None
    return read_text(line) if value is None else value


_MAX_JSON_DEPTH: Final = MAX_JSON_DEPTH - 8
"""Less than the depth of an event, so that the result need not be checked for depth again."""


def _short_object(data: bytes | bytearray) -> dict[str, Any] | None:
    value = json_object(data)
    if value is None or data.count(b"{") + data.count(b"[") <= _MAX_JSON_DEPTH:
        return value
    return cast(dict[str, Any], limit_depth(value, _MAX_JSON_DEPTH))


_STRUCTURE: Final = b"[{,:"


def _long_object(data: bytes | bytearray) -> dict[str, Any] | None:
    """Return the object. Strings are decoded one by one. The rest, with placeholders for them, is small
    enough to be decoded at once.

    :raises _TooLarge: if it would take too much memory.
    :raises ValueError: if it is not JSON.
    """
    size = structure = 0

    def check_kept(part: bytes | bytearray, kind: Literal["string", "other"]) -> None:
        nonlocal size, structure
        size += len(part)
        if kind == "other":
            structure += len(part) - len(part.translate(None, _STRUCTURE))
        if structure > MAX_STRUCTURE or size > MAX_SKELETON:
            raise _TooLarge

    skeleton, strings = take_strings(data, check_kept=check_kept, check_string=_check_memory)

    def number_or_string(digits: str) -> Any:
        return strings[digits] if digits in strings else json_number(digits)

    decoder = json.JSONDecoder(
        parse_float=number_or_string, parse_int=json_integer, parse_constant=str
    )
    text = _decoded(skeleton)
    value = decoder.decode(text)
    if not isinstance(value, dict):
        return None
    return cast(
        dict[str, Any],
        limit_depth(replace_surrogates(value) if "\\u" in text else value, _MAX_JSON_DEPTH),
    )


# --- text -----------------------------------------------------------------------------------


def read_text(line: Line) -> Text:
    """Return a line as text.

    Call it with :func:`read`: it blocks for a long line. One whose text would take more memory than
    :data:`~agent_orchestrator.runners.lines.MAX_LINE` is cut.
    """
    if len(line.data) < LONG_LINE or line.truncation is not None:
        return Text(decoded(line.data), line.truncation)
    try:
        return Text(_decoded(line.data, escaped=True))
    except _TooLarge:
        return _cut(line.data)


_CONTROL: Final = bytes(range(0x20))
"""Control characters, which JSON escapes with up to six characters."""

_WIDE: Final = re.compile("[\U00010000-\U0010ffff]")
_MIDDLE: Final = re.compile("[^\0-\xff]")


def _decoded(data: bytes | bytearray, *, escaped: bool = False) -> str:
    """Return the text.

    :param escaped: whether its size as a JSON string must not exceed the limit either.
    :raises _TooLarge: if it takes too much memory.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = []
    controls = 0
    for start in range(0, len(data), SLICE_SIZE):
        piece = data[start : start + SLICE_SIZE]
        if escaped:
            controls += len(piece) - len(piece.translate(None, _CONTROL))
        pieces.append(decoder.decode(piece))
    pieces.append(decoder.decode(b"", final=True))
    _check_memory(pieces, 5 * controls)
    return "".join(pieces)


def _check_memory(pieces: list[str], more: int = 0) -> None:
    """Raise :exc:`_TooLarge` if the joined pieces and ``more`` further characters take too much memory. In
    a Python string each character takes as many bytes as the widest one.
    """
    width = 1
    for piece in pieces:
        if width < 4 and not piece.isascii():
            if _WIDE.search(piece):
                width = 4
            elif width < 2 and _MIDDLE.search(piece):
                width = 2
    if (sum(map(len, pieces)) + more) * width > MAX_LINE:
        raise _TooLarge


def _cut(data: bytes | bytearray) -> Text:
    return Text(decoded(data[:HEAD_SIZE]), Truncation(len(data), hashlib.sha256(data).hexdigest()))

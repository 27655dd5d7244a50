"""Server-sent events, both sides, without I/O (HTML standard, section 9.2)."""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

EPOCH_HEADER = "Log-Epoch"
"""The header that says in which epoch the log is read (see :class:`~agent_orchestrator.ports.View`). The
``id`` of a frame has no room for it: of one session it is a ``seq``."""

KEEPALIVE = b": still here\n\n"
"""A comment line: it keeps intermediaries from closing a quiet stream."""

CAUGHT_UP = b": caught up\n\n"
"""The comment that follows the last event there was when the reader came. A comment, as it must
neither move a reader's cursor nor reach one who knows event types only. To a reader that began at
the end it comes with the cursor it then has (an ``id`` without data is no event)."""

DRAINING = b": draining\n\n"
"""The comment by which a daemon that is about to stop says so; what still happens follows."""

STOPPING = b": stopping\n\n"
"""The comment that ends the stream of a daemon that stops: the reader is to come back with its
cursor. Not an event, as it is none of the log."""

CAUGHT_UP_COMMENT = "caught up"
DRAINING_COMMENT = "draining"


@frozen
class Frame:
    """One dispatched event. ``event`` is empty where the stream named none."""

    data: str
    event: str = ""
    id: str | None = None
    comment: str = ""
    """What a comment line said; such a frame holds nothing else."""


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame. Data without line feeds takes one ``data`` line."""
    lines = [] if frame.id is None else [f"id: {frame.id}"]
    if frame.event:
        lines.append(f"event: {frame.event}")
    lines += [f"data: {part}" for part in frame.data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


_JOINED: Final = 64 * 2**10
"""Bytes of data up to which a frame is put together."""


def encode_json(
    pieces: tuple[bytes, ...], event: str, cursor: str | None = None
) -> tuple[bytes, ...]:
    """Return the pieces of a frame whose data is JSON text, which has no line feeds, in pieces."""
    head = f"event: {event}\ndata: ".encode()
    if cursor is not None:
        head = f"id: {cursor}\n".encode() + head
    if len(pieces) == 1 and len(pieces[0]) <= _JOINED:
        return (b"%b%b\n\n" % (head, pieces[0]),)
    return (head, *pieces, b"\n\n")


MAX_FRAME: Final = 256 * 2**20
"""Bytes of the longest frame that is read. An agent's longest line, 64 MiB, may have three times as many
as JSON, where none of it is UTF-8."""

_LINE_COST: Final = 100
"""Bytes of memory that a line takes beside its own."""


class FrameTooLong(ValueError):
    """The other side sends a frame without an end."""


class Decoder:
    """Reads frames from bytes that arrive in any pieces."""

    def __init__(self) -> None:
        self._size = 0
        self._pending: list[bytes] = []
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    @property
    def pending(self) -> int:
        """About how many bytes of a frame have come that is not yet whole; none between two frames."""
        return self._size

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Take the next bytes and yield the frames they complete.

        Lines end at a line feed, with or without a carriage return before it; a lone carriage
        return, which the standard also allows, is not written by the servers this reads.

        :raises FrameTooLong: if one has more than :data:`MAX_FRAME`.
        """
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._count(line)
            self._pending.append(line)
            whole = b"".join(self._pending).removesuffix(b"\r").decode(errors="replace")
            self._pending.clear()
            if (frame := self._line(whole)) is not None:
                yield frame
        if rest:
            self._count(rest)
            self._pending.append(rest)

    def _count(self, piece: bytes) -> None:
        self._size += len(piece) + _LINE_COST
        if self._size > MAX_FRAME:
            raise FrameTooLong(f"a frame has more than {MAX_FRAME:,} bytes")

    def _line(self, line: str) -> Frame | None:
        if line.startswith(":"):
            self._size = 0 if not self._data else self._size
            return Frame("", id=self._id, comment=line[1:].strip())
        if not line:
            frame = Frame("\n".join(self._data), self._event, self._id) if self._data else None
            self._data, self._event, self._size = [], "", 0
            return frame
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

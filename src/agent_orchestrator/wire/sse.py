"""Encoding and decoding of server-sent events, without I/O (HTML standard, section 9.2)."""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

EPOCH_HEADER = "Log-Epoch"
"""The header with the log's epoch (see :class:`~agent_orchestrator.ports.queries.View`). It does not fit into
the ``id`` of a frame, which is a plain ``seq`` in the stream of one session."""

KEEPALIVE = b": still here\n\n"
"""A comment that keeps intermediaries from closing an idle stream."""

CAUGHT_UP = b": caught up\n\n"
"""The comment after the last event that existed when the reader connected.

It is a comment because it must neither move the reader's cursor nor reach readers that only know event
types. For a reader that began at the end, it follows an ``id`` line with the cursor."""

DRAINING = b": draining\n\n"
"""The comment that announces a daemon's stop. Further events may follow."""

STOPPING = b": stopping\n\n"
"""The comment that ends the stream of a stopping daemon. The reader should reconnect with its cursor."""

CAUGHT_UP_COMMENT = "caught up"
DRAINING_COMMENT = "draining"


@frozen
class Frame:
    """A dispatched event or a comment. ``event`` is empty if the stream named no type."""

    data: str
    event: str = ""
    id: str | None = None
    comment: str = ""
    """The text of a comment line. The other fields are then empty, except ``id``."""


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame. Each line of data becomes a ``data`` line."""
    lines = [] if frame.id is None else [f"id: {frame.id}"]
    if frame.event:
        lines.append(f"event: {frame.event}")
    lines += [f"data: {part}" for part in frame.data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


_JOINED: Final = 64 * 2**10
"""Maximum bytes of data that are copied into one piece."""


def encode_json(
    pieces: tuple[bytes, ...], event: str, cursor: str | None = None
) -> tuple[bytes, ...]:
    """Return the pieces of a frame. Its data is JSON text in pieces, without line feeds."""
    head = f"event: {event}\ndata: ".encode()
    if cursor is not None:
        head = f"id: {cursor}\n".encode() + head
    if len(pieces) == 1 and len(pieces[0]) <= _JOINED:
        return (b"%b%b\n\n" % (head, pieces[0]),)
    return (head, *pieces, b"\n\n")


MAX_FRAME: Final = 256 * 2**20
"""Maximum bytes of a frame. An agent's longest line has 64 MiB; as JSON it can be three times as long if it
is not UTF-8."""

_LINE_COST: Final = 100
"""Estimated memory overhead of a line, in bytes."""


class FrameTooLong(ValueError):
    """A frame is longer than :data:`MAX_FRAME`."""


class Decoder:
    """An incremental decoder of frames."""

    def __init__(self) -> None:
        self._size = 0
        self._pending: list[bytes] = []
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    @property
    def pending(self) -> int:
        """The approximate number of bytes of the incomplete frame; 0 between frames."""
        return self._size

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames that the next bytes complete.

        Lines end with LF or CR LF. The standard also allows a lone CR, but our servers do not send it.

        :raises FrameTooLong: if a frame is longer than :data:`MAX_FRAME`.
        """
        *lines, unfinished = chunk.split(b"\n")
        for line in lines:
            self._count(line)
            self._pending.append(line)
            text = b"".join(self._pending).removesuffix(b"\r").decode(errors="replace")
            self._pending.clear()
            if (frame := self._line(text)) is not None:
                yield frame
        if unfinished:
            self._count(unfinished)
            self._pending.append(unfinished)

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

"""The file of a session: JSON lines, from a header to an end that proves that none is missing.

======== =========================================================================================
kind     further fields
======== =========================================================================================
header   format, version, made_by, made_at, session, pruned {seq, count, digest}: what was deleted
         of its log, counts {runs, events}: of the session when the file was begun
run      run, attempts
message  message
request  request
event    event
end      counts: the lines of each kind; sha256: of all bytes before this line, in hexadecimal
======== =========================================================================================

The kinds have this order. Objects are those of the API. Events are in the order of ``seq``.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.errors import InvalidRequest, PayloadTooLarge
from agent_orchestrator.domain.model import Event
from agent_orchestrator.fields import shown
from agent_orchestrator.wire import codec, strict_json

FORMAT: Final = "agent-orchestrator.session"
VERSION: Final = 1
"""The version of the format. A reader refuses any other."""

RECORDS: Final = ("run", "message", "request", "event")
"""The kinds of lines between the header and the end, in their order."""

KINDS: Final = ("header", *RECORDS, "end")

MAX_LINE: Final = strict_json.MAX_STORED_SIZE + 2**20
"""Maximum bytes of a line: the longest event that a store takes, and its other fields."""

MAX_LINES: Final = 200_000
MAX_FILE: Final = 2**30
"""Maximum lines and bytes of a file that is imported. It is added in one change, and others wait meanwhile."""

_SHORTEN: Final = ": prune the session before the export"


def bad_line(number: int, name: str, problem: str) -> InvalidRequest:
    """Return the error for a field of a line.

    :param number: of the line, from 1.
    :param name: of the field; empty for the whole line.
    """
    place = f"line {number}" + (f", {name}" if name else "")
    return InvalidRequest(f"{place}: {problem}", {"fields": {place: problem}, "line": number})


def _too_long(number: int, problem: str, **limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"line {number}: {problem}", {"line": number, **limit})


@define
class Writer:
    """Encodes the lines of a file."""

    counts: dict[str, int] = field(factory=lambda: dict.fromkeys(RECORDS, 0))
    _hash: Any = field(factory=hashlib.sha256)

    def header(self, fields: Mapping[str, Any]) -> bytes:
        """Return the first line."""
        known = {"kind": "header", "format": FORMAT, "version": VERSION}
        return self._line(strict_json.encode_in_slices(known | dict(fields)))

    def record(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        """Return a line of a run, message or request."""
        self.counts[kind] += 1
        return self._line(strict_json.encode_in_slices({"kind": kind, **fields}))

    def event(self, event: Event) -> bytes:
        """Return the line of an event."""
        self.counts["event"] += 1
        return self._line(
            b"".join((b'{"kind":"event","event":', *codec.event_to_json(event), b"}"))
        )

    def end(self) -> bytes:
        """Return the last line."""
        fields = {"kind": "end", "counts": self.counts, "sha256": self._hash.hexdigest()}
        return strict_json.dumps(fields).encode() + b"\n"

    def _line(self, text: bytes) -> bytes:
        line = text + b"\n"
        self._hash.update(line)
        return line


@define
class Splitter:
    """Splits the bytes of a file into lines."""

    number: int = 0
    """Of the last line."""
    size: int = 0
    """Bytes so far."""
    _buffer: bytearray = field(factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that the next bytes complete, with their ends.

        :raises PayloadTooLarge: if a line or the file is too long.
        """
        self.size += len(data)
        if self.size > MAX_FILE:
            raise _too_long(
                self.number + 1,
                f"the file has more than {MAX_FILE:,} bytes{_SHORTEN}",
                limit_bytes=MAX_FILE,
            )
        start = 0
        while (end := data.find(b"\n", start) + 1) > 0:
            line = bytes(self._buffer) + data[start:end] if self._buffer else data[start:end]
            self._buffer.clear()
            start = end
            self._count(len(line))
            yield line
        self._buffer += data[start:]
        if len(self._buffer) > MAX_LINE:
            self._count(len(self._buffer))

    def finish(self) -> None:
        """Take the end of the file.

        :raises InvalidRequest: if the last line is not complete.
        """
        if self._buffer:
            raise bad_line(self.number + 1, "", "the file was cut: this line has no end")

    def _count(self, length: int) -> None:
        self.number += 1
        if length > MAX_LINE:
            raise _too_long(self.number, f"has more than {MAX_LINE:,} bytes", limit_bytes=MAX_LINE)
        if self.number > MAX_LINES:
            raise _too_long(
                self.number,
                f"the file has more than {MAX_LINES:,} lines{_SHORTEN}",
                limit_lines=MAX_LINES,
            )


@define
class Reader:
    """Reads the lines of a file, and checks their order, their number and the checksum."""

    header: dict[str, Any] | None = None
    counts: dict[str, int] = field(factory=lambda: dict.fromkeys(RECORDS, 0))
    is_complete: bool = False
    lines: Splitter = field(factory=Splitter)
    _place: int = -1
    """The place of the last line's kind in :data:`KINDS`."""
    _hash: Any = field(factory=hashlib.sha256)

    @property
    def number(self) -> int:
        """The number of the last line."""
        return self.lines.number

    def feed(self, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the kind and the fields of each line but the end.

        :raises InvalidRequest: if a line is not one of such a file, or not the next one.
        :raises PayloadTooLarge: if a line or the file is too long.
        """
        for line in self.lines.feed(data):
            kind, fields = self._read(line)
            if kind == "end":
                self._finish(fields)
                continue
            self._hash.update(line)
            if kind == "header":
                self.header = fields
            else:
                self.counts[kind] += 1
            yield kind, fields

    def finish(self) -> None:
        """Take the end of the file.

        :raises InvalidRequest: if it came too early.
        """
        self.lines.finish()
        if not self.is_complete:
            problem = (
                "the file was cut: its last line is missing" if self.number else "the file is empty"
            )
            raise bad_line(self.number + 1, "", problem)

    def bad(self, name: str, problem: str) -> InvalidRequest:
        """Return the error for a field of the last line."""
        return bad_line(self.number, name, problem)

    def _read(self, line: bytes) -> tuple[str, dict[str, Any]]:
        try:
            fields = strict_json.loads_in_slices(
                line, field="it", max_values=strict_json.MAX_STORED_VALUES
            )
        except InvalidRequest as error:
            raise self.bad("", error.details["fields"]["it"]) from None
        if not isinstance(fields, dict):
            raise self.bad("", "must be a JSON object")
        kind = fields.pop("kind", None)
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise self.bad("kind", f"must be one of {known}, is {shown(str(kind))}")
        if self._place < 0:
            self._check_format(kind, fields)
        place = KINDS.index(kind)
        if place < self._place or (place == self._place and kind in ("header", "end")):
            raise self.bad("kind", f"{kind} must not come after {KINDS[self._place]}")
        self._place = place
        return kind, fields

    def _check_format(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind != "header" or fields.get("format") != FORMAT:
            raise self.bad("format", f"must be {FORMAT}: this is not the file of a session")
        if fields.get("version") != VERSION or isinstance(fields.get("version"), bool):
            version = shown(str(fields.get("version")))
            raise self.bad("version", f"is {version}; this program reads version {VERSION}")

    def _finish(self, fields: Mapping[str, Any]) -> None:
        if fields.get("counts") != self.counts:
            raise self.bad("counts", f"the file has {self.counts}: lines are missing or too many")
        if fields.get("sha256") != self._hash.hexdigest():
            raise self.bad("sha256", "is not that of the lines before: they were changed")
        self.is_complete = True

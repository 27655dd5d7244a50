"""Reading of an agent's own record of a conversation: a file of JSON lines.

The file is untrusted. It is read in pieces, without symbolic links, and only below the agent's home.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
from anyio.to_thread import run_sync
from attrs import evolve

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.ports.runner import Outcome, RunContext
from agent_orchestrator.runners.bulk import Text, read, read_object
from agent_orchestrator.runners.events import AgentEvent, JsonObject, UnexpectedShape, agent_event
from agent_orchestrator.runners.lines import Line, LineFramer, json_object

PLACE: Final = "record_place"
"""The key in a thread's state for the position in the record, in bytes, up to which it was read."""

_CHUNK: Final = 2**20
_TAIL: Final = 256 * 2**10
"""Bytes at the end of a record that are searched for its directory and model."""

_MAX_CANDIDATES: Final = 200
"""Maximum number of records, the latest first, that are searched for one of a directory."""

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]{5,20}(?:Z|[+-]\d\d:\d\d)")


class RecordReader(Protocol):
    """Converts the entries of a record to events, without I/O."""

    usage: Usage | None

    @property
    def answer(self) -> str:
        """The last answer."""
        ...

    @property
    def state(self) -> Mapping[str, Any]:
        """The fields for the thread's state."""
        ...

    def feed(self, entry: JsonObject) -> Iterable[AgentEvent]:
        """Return the events of an entry.

        :raises UnexpectedShape: if it has an unknown shape.
        """
        ...

    def finish(self) -> Iterable[AgentEvent]:
        """Return the events that end all open items."""
        ...


def records(home: Path, pattern: str) -> list[Path]:
    """Return the records below a home that match a pattern, relative to it, the latest first. Blocks."""
    found = []
    if not os.path.isdir(home):  # Path.glob raises for some that it may not read
        return []
    for path in home.glob(pattern):
        try:
            found.append((path.lstat().st_mtime_ns, path.relative_to(home)))
        except OSError:
            continue
    return [path for _, path in sorted(found, reverse=True)]


def size_of(home: Path, path: Path) -> int:
    """Return the size of a record. Blocks.

    :raises OSError: if it cannot be read.
    """
    fd = _open(home, path)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def last_entries(home: Path, path: Path) -> Iterator[JsonObject]:
    """Yield the last entries of a record, the latest first. Blocks.

    :raises OSError: if it cannot be read.
    """
    fd = _open(home, path)
    try:
        start = max(0, os.fstat(fd).st_size - _TAIL)
        lines = os.pread(fd, _TAIL, start).split(b"\n")
    finally:
        os.close(fd)
    for line in reversed(lines[1:] if start else lines):
        if (entry := json_object(line)) is not None:
            yield entry


def first_entry(home: Path, path: Path) -> JsonObject:
    """Return the first entry of a record; an empty object if it cannot be read. Blocks.

    :raises OSError: if the file cannot be read.
    """
    fd = _open(home, path)
    try:
        return json_object(os.pread(fd, _CHUNK, 0).partition(b"\n")[0]) or {}
    finally:
        os.close(fd)


def joined_texts(parts: Any) -> str:
    """Return the texts of the parts of a message."""
    blocks = parts if isinstance(parts, list) else ()
    found = (block.get("text") for block in blocks if isinstance(block, Mapping))
    return "\n\n".join(one for one in found if isinstance(one, str))


def latest_of(
    home: Path, paths: Iterable[Path], cwd: str, directory_of: Callable[[Path, Path], str | None]
) -> Path | None:
    """Return the first of some records whose conversation is in a directory. Blocks.

    :param directory_of: returns the directory of a record's conversation.
    """
    wanted = os.path.realpath(cwd)
    for path in list(paths)[:_MAX_CANDIDATES]:
        try:
            directory = directory_of(home, path)
        except OSError:
            continue
        if directory and "\0" not in directory and os.path.realpath(directory) == wanted:
            return path
    return None


def _open(home: Path, path: Path) -> int:
    """Open a regular file below a directory, without following symbolic links."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(home, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    for part in path.parts:
        try:
            inner = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a regular file")
    return fd


async def replay(context: RunContext, home: Path, path: Path, reader: RecordReader) -> Outcome:
    """Emit the entries of a record after the position in the thread's state, and store the new position. Entries that are
    written at the same time are not read.

    :raises AgentFailed: if it cannot be read, or is shorter than at the last time.
    """
    thread = context.thread
    assert thread is not None
    place = thread.state.get(PLACE)
    place = place if isinstance(place, int) else 0
    unread = 0
    try:
        fd = await run_sync(_open, home, path)
    except OSError as error:
        raise AgentFailed("thread_missing", f"the agent's record cannot be read: {error}") from None
    try:
        left = os.fstat(fd).st_size - place
        if left < 0:
            note = f"the agent's record {path} was replaced: it is shorter than before"
            raise AgentFailed("thread_missing", note)
        framer = LineFramer()
        begin = place
        while left > 0 and (chunk := await run_sync(os.pread, fd, min(_CHUNK, left), begin)):
            left -= len(chunk)
            begin += len(chunk)
            for line in framer.feed(chunk):
                place += 1 + (line.truncation.size if line.truncation else len(line.data))
                events, is_read = await _events_of(line, reader)
                unread += not is_read
                if events:
                    await _record(context, events, thread, place, reader.state)
    finally:
        os.close(fd)
    events = [*reader.finish()]
    if unread:
        entries = "1 entry" if unread == 1 else f"{unread:,} entries"
        note = f"{entries} of the agent's record could not be read"
        events.append(agent_event(EventType.RUN_ERROR, message=note))
    await _record(context, events, thread, place, reader.state)
    if reader.usage is not None:
        await context.report_usage(reader.usage)
    return Outcome(reader.answer)


async def _events_of(line: Line, reader: RecordReader) -> tuple[list[AgentEvent], bool]:
    """Return the events of a line, and whether it could be read."""
    entry = await read(line, read_object)
    if isinstance(entry, Text):
        return [], not entry.text.strip()
    try:
        found = entry.get("timestamp")
        is_time = isinstance(found, str) and _TIME.fullmatch(found)
        at = found if is_time else None
        events = [evolve(one, data={**one.data, "recorded_at": at}) for one in reader.feed(entry)]
    except (UnexpectedShape, RecursionError):
        return [], False
    return events, True


async def _record(
    context: RunContext,
    events: Iterable[AgentEvent],
    thread: Thread,
    place: int,
    state: Mapping[str, Any],
) -> None:
    # Together, so that an attempt that is stopped here does not leave half a line to the next one.
    with anyio.CancelScope(shield=True):
        for event in events:
            data = (
                event.data if "recorded_at" in event.data else {**event.data, "recorded_at": None}
            )
            await context.emit(event.event_type, data)
        await context.set_thread(thread.id, {**thread.state, **state, PLACE: place})

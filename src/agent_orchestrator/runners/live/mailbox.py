"""Messages of an agent, queued for a run.

One task reads the messages of a process, which may serve many runs. That task never waits for a run:
unread messages are queued here, up to a limit.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import anyio
import anyio.lowlevel
from attrs import define, evolve, field, frozen

from agent_orchestrator.runners.events import JsonObject
from agent_orchestrator.runners.live.messages import (
    AgentRequest,
    Answer,
    Malformed,
    Message,
    Notification,
)

MAX_WAITING_BYTES: Final = 96 * 2**20
"""Maximum bytes of the messages that wait for a run."""

_OVERHEAD: Final = 1_000
"""Approximate bytes of memory that a message takes in addition to its text."""

_MAX_JOINED: Final = 64 * 2**10
"""Size of a joined message, in characters, after which the next piece begins another."""

_TURN: Final = 16
"""Number of messages after which :meth:`Mailbox.take` lets other tasks run, even if more messages wait."""

Path = Sequence[str]

Streams = Mapping[str, Sequence[Path]]
"""The methods of notifications with a piece of a text, and the paths in their params at which the piece may be.
Consecutive notifications that differ only in the piece may be joined."""


@frozen
class MessagesDropped:
    """Replaces messages that were dropped.

    :param size: their bytes.
    """

    size: int


Incoming = Message | Answer | MessagesDropped


@define
class _Entry:
    incoming: Incoming
    size: int
    """Approximate bytes of memory."""
    pieces: list[str] = field(factory=list)
    """Further pieces of the same stream, in order, after the one in ``incoming``."""

    def try_join(self, incoming: Incoming, streams: Streams) -> bool:
        """Add the next piece of the same stream. Return False if the message is anything else."""
        last = self.incoming
        if not (
            isinstance(last, Notification)
            and isinstance(incoming, Notification)
            and last.method == incoming.method
            and (path := _path_of(last, streams)) is not None
            and (piece := _text_at(incoming.params, path)) is not None
            and self.size < _MAX_JOINED
            and _with_text(incoming.params, path, "") == _with_text(last.params, path, "")
        ):
            return False
        self.pieces.append(piece)
        return True

    def joined(self, streams: Streams) -> Incoming:
        """Return the message with all its pieces."""
        first = self.incoming
        if not self.pieces:
            return first
        assert isinstance(first, Notification)
        path = _path_of(first, streams)
        assert path is not None
        text = "".join([_text_at(first.params, path) or "", *self.pieces])
        return evolve(first, params=_with_text(first.params, path, text), size=len(text))


def _path_of(incoming: Notification, streams: Streams) -> Path | None:
    """Return the path of the piece in a notification; None if there is none, or more than one."""
    paths = streams.get(incoming.method, ())
    found = [path for path in paths if _text_at(incoming.params, path) is not None]
    return found[0] if len(found) == 1 else None


def _text_at(params: JsonObject, path: Path) -> str | None:
    """Return the text at a path; None if there is none."""
    found: object = params
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else None


def _with_text(params: JsonObject, path: Path, text: str) -> JsonObject:
    """Return a copy of the params, with the text at a path replaced."""
    name, *rest = path
    return {**params, name: _with_text(params[name], rest, text) if rest else text}


@define(eq=False)
class Mailbox:
    """Messages for one run, in order. If more than :data:`MAX_WAITING_BYTES` wait, they are dropped, and the
    run gets :class:`MessagesDropped` instead.

    :param streams: the notifications that carry pieces of texts.
    :param never_dropped: the methods of notifications that are never dropped, such as the end of a turn.
        Answers are never dropped either.
    """

    _streams: Streams = field(factory=dict)
    _never_dropped: Collection[str] = ()
    _waiting: deque[_Entry] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)
    _arrived: anyio.Event = field(factory=anyio.Event, init=False)
    _has_ended: bool = field(default=False, init=False)
    _has_dropped: bool = field(default=False, init=False)
    _taken: int = field(default=0, init=False)

    def put(self, incoming: Message | Answer) -> Sequence[AgentRequest]:
        """Add a message. Return the requests that the run will not get, which the caller must refuse."""
        if self._has_ended:
            return [incoming] if isinstance(incoming, AgentRequest) else ()
        if self._has_dropped:
            if self._is_never_dropped(incoming):
                self._add(_Entry(incoming, _OVERHEAD))
            return [incoming] if isinstance(incoming, AgentRequest) else ()
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last.try_join(incoming, self._streams):
            added = len(last.pieces[-1]) + _OVERHEAD // 10
            last.size += added
            self._size += added
        else:
            self._add(_Entry(incoming, _size_of(incoming)))
        return self._drop_waiting() if self._size > MAX_WAITING_BYTES else ()

    @property
    def requests(self) -> Sequence[AgentRequest]:
        """The requests of the agent that the run has not read."""
        waiting = (entry.incoming for entry in self._waiting)
        return [incoming for incoming in waiting if isinstance(incoming, AgentRequest)]

    def end(self) -> None:
        """Accept no more messages. :meth:`take` raises when the waiting ones are read."""
        self._has_ended = True
        self._arrived.set()

    async def take(self) -> Incoming:
        """Return the next message.

        :raises anyio.EndOfStream: if no more will come.
        """
        self._taken += 1
        if self._taken % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._has_ended:
                raise anyio.EndOfStream
            self._arrived = anyio.Event()
            await self._arrived.wait()
        entry = self._waiting.popleft()
        self._size -= entry.size
        return entry.joined(self._streams)

    def _add(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._size += entry.size
        self._arrived.set()

    def _is_never_dropped(self, incoming: Incoming) -> bool:
        return isinstance(incoming, Answer) or (
            isinstance(incoming, Notification) and incoming.method in self._never_dropped
        )

    def _drop_waiting(self) -> Sequence[AgentRequest]:
        """Drop the waiting messages. Return the requests among them."""
        dropped = [entry.incoming for entry in self._waiting]
        size = self._size
        self._waiting.clear()
        self._size = 0
        self._has_dropped = True
        self._add(_Entry(MessagesDropped(size), _OVERHEAD))
        for message in dropped:
            if self._is_never_dropped(message):
                self._add(_Entry(message, _OVERHEAD))
        return [message for message in dropped if isinstance(message, AgentRequest)]


def _size_of(incoming: Message | Answer) -> int:
    """Return the approximate bytes of memory that a message takes."""
    if isinstance(incoming, Malformed):
        return len(incoming.text.text) + _OVERHEAD
    return incoming.size + _OVERHEAD

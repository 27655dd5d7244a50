"""Messages of codex about a thread, queued for its run.

One process serves the threads of many runs, and one task reads its messages. That task never waits
for a run: unread messages are queued here, up to a limit.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import anyio
import anyio.lowlevel
from attrs import define, evolve, field, frozen

from agent_orchestrator.runners.codex.appserver.jsonrpc import (
    Incoming,
    Malformed,
    Notification,
    ServerRequest,
)

MAX_WAITING_BYTES: Final = 96 * 2**20
"""Bytes that may wait for a run."""

_OVERHEAD: Final = 1_000
"""Bytes of memory of a message besides its text."""

_MAX_JOINED: Final = 64 * 2**10
"""Characters after which no more pieces of a stream are joined."""

_STREAMS: Final = ("item/agentMessage/delta", "item/commandExecution/outputDelta")
"""What comes in pieces, which may be joined."""

_TURNS: Final = ("turn/started", "turn/completed")
"""Messages that a run gets even if it is too slow."""


@frozen
class MessagesDropped:
    """Replaces messages that were dropped.

    :param size: their bytes.
    """

    size: int


@define
class _Entry:
    incoming: Incoming | MessagesDropped
    size: int
    pieces: list[str] = field(factory=list)
    """Of a stream: what comes behind the piece in ``incoming``."""

    def joins(self, incoming: Incoming) -> bool:
        """Take another piece of the same stream; False if it is something else."""
        last = self.incoming
        if not (
            isinstance(last, Notification)
            and isinstance(incoming, Notification)
            and last.method == incoming.method
            and last.method in _STREAMS
            and isinstance(piece := incoming.params.get("delta"), str)
            and isinstance(last.params.get("delta"), str)
            and self.size < _MAX_JOINED
            and {**incoming.params, "delta": ""} == {**last.params, "delta": ""}
        ):
            return False
        self.pieces.append(piece)
        return True

    def joined(self) -> Incoming | MessagesDropped:
        first = self.incoming
        if not self.pieces:
            return first
        assert isinstance(first, Notification)
        delta = "".join([first.params["delta"], *self.pieces])
        return evolve(first, params={**first.params, "delta": delta}, size=len(delta))


@define(eq=False)
class Mailbox:
    """Messages for one run, in order. Where more than :data:`MAX_WAITING_BYTES` wait, they are dropped, and
    the run hears of that.
    """

    _waiting: deque[_Entry] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)
    _arrived: anyio.Event = field(factory=anyio.Event, init=False)
    _has_ended: bool = field(default=False, init=False)
    _is_too_full: bool = field(default=False, init=False)

    def put(self, incoming: Incoming) -> Sequence[ServerRequest]:
        """Take a message; return the questions that the run will not hear."""
        if self._has_ended:
            return [incoming] if isinstance(incoming, ServerRequest) else ()
        if self._is_too_full:
            if isinstance(incoming, Notification) and incoming.method in _TURNS:
                self._add(_Entry(incoming, _OVERHEAD))
            return [incoming] if isinstance(incoming, ServerRequest) else ()
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last.joins(incoming):
            more = len(last.pieces[-1]) + _OVERHEAD // 10
            last.size += more
            self._size += more
        else:
            self._add(_Entry(incoming, _size_of(incoming)))
        return self._drop() if self._size > MAX_WAITING_BYTES else ()

    def end(self) -> None:
        """Say that nothing more will come."""
        self._has_ended = True
        self._arrived.set()

    async def take(self) -> Incoming | MessagesDropped:
        """Return the next message.

        :raises anyio.EndOfStream: if no more will come.
        """
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._has_ended:
                raise anyio.EndOfStream
            self._arrived = anyio.Event()
            await self._arrived.wait()
        entry = self._waiting.popleft()
        self._size -= entry.size
        return entry.joined()

    def _add(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._size += entry.size
        self._arrived.set()

    def _drop(self) -> Sequence[ServerRequest]:
        dropped = [entry.incoming for entry in self._waiting]
        size = self._size
        self._waiting.clear()
        self._size = 0
        self._is_too_full = True
        self._add(_Entry(MessagesDropped(size), _OVERHEAD))
        for message in dropped:
            if isinstance(message, Notification) and message.method in _TURNS:
                self._add(_Entry(message, _OVERHEAD))
        return [message for message in dropped if isinstance(message, ServerRequest)]


def _size_of(incoming: Incoming) -> int:
    if isinstance(incoming, Malformed):
        return len(incoming.text.text) + _OVERHEAD
    return incoming.size + _OVERHEAD

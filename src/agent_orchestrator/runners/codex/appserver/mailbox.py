"""What codex says of a thread, waiting for the run that is at work on it.

One process serves the threads of many runs, and one reader reads what it says. That reader never waits
for a run: what a run has not taken yet waits here, up to a limit.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import anyio
import anyio.lowlevel
from attrs import define, evolve, field, frozen

from agent_orchestrator.runners.codex.appserver.peer import Asked, Heard, Notification, Unreadable

MAX_BEHIND: Final = 96 * 2**20
"""Bytes that may wait for a run."""

_OVERHEAD: Final = 1_000
"""Bytes that a message takes in memory beside its text."""

_MAX_JOINED: Final = 64 * 2**10
"""Characters after which no more pieces of a stream are joined."""

_STREAMS: Final = ("item/agentMessage/delta", "item/commandExecution/outputDelta")
"""What comes in pieces, which may be joined."""

_TURNS: Final = ("turn/started", "turn/completed")
"""What a run hears even where it is too far behind."""


@frozen
class TooFarBehind:
    """What a run hears instead of what was dropped.

    :param size: bytes of it.
    """

    size: int


@define
class _Entry:
    said: Heard | TooFarBehind
    size: int
    pieces: list[str] = field(factory=list)
    """Of a stream: what comes behind the piece in ``said``."""

    def joins(self, heard: Heard) -> bool:
        """Take another piece of the same stream; False if it is something else."""
        said = self.said
        if not (
            isinstance(said, Notification)
            and isinstance(heard, Notification)
            and said.method == heard.method
            and said.method in _STREAMS
            and isinstance(piece := heard.params.get("delta"), str)
            and isinstance(said.params.get("delta"), str)
            and self.size < _MAX_JOINED
            and {**heard.params, "delta": ""} == {**said.params, "delta": ""}
        ):
            return False
        self.pieces.append(piece)
        return True

    def taken(self) -> Heard | TooFarBehind:
        said = self.said
        if not self.pieces:
            return said
        assert isinstance(said, Notification)
        delta = "".join([said.params["delta"], *self.pieces])
        return evolve(said, params={**said.params, "delta": delta}, size=len(delta))


@define(eq=False)
class Mailbox:
    """Messages for one run, in order. Where more than :data:`MAX_BEHIND` wait, they are dropped, and
    the run hears of that.
    """

    _waiting: deque[_Entry] = field(factory=deque, init=False)
    _size: int = field(default=0, init=False)
    _came: anyio.Event = field(factory=anyio.Event, init=False)
    _has_ended: bool = field(default=False, init=False)
    _is_too_full: bool = field(default=False, init=False)

    def put(self, heard: Heard) -> Sequence[Asked]:
        """Take a message; return the questions that the run will not hear."""
        if self._has_ended:
            return [heard] if isinstance(heard, Asked) else ()
        if self._is_too_full:
            if isinstance(heard, Notification) and heard.method in _TURNS:
                self._add(_Entry(heard, _OVERHEAD))
            return [heard] if isinstance(heard, Asked) else ()
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last.joins(heard):
            more = len(last.pieces[-1]) + _OVERHEAD // 10
            last.size += more
            self._size += more
        else:
            self._add(_Entry(heard, _size_of(heard)))
        return self._drop() if self._size > MAX_BEHIND else ()

    def end(self) -> None:
        """Say that nothing more will come."""
        self._has_ended = True
        self._came.set()

    async def take(self) -> Heard | TooFarBehind:
        """Return the next message.

        :raises anyio.EndOfStream: if no more will come.
        """
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._has_ended:
                raise anyio.EndOfStream
            self._came = anyio.Event()
            await self._came.wait()
        entry = self._waiting.popleft()
        self._size -= entry.size
        return entry.taken()

    def _add(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._size += entry.size
        self._came.set()

    def _drop(self) -> Sequence[Asked]:
        dropped = [entry.said for entry in self._waiting]
        size = self._size
        self._waiting.clear()
        self._size = 0
        self._is_too_full = True
        self._add(_Entry(TooFarBehind(size), _OVERHEAD))
        for said in dropped:
            if isinstance(said, Notification) and said.method in _TURNS:
                self._add(_Entry(said, _OVERHEAD))
        return [said for said in dropped if isinstance(said, Asked)]


def _size_of(heard: Heard) -> int:
    if isinstance(heard, Unreadable):
        return len(heard.text.text) + _OVERHEAD
    return heard.size + _OVERHEAD

"""Joins pieces of streamed text, so that a fast stream does not become a flood of events."""

from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.events import AgentEvent

INTERVAL_S: Final = 0.05
"""Minimum seconds between two emissions of streamed text, for all streams together."""

MAX_DELTA: Final = 2**20
"""Characters of streamed text after which it is emitted at once."""

_DELTA_EVENTS: Final[Mapping[str, str]] = {
    EventType.AGENT_MESSAGE_DELTA: "item_id",
    EventType.TOOL_OUTPUT: "tool_id",
}
"""The types of events with a piece of a text, and the field that identifies the stream."""

_COMPLETE_EVENTS: Final[Mapping[str, str]] = {
    EventType.AGENT_MESSAGE: EventType.AGENT_MESSAGE_DELTA,
    EventType.TOOL_COMPLETED: EventType.TOOL_OUTPUT,
}
"""The types of events that end a stream, and the type of its pieces."""


@define(eq=False)
class Coalescer:
    """Collects pieces of streamed text, and returns them joined, at intervals. A complete text follows
    its pieces.

    If a text is complete before any of its pieces was returned, its pieces are dropped.
    """

    _waiting: dict[tuple[str, str], list[str]] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)
    _emitted: set[tuple[str, str]] = field(factory=set, init=False)
    _interval_began_at: float = field(default=-1.0, init=False)

    @property
    def due(self) -> float:
        """The time at which to call :meth:`flush`, by anyio's clock; infinity if no text waits."""
        return self._interval_began_at + INTERVAL_S if self._waiting else float("inf")

    def add(self, events: Sequence[AgentEvent]) -> list[AgentEvent]:
        """Keep the pieces among these events for later. Return the events to emit now."""
        ready: list[AgentEvent] = []
        for event in events:
            if (id_field := _DELTA_EVENTS.get(event.event_type)) is not None:
                self._keep((event.event_type, event.data[id_field]), event.data["text"])
                if self._size > MAX_DELTA:
                    ready += self.flush()
                continue
            if (piece_type := _COMPLETE_EVENTS.get(event.event_type)) is not None:
                ready += self._last_piece(piece_type, event.data.get(_DELTA_EVENTS[piece_type], ""))
            ready.append(event)
        return ready

    def flush(self) -> list[AgentEvent]:
        """Return the text that waits, as one piece for each stream."""
        if not self._waiting:
            return []
        events = [_piece(stream, parts) for stream, parts in self._waiting.items()]
        self._emitted.update(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._interval_began_at = anyio.current_time()
        return events

    def _last_piece(self, event_type: str, stream_id: str) -> list[AgentEvent]:
        """Return the last piece of a stream that ends; none if no piece was returned before."""
        stream = (event_type, stream_id)
        parts = self._waiting.pop(stream, None)
        if stream not in self._emitted:
            return []
        self._emitted.remove(stream)
        return [] if parts is None else [_piece(stream, parts)]

    def _keep(self, stream: tuple[str, str], piece: str) -> None:
        if not self._waiting:
            # The first piece waits too: most messages are complete before the interval ends.
            self._interval_began_at = max(self._interval_began_at, anyio.current_time())
        self._waiting.setdefault(stream, []).append(piece)
        self._size += len(piece)


def _piece(stream: tuple[str, str], parts: Sequence[str]) -> AgentEvent:
    event_type, stream_id = stream
    return AgentEvent(event_type, {"text": "".join(parts), _DELTA_EVENTS[event_type]: stream_id})

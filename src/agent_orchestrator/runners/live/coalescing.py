"""Pieces of text put together, so that a fast stream does not become a flood of events."""

from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.events import AgentEvent

INTERVAL_S: Final = 0.05
"""Minimum seconds between two emissions of streamed text, of all streams together."""

MAX_DELTA: Final = 2**20
"""Characters of streamed text after which it is emitted at once."""

_DELTA_EVENTS: Final[Mapping[str, str]] = {
    EventType.AGENT_MESSAGE_DELTA: "item_id",
    EventType.TOOL_OUTPUT: "tool_id",
}
"""What comes in pieces, and the field that names its stream."""

_WHOLE_EVENTS: Final[Mapping[str, str]] = {
    EventType.AGENT_MESSAGE: EventType.AGENT_MESSAGE_DELTA,
    EventType.TOOL_COMPLETED: EventType.TOOL_OUTPUT,
}


@define(eq=False)
class Coalescer:
    """Collects pieces of streamed text, and emits them from time to time. A complete text follows
    its pieces.

    If a text is complete before any of its pieces was emitted, its pieces are dropped.
    """

    _held: dict[tuple[str, str], list[str]] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)
    _emitted: set[tuple[str, str]] = field(factory=set, init=False)
    _flushed_at: float = field(default=-1.0, init=False)

    @property
    def due(self) -> float:
        """When :meth:`flush` has something to give; infinity when nothing is held."""
        return self._flushed_at + INTERVAL_S if self._held else float("inf")

    def add(self, events: Sequence[AgentEvent]) -> list[AgentEvent]:
        """Hold the pieces among these events. Return the events to emit now."""
        now: list[AgentEvent] = []
        for event in events:
            if (name := _DELTA_EVENTS.get(event.event_type)) is not None:
                self._hold((event.event_type, event.data[name]), event.data["text"])
                if self._size > MAX_DELTA:
                    now += self.flush()
                continue
            if (text_type := _WHOLE_EVENTS.get(event.event_type)) is not None:
                now += self._rest(text_type, event.data.get(_DELTA_EVENTS[text_type], ""))
            now.append(event)
        return now

    def flush(self) -> list[AgentEvent]:
        """Return the held text, as one piece for each stream."""
        if not self._held:
            return []
        events = [_piece(stream, parts) for stream, parts in self._held.items()]
        self._emitted.update(self._held)
        self._held.clear()
        self._size = 0
        self._flushed_at = anyio.current_time()
        return events

    def _rest(self, kind: str, name: str) -> list[AgentEvent]:
        """Return the last piece of a stream that ends; none if no piece was emitted before."""
        stream = (kind, name)
        parts = self._held.pop(stream, None)
        if stream not in self._emitted:
            return []
        self._emitted.remove(stream)
        return [] if parts is None else [_piece(stream, parts)]

    def _hold(self, key: tuple[str, str], piece: str) -> None:
        if not self._held:
            # The first piece waits too: most messages are whole before its time is up.
            self._flushed_at = max(self._flushed_at, anyio.current_time())
        self._held.setdefault(key, []).append(piece)
        self._size += len(piece)


def _piece(stream: tuple[str, str], parts: Sequence[str]) -> AgentEvent:
    kind, name = stream
    return AgentEvent(kind, {"text": "".join(parts), _DELTA_EVENTS[kind]: name})

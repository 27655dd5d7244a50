"""Assembles the messages that an agent sends in pieces."""

from io import StringIO
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.events import AgentEvent, agent_event

_MAX_STREAMS: Final = 100
"""Maximum number of messages that are streamed at the same time. Agents stream one at a time. A new one ends the oldest."""

_MAX_STREAM: Final = 16 * 2**20
"""Maximum characters of the complete message of a stream. A longer one is cut, because events have a maximum size. The events of its
pieces contain all of it."""


@define
class MessageStreams:
    """The messages that have begun and are not complete."""

    _streams: dict[str, StringIO] = field(factory=dict, init=False)

    def add(self, item_id: str, piece: str) -> list[AgentEvent]:
        """Add a piece to a message. Return the events to emit."""
        events: list[AgentEvent] = []
        if item_id not in self._streams:
            if len(self._streams) >= _MAX_STREAMS:
                events.append(self._cut(next(iter(self._streams))))
            self._streams[item_id] = StringIO()
        stream = self._streams[item_id]
        stream.write(piece[: max(_MAX_STREAM - stream.tell(), 0)])
        return [*events, agent_event(EventType.AGENT_MESSAGE_DELTA, text=piece, item_id=item_id)]

    def drop(self, item_id: str) -> None:
        """Forget a message, because the agent has sent it complete."""
        self._streams.pop(item_id, None)

    def complete(self, item_id: str) -> AgentEvent | None:
        """End a message that the agent will not send as a whole. Return its event; None if it had no pieces."""
        return self._end(item_id, {}) if item_id in self._streams else None

    def finish(self) -> list[AgentEvent]:
        """End all messages. Return their events, which say that they are incomplete."""
        return [self._cut(item_id) for item_id in (*self._streams,)]

    def _cut(self, item_id: str) -> AgentEvent:
        return self._end(item_id, {"extra": {"incomplete": True}})

    def _end(self, item_id: str, more: dict[str, Any]) -> AgentEvent:
        message = self._streams.pop(item_id).getvalue()
        return agent_event(EventType.AGENT_MESSAGE, text=message, item_id=item_id, **more)

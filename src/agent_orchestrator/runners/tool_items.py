"""The tool calls and file changes of a turn, which agents report in parts."""

from typing import Final

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.events import AgentEvent, JsonObject, agent_event

_MAX_OPEN: Final = 10_000
"""Maximum number of open items. A further one ends the oldest."""


@define
class ToolItems:
    """The items that have begun and not ended, by id, with all that the agent has said of each."""

    _open: dict[str, AgentEvent] = field(factory=dict, init=False)
    """The event of the end of each, so far."""

    def get(self, tool_id: str) -> JsonObject | None:
        """Return what is known of an open item."""
        found = self._open.get(tool_id)
        return None if found is None else found.data

    def merge(
        self, tool_id: str, data: JsonObject, event_type: str = EventType.TOOL_COMPLETED
    ) -> list[AgentEvent]:
        """Add data to an item, which begins with it if it is not open. Return the event that closes the oldest
        item if there are too many.

        :param event_type: of its end: ``tool.completed`` or ``file.changed``.
        """
        known = self._open.get(tool_id)
        is_full = known is None and len(self._open) >= _MAX_OPEN
        closed = [self._close(next(iter(self._open)))] if is_full else []
        known_data = {} if known is None else known.data
        self._open[tool_id] = agent_event(event_type, **{**known_data, **data})
        return closed

    def start(self, tool_id: str, data: JsonObject) -> list[AgentEvent]:
        """Add data to a tool call, and return the event of its start. It needs ``kind``, ``name`` and ``input``."""
        closed = self.merge(tool_id, data)
        known = self._open[tool_id].data
        return [*closed, AgentEvent(EventType.TOOL_STARTED, {"tool_id": tool_id, **known})]

    def complete(
        self, tool_id: str, data: JsonObject, event_type: str = EventType.TOOL_COMPLETED
    ) -> AgentEvent:
        """End an item, which need not be open. Return the event of its end."""
        known = self._open.pop(tool_id, None)
        known_data = {} if known is None else known.data
        return agent_event(event_type, tool_id=tool_id, **{**known_data, **data})

    def finish(self) -> list[AgentEvent]:
        """End all open items, as failed. Return the events of their ends."""
        return [self._close(tool_id) for tool_id in (*self._open,)]

    def _close(self, tool_id: str) -> AgentEvent:
        known = self._open.pop(tool_id)
        output = {"output": ""} if known.event_type == EventType.TOOL_COMPLETED else {}
        note = "unfinished when the turn ended"
        ended = {"tool_id": tool_id, "status": "failed", "error": note}
        return AgentEvent(known.event_type, {**output, **known.data, **ended})

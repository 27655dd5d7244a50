"""The tool calls and file changes of a turn, assembled from several messages."""

from hashlib import sha256
from typing import Final

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.events import AgentEvent, JsonObject, agent_event
from agent_orchestrator.wire import strict_json

_MAX_OPEN: Final = 10_000
"""Maximum number of open items. Beyond it, a new one ends the oldest."""

_MAX_SIZE: Final = 128 * 2**20
"""Maximum characters of all open items. Beyond it, the oldest are ended."""

_TOO_MANY: Final = "unfinished when too many others were open"

_MAX_ID: Final = 256


def short_id(value: str) -> str:
    """Return an id for events: a long one is replaced by its hash, because many events may repeat it."""
    if len(value) <= _MAX_ID:
        return value
    return sha256(value.encode("utf-8", "replace")).hexdigest()


@define
class ToolItems:
    """The items that have not ended, by id."""

    _open: dict[str, AgentEvent] = field(factory=dict, init=False)
    """For each item, the event of its end with the data so far."""
    _sizes: dict[str, dict[str, int]] = field(factory=dict, init=False)
    """Characters of each field of each item's data."""
    _size: int = field(default=0, init=False)

    def get(self, tool_id: str) -> JsonObject | None:
        """Return the data of an open item; None if it is not open."""
        found = self._open.get(tool_id)
        return None if found is None else found.data

    def merge(
        self, tool_id: str, data: JsonObject, event_type: str = EventType.TOOL_COMPLETED
    ) -> list[AgentEvent]:
        """Add data to an item, and open it if it is new.

        :param event_type: the type of the event of its end: ``tool.completed`` or ``file.changed``.
        :return: the events of the ends of the oldest items, if the open ones exceed a limit.
        """
        known = self._open.get(tool_id)
        is_full = known is None and len(self._open) >= _MAX_OPEN
        closed = [self._close(next(iter(self._open)), _TOO_MANY)] if is_full else []
        known_data = {} if known is None else known.data
        self._open[tool_id] = agent_event(event_type, **{**known_data, **data})
        sizes = self._sizes.setdefault(tool_id, {})
        for name, value in data.items():
            length = strict_json.text_length(value)
            self._size += length - sizes.get(name, 0)
            sizes[name] = length
        while self._size > _MAX_SIZE and len(self._open) > 1:
            oldest = next(one for one in self._open if one != tool_id)
            closed.append(self._close(oldest, _TOO_MANY))
        return closed

    def start(self, tool_id: str, data: JsonObject) -> list[AgentEvent]:
        """Add data to a tool call, and return the event of its start, after those of :meth:`merge`.

        :param data: must have ``kind``, ``name`` and ``input``, unless earlier data has them.
        """
        closed = self.merge(tool_id, data)
        known = self._open[tool_id].data
        return [*closed, AgentEvent(EventType.TOOL_STARTED, {"tool_id": tool_id, **known})]

    def complete(
        self, tool_id: str, data: JsonObject, event_type: str = EventType.TOOL_COMPLETED
    ) -> AgentEvent:
        """End an item, even if it was never opened. Return the event of its end."""
        known = self._remove(tool_id)
        known_data = {} if known is None else known.data
        return agent_event(event_type, tool_id=tool_id, **{**known_data, **data})

    def finish(self) -> list[AgentEvent]:
        """End all open items, as failed. Return the events of their ends."""
        return [
            self._close(tool_id, "unfinished when the turn ended") for tool_id in (*self._open,)
        ]

    def _close(self, tool_id: str, note: str) -> AgentEvent:
        known = self._open[tool_id]
        self._remove(tool_id)
        output = {"output": ""} if known.event_type == EventType.TOOL_COMPLETED else {}
        ended = {"tool_id": tool_id, "status": "failed", "error": note}
        return AgentEvent(known.event_type, {**output, **known.data, **ended})

    def _remove(self, tool_id: str) -> AgentEvent | None:
        self._size -= sum(self._sizes.pop(tool_id, {}).values())
        return self._open.pop(tool_id, None)

"""Codex's items as events, in one place for all that speak of them: pure, one item at a time.

An item is in the shape of ``codex exec --json``; see :mod:`agent_orchestrator.runners.codex.parser`
for what becomes of which.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import define, field, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.codex.items import (
    ITEM_MAPPINGS,
    JsonObject,
    item_id,
    require_list,
    require_object,
    status_of,
    text,
    unknown_fields,
)
from agent_orchestrator.runners.lines import limit_depth

_MAX_OPEN: Final = 10_000
"""Maximum number of open tools. A further one ends the oldest."""


@frozen
class AgentEvent:
    """An event to emit."""

    event_type: str
    data: JsonObject


@define
class ItemReader:
    """The state of the items of one turn."""

    last_message: str | None = None
    _open: dict[str, tuple[str, JsonObject]] = field(factory=dict, init=False)
    _plan: Any = field(default=None, init=False)

    def read(self, phase: str, item: JsonObject) -> list[AgentEvent] | None:
        """Return the events of an item in a phase; None for an unknown item.

        :param phase: ``started``, ``updated`` or ``completed``.
        :raises UnexpectedShape: if a known item has an unknown shape.
        """
        match item.get("type"), phase:
            case "agent_message", "completed":
                return self._message(item)
            case "reasoning", "completed":
                return [text_event(EventType.AGENT_REASONING, "text", item)]
            case "error", "completed":
                return [text_event(EventType.RUN_ERROR, "message", item)]
            case "todo_list", _:
                return self._todo_list(item)
            case "file_change", "started":
                return self._file_change_started(item)
            case "file_change", "completed":
                return self._file_change(item)
            case name, "started" if name in ITEM_MAPPINGS:
                return self._tool_started(item)
            case name, "completed" if name in ITEM_MAPPINGS:
                return self._tool_completed(item)
        return None

    def open_item(self, tool_id: str) -> JsonObject | None:
        """Return the item of a tool call or file change that has begun and not ended."""
        found = self._open.get(tool_id)
        return None if found is None else found[1]

    def finish(self) -> list[AgentEvent]:
        """Return the events that close what codex left open."""
        return [self._close(tool_id) for tool_id in (*self._open,)]

    def _close(self, tool_id: str) -> AgentEvent:
        item_type, started = self._open.pop(tool_id)
        if item_type == "file_change":
            event_type, data = EventType.FILE_CHANGED, dict(started)
        else:
            event_type, data = EventType.TOOL_COMPLETED, {**started, "output": ""}
        note = "unfinished when the turn ended"
        data.update(tool_id=tool_id, status="failed", error=note)
        return AgentEvent(event_type, data)

    def _begin(self, item: JsonObject, content: JsonObject) -> list[AgentEvent]:
        """Record an open item. Return the event that closes the oldest one if there are too many."""
        is_full = len(self._open) >= _MAX_OPEN and item_id(item) not in self._open
        closed = [self._close(next(iter(self._open)))] if is_full else []
        self._open[item_id(item)] = item["type"], content
        return closed

    def plan(self, steps: Sequence[JsonObject], more: JsonObject) -> list[AgentEvent]:
        """Return the event of a plan; none where it repeats the one before it."""
        if steps == self._plan:
            return []
        self._plan = steps
        return [agent_event(EventType.PLAN_UPDATED, steps=steps, **more)]

    def _message(self, item: JsonObject) -> list[AgentEvent]:
        self.last_message = text(item.get("text"))
        return [text_event(EventType.AGENT_MESSAGE, "text", item)]

    def _todo_list(self, item: JsonObject) -> list[AgentEvent]:
        steps = [
            {
                "text": text(require_object(step).get("text")),
                "status": "completed"
                if require_object(step).get("completed") is True
                else "pending",
            }
            for step in require_list(item.get("items"))
        ]
        return self.plan(steps, unknown_fields(item, "items"))

    def _file_change_started(self, item: JsonObject) -> list[AgentEvent]:
        return self._begin(item, require_object(limit_depth({"changes": _changes(item)})))

    def _file_change(self, item: JsonObject) -> list[AgentEvent]:
        tool_id = item_id(item)
        self._open.pop(tool_id, None)
        data = {"tool_id": tool_id, "status": status_of(item), "changes": _changes(item)}
        return [agent_event(EventType.FILE_CHANGED, **data, **unknown_fields(item, "changes"))]

    def _tool_started(self, item: JsonObject) -> list[AgentEvent]:
        tool = require_object(limit_depth(ITEM_MAPPINGS[item["type"]].call(item)))
        closed = self._begin(item, tool)
        return [*closed, agent_event(EventType.TOOL_STARTED, tool_id=item_id(item), **tool)]

    def _tool_completed(self, item: JsonObject) -> list[AgentEvent]:
        tool_id = item_id(item)
        self._open.pop(tool_id, None)
        tool = ITEM_MAPPINGS[item["type"]]
        data = {**tool.call(item), "status": status_of(item), **tool.outcome(item)}
        return [agent_event(EventType.TOOL_COMPLETED, tool_id=tool_id, **data)]


def agent_event(event_type: str, /, **data: Any) -> AgentEvent:
    """Return an event; what lies too deep in its data becomes JSON text."""
    return AgentEvent(event_type, require_object(limit_depth(data)))


def text_event(event_type: str, name: str, item: JsonObject) -> AgentEvent:
    """Return the event of an item that is one text."""
    data = {name: text(item.get(name)), "item_id": item_id(item)}
    return agent_event(event_type, **data, **unknown_fields(item, name))


def _changes(item: JsonObject) -> list[JsonObject]:
    return [require_object(change) for change in require_list(item.get("changes"))]

"""Converts codex's items to events, one item at a time, without I/O. An item has the shape of ``codex exec
--json``. :mod:`agent_orchestrator.runners.codex.parser` lists the events of each item.
"""

from collections.abc import Sequence
from typing import Any

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.codex.items import ITEM_MAPPINGS, item_id, status_of, unknown_fields
from agent_orchestrator.runners.events import (
    AgentEvent,
    JsonObject,
    agent_event,
    require_list,
    require_object,
    text,
)
from agent_orchestrator.runners.tool_items import ToolItems


@define
class ItemReader:
    """The state of the items of one turn."""

    last_message: str | None = None
    tools: ToolItems = field(factory=ToolItems, init=False)
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

    def plan(self, steps: Sequence[JsonObject], more: JsonObject) -> list[AgentEvent]:
        """Return the event of a plan; an empty list if it repeats the previous plan."""
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
        changes = {"changes": _changes(item)}
        return self.tools.merge(item_id(item), changes, EventType.FILE_CHANGED)

    def _file_change(self, item: JsonObject) -> list[AgentEvent]:
        data = {"status": status_of(item), "changes": _changes(item)}
        data |= unknown_fields(item, "changes")
        return [self.tools.complete(item_id(item), data, EventType.FILE_CHANGED)]

    def _tool_started(self, item: JsonObject) -> list[AgentEvent]:
        return self.tools.start(item_id(item), ITEM_MAPPINGS[item["type"]].call(item))

    def _tool_completed(self, item: JsonObject) -> list[AgentEvent]:
        tool = ITEM_MAPPINGS[item["type"]]
        data = {**tool.call(item), "status": status_of(item), **tool.outcome(item)}
        return [self.tools.complete(item_id(item), data)]


def text_event(event_type: str, name: str, item: JsonObject) -> AgentEvent:
    """Return the event of an item that has only a text."""
    data = {name: text(item.get(name)), "item_id": item_id(item)}
    return agent_event(event_type, **data, **unknown_fields(item, name))


def _changes(item: JsonObject) -> list[JsonObject]:
    return [require_object(change) for change in require_list(item.get("changes"))]

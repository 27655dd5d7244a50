"""What ``codex exec --json`` prints, as events: pure, one line at a time.

Codex 0.169 prints one JSON object a line. An *item* is something the agent did; it is started,
sometimes updated, and completed:

=================== ==========================================================================
item                becomes
=================== ==========================================================================
agent_message       ``agent.message``; the last one is the run's result
reasoning           ``agent.reasoning``
command_execution   ``tool.started`` and ``tool.completed`` of kind ``command``
mcp_tool_call       the same, of kind ``mcp``
web_search          the same, of kind ``web_search``
collab_tool_call    the same, of kind ``agent``
file_change         ``file.changed`` when it is completed; its start says nothing more
todo_list           ``plan.updated``, but for one that repeats the plan before it
error               ``run.error``, as is the ``error`` event
=================== ==========================================================================

``thread.started``, ``turn.completed`` and ``turn.failed`` change the parser's state, and
``turn.started`` says nothing more than they do. Whatever else comes is a ``backend.event``: a line of another kind whole, under its own kind;
a line that is not JSON as ``stdout``. A field of a known item that has no place in the event's data
is kept under ``extra``. So nothing codex prints is lost.

What is still open when the process ends (codex never completes a command it leaves running) is
completed by :meth:`ExecParser.finish` as failed, with an ``error`` that says so.
"""

from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.codex.items import (
    TOOLS,
    JsonObject,
    UnexpectedShape,
    a_list,
    an_object,
    extra,
    item_id,
    shallow,
    status_of,
    text,
)
from agent_orchestrator.runners.lines import Line, decoded, json_object


@frozen
class AgentEvent:
    """An event to emit."""

    event_type: str
    data: JsonObject


@define
class ExecParser:
    """The state of one codex process's output."""

    thread_id: str | None = None
    last_message: str | None = None
    totals: Mapping[str, int] | None = None
    """The token counts of ``turn.completed``: of the whole thread, all its turns together."""
    failure: str | None = None
    """The message of ``turn.failed``."""
    completed: bool = False
    _open: dict[str, tuple[str, JsonObject]] = field(factory=dict, init=False)
    _plan: Any = field(default=None, init=False)

    @property
    def ended(self) -> bool:
        """Whether codex has said how the turn ended."""
        return self.completed or self.failure is not None

    def feed(self, line: Line) -> list[AgentEvent]:
        """Return the events a line makes. Never raises for what is in it."""
        said = None if line.truncation else json_object(line.data)
        if said is None:
            return _stdout(line)
        try:
            events = self._read(said)
        except RecursionError:
            return _stdout(line)
        except UnexpectedShape:
            events = None
        if events is None:
            kind = text(said.get("type")) or "stdout"
            events = [_event(EventType.BACKEND_EVENT, kind=kind, payload=said)]
        return events

    def _read(self, said: JsonObject) -> list[AgentEvent] | None:
        """Return the events of a line we know; None for one we do not."""
        match said.get("type"), said.get("item"):
            case "thread.started", None:
                return self._thread_started(said)
            case "turn.started", None:
                return _rest(said)
            case "turn.completed", None:
                return self._turn_completed(said)
            case "turn.failed", None:
                return self._turn_failed(said)
            case "error", None:
                message = text(said.get("message"))
                return [_event(EventType.RUN_ERROR, message=message, **extra(said, "message"))]
            case ("item.started" | "item.updated" | "item.completed") as kind, {"type": str(name)}:
                return self._item(kind.removeprefix("item."), name, said["item"])
        return None

    def _item(self, phase: str, name: str, item: JsonObject) -> list[AgentEvent] | None:
        match name, phase:
            case "agent_message", "completed":
                return self._message(item)
            case "reasoning", "completed":
                return [_saying(EventType.AGENT_REASONING, "text", item)]
            case "error", "completed":
                return [_saying(EventType.RUN_ERROR, "message", item)]
            case "todo_list", _:
                return self._todo_list(item)
            case "file_change", "started":
                return self._file_change_started(item)
            case "file_change", "completed":
                return self._file_change(item)
            case _, "started" if name in TOOLS:
                return self._tool_started(item)
            case _, "completed" if name in TOOLS:
                return self._tool_completed(item)
        return None

    def finish(self) -> list[AgentEvent]:
        """Return the events that close what codex left open."""
        note = "still under way when the turn ended"
        events = []
        for tool_id, (item_type, started) in self._open.items():
            if item_type == "file_change":
                event_type, data = EventType.FILE_CHANGED, dict(started)
            else:
                event_type, data = EventType.TOOL_COMPLETED, {**started, "output": ""}
            data.update(tool_id=tool_id, status="failed", error=note)
            events.append(AgentEvent(event_type, data))
        self._open.clear()
        return events

    # --- the turn

    def _thread_started(self, said: JsonObject) -> list[AgentEvent] | None:
        thread_id = said.get("thread_id")
        if not isinstance(thread_id, str):
            return None
        self.thread_id = thread_id
        return _rest(said, "thread_id")

    def _turn_completed(self, said: JsonObject) -> list[AgentEvent]:
        self.completed = True
        usage = said.get("usage")
        if isinstance(usage, dict):
            self.totals = {
                name: count
                for name, count in usage.items()
                if isinstance(count, int) and not isinstance(count, bool)
            }
        return _rest(said, "usage")

    def _turn_failed(self, said: JsonObject) -> list[AgentEvent]:
        error = said.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        self.failure = text(message) or "codex says only that the turn failed"
        return _rest(said, "error")

    # --- items

    def _message(self, item: JsonObject) -> list[AgentEvent]:
        self.last_message = text(item.get("text"))
        return [_saying(EventType.AGENT_MESSAGE, "text", item)]

    def _todo_list(self, item: JsonObject) -> list[AgentEvent]:
        steps = [
            {
                "text": text(an_object(step).get("text")),
                "status": "completed" if an_object(step).get("completed") is True else "pending",
            }
            for step in a_list(item.get("items"))
        ]
        if steps == self._plan:
            return []
        self._plan = steps
        return [_event(EventType.PLAN_UPDATED, steps=steps, **extra(item, "items"))]

    def _file_change_started(self, item: JsonObject) -> list[AgentEvent]:
        self._open[item_id(item)] = "file_change", an_object(shallow({"changes": _changes(item)}))
        return []

    def _file_change(self, item: JsonObject) -> list[AgentEvent]:
        tool_id = item_id(item)
        self._open.pop(tool_id, None)
        data = {"tool_id": tool_id, "status": status_of(item), "changes": _changes(item)}
        return [_event(EventType.FILE_CHANGED, **data, **extra(item, "changes"))]

    def _tool_started(self, item: JsonObject) -> list[AgentEvent]:
        tool_id = item_id(item)
        tool = an_object(shallow(TOOLS[item["type"]].call(item)))
        self._open[tool_id] = item["type"], tool
        return [_event(EventType.TOOL_STARTED, tool_id=tool_id, **tool)]

    def _tool_completed(self, item: JsonObject) -> list[AgentEvent]:
        tool_id = item_id(item)
        self._open.pop(tool_id, None)
        tool = TOOLS[item["type"]]
        data = {**tool.call(item), "status": status_of(item), **tool.outcome(item)}
        return [_event(EventType.TOOL_COMPLETED, tool_id=tool_id, **data)]


def _event(event_type: str, /, **data: Any) -> AgentEvent:
    return AgentEvent(event_type, an_object(shallow(data)))


def _stdout(line: Line) -> list[AgentEvent]:
    payload: dict[str, Any] = {"text": decoded(line.data)}
    if line.truncation:
        size, sha256 = line.truncation.size, line.truncation.sha256
        payload |= {"truncated": True, "size": size, "sha256": sha256}
    elif not line.data.strip():
        return []
    return [_event(EventType.BACKEND_EVENT, kind="stdout", payload=payload)]


def _rest(said: JsonObject, *known: str) -> list[AgentEvent]:
    """Keep a control line whole when it says more than is known of it."""
    if set(said) <= {"type", *known}:
        return []
    return [_event(EventType.BACKEND_EVENT, kind=said["type"], payload=said)]


def _saying(event_type: str, name: str, item: JsonObject) -> AgentEvent:
    data = {name: text(item.get(name)), "item_id": item_id(item)}
    return _event(event_type, **data, **extra(item, name))


def _changes(item: JsonObject) -> list[JsonObject]:
    return [an_object(change) for change in a_list(item.get("changes"))]

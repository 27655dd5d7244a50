"""Converts the output of ``codex exec --json`` to events, one line at a time, without I/O.

Codex 0.169 prints one JSON object a line. An *item* is an action of the agent; it is started,
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
file_change         ``file.changed`` when it is completed; its start is dropped
todo_list           ``plan.updated``, unless it repeats the plan before
error               ``run.error``, as is the ``error`` event
=================== ==========================================================================

``thread.started``, ``turn.completed`` and ``turn.failed`` change the parser's state;
``turn.started`` is dropped. Any other line is a ``backend.event``: an object under its own kind, a
line that is not JSON as ``stdout``. Fields of a known item without a place in the event's data are
kept in ``extra``. So no output of codex is lost.

:meth:`ExecParser.finish` completes items that are still open at the end as failed, with an
``error``. Codex never completes a command that it leaves running.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.bulk import Text, read_object, read_text
from agent_orchestrator.runners.codex.item_events import ItemReader
from agent_orchestrator.runners.codex.items import unknown_fields
from agent_orchestrator.runners.codex.usage import counts
from agent_orchestrator.runners.events import (
    AgentEvent,
    JsonObject,
    UnexpectedShape,
    agent_event,
    text,
)
from agent_orchestrator.runners.lines import Line


@define
class ExecParser:
    """The state of one codex process's output."""

    thread_id: str | None = None
    totals: Mapping[str, int] | None = None
    """The token counts of ``turn.completed``: of the whole thread, all its turns together."""
    failure: str | None = None
    """The message of ``turn.failed``."""
    completed: bool = False
    _items: ItemReader = field(factory=ItemReader, init=False)

    @property
    def last_message(self) -> str | None:
        return self._items.last_message

    @property
    def ended(self) -> bool:
        """Whether codex has said how the turn ended."""
        return self.completed or self.failure is not None

    def feed(self, line: Line) -> Sequence[AgentEvent]:
        """Return the events of a line. Never raises for its content."""
        entry = read_object(line)
        if isinstance(entry, Text):
            return _stdout(entry)
        try:
            events = self._read(entry)
        except RecursionError:
            return _stdout(read_text(line))
        except UnexpectedShape:
            events = None
        if events is None:
            kind = text(entry.get("type")) or "stdout"
            events = [agent_event(EventType.BACKEND_EVENT, kind=kind, payload=entry)]
        return events

    def _read(self, entry: JsonObject) -> list[AgentEvent] | None:
        """Return the events of a known line; None for an unknown one."""
        match entry.get("type"), entry.get("item"):
            case "thread.started", None:
                return self._thread_started(entry)
            case "turn.started", None:
                return _unknown_rest(entry)
            case "turn.completed", None:
                return self._turn_completed(entry)
            case "turn.failed", None:
                return self._turn_failed(entry)
            case "error", None:
                message = text(entry.get("message"))
                return [
                    agent_event(
                        EventType.RUN_ERROR, message=message, **unknown_fields(entry, "message")
                    )
                ]
            case ("item.started" | "item.updated" | "item.completed") as kind, {"type": str()}:
                return self._items.read(kind.removeprefix("item."), entry["item"])
        return None

    def finish(self) -> list[AgentEvent]:
        """Return the events that end all open items."""
        return self._items.tools.finish()

    # --- the turn

    def _thread_started(self, entry: JsonObject) -> list[AgentEvent] | None:
        thread_id = entry.get("thread_id")
        if not isinstance(thread_id, str):
            return None
        self.thread_id = thread_id
        return _unknown_rest(entry, "thread_id")

    def _turn_completed(self, entry: JsonObject) -> list[AgentEvent]:
        self.completed = True
        usage = entry.get("usage")
        if isinstance(usage, dict):
            self.totals = counts(usage)
        return _unknown_rest(entry, "usage")

    def _turn_failed(self, entry: JsonObject) -> list[AgentEvent]:
        error = entry.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        self.failure = text(message) or "codex gave no reason for the failed turn"
        return _unknown_rest(entry, "error")


def _stdout(line: Text) -> list[AgentEvent]:
    payload: dict[str, Any] = {"text": line.text}
    if line.truncation:
        size, sha256 = line.truncation.size, line.truncation.sha256
        payload |= {"truncated": True, "size": size, "sha256": sha256}
    elif not line.text.strip():
        return []
    return [agent_event(EventType.BACKEND_EVENT, kind="stdout", payload=payload)]


def _unknown_rest(entry: JsonObject, *known: str) -> list[AgentEvent]:
    """Keep a control line unchanged if it has unknown fields."""
    if set(entry) <= {"type", *known}:
        return []
    return [agent_event(EventType.BACKEND_EVENT, kind=entry["type"], payload=entry)]

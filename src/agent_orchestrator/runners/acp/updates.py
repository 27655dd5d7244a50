"""Converts the updates of a session to events, without I/O.

=================================== ============================================================
session/update                      becomes
=================================== ============================================================
agent_message_chunk                 ``agent.message.delta``, and ``agent.message`` when it is complete
agent_thought_chunk                 ``agent.reasoning`` when it is complete
tool_call, tool_call_update         ``tool.started``, ``tool.output``, ``tool.completed``, ``file.changed``
plan                                ``plan.updated``
usage_update                        the cost so far, kept by the reader
current_mode_update,                the present mode, kept by the reader
config_option_update
=================================== ============================================================

A message is complete when another one or a tool call follows, or the turn ends. Any unknown update, or a known one of an
unknown shape, is a ``backend.event`` under its own name.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.acp.agent import AcpAgent
from agent_orchestrator.runners.acp.settings import told_mode
from agent_orchestrator.runners.acp.tool_calls import ToolCall
from agent_orchestrator.runners.acp.usage import UsageMeter
from agent_orchestrator.runners.acp.values import objects, value_at
from agent_orchestrator.runners.events import AgentEvent, JsonObject, agent_event, text
from agent_orchestrator.runners.live.streams import MessageStreams
from agent_orchestrator.runners.tool_items import short_id

IGNORED: Final = frozenset(
    {"available_commands_update", "session_info_update", "user_message_chunk"}
)
"""Updates about other topics."""

_MAX_CALLS: Final = 10_000
"""Maximum number of open tool calls. A new one ends the oldest."""

_MAX_SIZE: Final = 128 * 2**20
"""Maximum characters of all open tool calls. Above that, the oldest are ended."""

_MAX_NAME: Final = 256
"""Maximum characters of the name of an update."""

_UNFINISHED: Final = "unfinished when the turn ended"


@frozen
class _Stream:
    """The message or thought that is being received."""

    is_thought: bool
    message_id: str
    item_id: str


@define
class UpdateReader:
    """The state of one run's conversation.

    :ivar last_message: the last complete message of the model.
    :ivar last_text: the last complete message, also one of the program itself.
    :ivar mode: the mode that the agent has reported last; None if it has not.
    :ivar has_called_tools: whether the agent has called a tool.
    :ivar calls_done: number of tool calls that have ended, except for denied ones.
    """

    agent: AcpAgent
    usage: UsageMeter
    last_message: str = ""
    last_text: str = ""
    mode: str | None = None
    has_called_tools: bool = False
    calls_done: int = 0
    _stream: _Stream | None = field(default=None, init=False)
    _texts: MessageStreams = field(factory=MessageStreams, init=False)
    _items: int = field(default=0, init=False)
    _calls: dict[str, ToolCall] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)
    """Characters of the open calls."""
    _ended: dict[str, None] = field(factory=dict, init=False)
    _plan: Any = field(default=None, init=False)

    def feed(self, params: JsonObject) -> list[AgentEvent]:
        """Return the events of the params of a ``session/update``. Never raises for its content."""
        update = params.get("update")
        if not isinstance(update, Mapping):
            return [agent_event(EventType.BACKEND_EVENT, kind="session/update", payload=params)]
        try:
            events = self._read(update)
        except RecursionError:
            events = None
            update = {"text": "nested too deep to be read"}
        if events is None:
            kind = text(update.get("sessionUpdate"))[:_MAX_NAME] or "session/update"
            return [agent_event(EventType.BACKEND_EVENT, kind=kind, payload=update)]
        return events

    def asked(self, params: JsonObject) -> tuple[ToolCall, list[AgentEvent]]:
        """Return the tool call of a request for permission, and the events that precede the request.

        Some agents first mention a call in such a request.
        """
        told = params.get("toolCall")
        told = told if isinstance(told, Mapping) else {}
        call, events = self._call(short_id(text(told.get("toolCallId"))))
        events += self._merge(call, told)
        return call, [*events, *self._start(call)]

    def finish(self) -> list[AgentEvent]:
        """Return the events that end all open messages and tool calls at the end of a turn."""
        events = self._end_stream()
        for call in self._calls.values():
            events += self._start(call)
            events.append(call.ended(_UNFINISHED))
        self._calls.clear()
        self._size = 0
        return events

    def _read(self, update: JsonObject) -> list[AgentEvent] | None:
        match text(update.get("sessionUpdate")):
            case "agent_message_chunk" | "agent_thought_chunk" as kind:
                self.usage.add_chunk(update)
                return self._chunk(update, is_thought=kind == "agent_thought_chunk")
            case "tool_call" | "tool_call_update":
                return self._tool(update)
            case "plan":
                return self._read_plan(update)
            case "usage_update":
                self.usage.add_cost(update)
                return []
            case "current_mode_update" | "config_option_update":
                self.mode = told_mode(update) or self.mode
                return []
            case kind if kind in IGNORED:
                return []
        return None

    # --- texts

    def _chunk(self, update: JsonObject, *, is_thought: bool) -> list[AgentEvent] | None:
        content = update.get("content")
        if not isinstance(content, Mapping) or not isinstance(content.get("text"), str):
            return None
        piece, message_id = content["text"], text(update.get("messageId"))
        if not piece:
            return []
        stream, events = self._stream, []
        if stream is None or stream.is_thought != is_thought or stream.message_id != message_id:
            events = self._end_stream()
            self._items += 1
            name = "thought" if is_thought else "message"
            stream = self._stream = _Stream(is_thought, message_id, f"{name}-{self._items}")
        delta = self._texts.add(stream.item_id, piece)
        return events if is_thought else [*events, *delta]

    def _end_stream(self) -> list[AgentEvent]:
        stream, self._stream = self._stream, None
        event = None if stream is None else self._texts.complete(stream.item_id)
        if stream is None or event is None:
            return []
        if stream.is_thought:
            return [AgentEvent(EventType.AGENT_REASONING, event.data)]
        self.last_text = event.data["text"]
        if self.agent.notice is None or not self.agent.notice.match(event.data["text"]):
            self.last_message = event.data["text"]
        return [event]

    # --- tools

    def _call(self, tool_id: str) -> tuple[ToolCall, list[AgentEvent]]:
        """Return a tool call, which is new if the id is unknown, and the events that its beginning causes."""
        self.has_called_tools = True
        events = self._end_stream()
        if tool_id not in self._calls:
            if len(self._calls) >= _MAX_CALLS:
                events += self._end_oldest()
            self._calls[tool_id] = ToolCall(tool_id, self.agent)
        return self._calls[tool_id], events

    def _merge(self, call: ToolCall, update: JsonObject) -> list[AgentEvent]:
        """Add an update to a call. Return the events that end the oldest calls, if all are too large together."""
        self._size -= call.size
        call.merge(update)
        self._size += call.size
        events: list[AgentEvent] = []
        while self._size > _MAX_SIZE and self._calls:
            events += self._end_oldest()
        return events

    def _end_oldest(self) -> list[AgentEvent]:
        oldest = self._calls[next(iter(self._calls))]
        events = [*self._start(oldest), oldest.ended(_UNFINISHED)]
        self._close(oldest)
        return events

    def _close(self, call: ToolCall) -> None:
        del self._calls[call.id]
        self._size -= call.size
        self._ended[call.id] = None
        if len(self._ended) > _MAX_CALLS:
            del self._ended[next(iter(self._ended))]

    def _tool(self, update: JsonObject) -> list[AgentEvent] | None:
        given = update.get("toolCallId")
        if not isinstance(given, str):
            return None
        tool_id = short_id(given)
        if tool_id in self._ended:
            return []
        call, events = self._call(tool_id)
        events += self._merge(call, update)
        if tool_id not in self._calls:
            return events
        if call.is_told or call.has_ended:
            events += self._start(call)
        piece = value_at(update, ["_meta", "terminal_output_delta", "data"])
        if isinstance(piece, str) and piece:
            self._size -= call.size
            call.add_output(piece)
            self._size += call.size
            events += self._start(call)
            events.append(agent_event(EventType.TOOL_OUTPUT, tool_id=tool_id, text=piece))
        if call.has_ended:
            events.append(call.ended())
            self.calls_done += not call.is_declined
            self._close(call)
        return events

    @staticmethod
    def _start(call: ToolCall) -> list[AgentEvent]:
        if call.is_started or (event := call.started()) is None:
            return []
        return [event]

    # --- the plan

    def _read_plan(self, update: JsonObject) -> list[AgentEvent]:
        steps = [
            {"text": text(one.get("content")), "status": text(one.get("status")) or "pending"}
            for one in objects(update.get("entries"))
        ]
        if steps == self._plan:
            return []
        self._plan = steps
        return [*self._end_stream(), agent_event(EventType.PLAN_UPDATED, steps=steps)]

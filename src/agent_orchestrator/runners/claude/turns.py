"""Converts the messages of Claude Code during a run to events, without I/O.

================================== =========================================================
message                            becomes
================================== =========================================================
assistant, a block of text         ``agent.message``; of a sub-agent ``subagent.message``
assistant, a block of thinking     ``agent.reasoning``
assistant, a call of a tool        ``tool.started``
user, the result of a tool         ``tool.completed``, ``file.changed``, ``plan.updated``
stream_event/text_delta            ``agent.message.delta``
system/api_retry                   ``run.error``: the attempt and its reason
result                             the end of a turn, kept by the reader
================================== =========================================================

A message that only repeats others, or is a heartbeat, is dropped (:data:`IGNORED`). Any other one is a
``backend.event`` under its own name. Events of a sub-agent have ``parent_tool_id``: the call that it works for.

The texts of 2.1.332 come once in pieces, and then whole.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Usage
from agent_orchestrator.runners.claude import file_changes, items, plan
from agent_orchestrator.runners.claude.failures import result_failure
from agent_orchestrator.runners.claude.file_changes import FILE_TOOLS
from agent_orchestrator.runners.claude.plan import Plan
from agent_orchestrator.runners.claude.protocol import INIT, RESULT, TEXT_DELTA
from agent_orchestrator.runners.claude.usage import plus, usage_of
from agent_orchestrator.runners.events import (
    AgentEvent,
    JsonObject,
    UnexpectedShape,
    agent_event,
    require_list,
    require_object,
    text,
)
from agent_orchestrator.runners.live.messages import Notification
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER
from agent_orchestrator.runners.numbers import amount, whole
from agent_orchestrator.runners.tool_items import ToolItems, short_id

IGNORED: Final = frozenset(
    {
        "control_cancel_request",
        "rate_limit_event",
        "stream_event/content_block_start",
        "stream_event/content_block_stop",
        "stream_event/input_json_delta",
        "stream_event/message_delta",
        "stream_event/message_stop",
        "stream_event/ping",
        "stream_event/signature_delta",
        "stream_event/thinking_delta",
        "system/background_tasks_changed",
        "system/status",
        "system/task_notification",
        "system/task_progress",
        "system/task_started",
        "system/task_updated",
        "system/thinking_tokens",
        "tool_progress",
    }
)

_MAX_ANSWER: Final = 64 * 2**20
"""Maximum characters of a run's result."""

_MAX_MESSAGES: Final = 10_000
"""Maximum number of answers whose texts are counted."""

_MAX_DELAY_MS: Final = 1e9
"""Maximum delay of a retry in milliseconds. A greater one is an error of the agent."""


@define
class RunReader:
    """The state of a run's conversation since its prompt.

    :ivar usage: of the turns that have ended.
    :ivar failure: why the last turn failed; None if it did not.
    :ivar is_answering: whether the model has begun to answer.
    :ivar has_run_commands: whether a command was run, which may have left processes.
    :ivar mode: the permission mode, once Claude Code has reported it.
    """

    plan: Plan = field(factory=Plan)
    usage: Usage | None = None
    failure: AgentFailed | None = None
    turns: int = 0
    structured: str | None = None
    """The answer of the last turn that matches the JSON Schema."""
    is_answering: bool = False
    has_run_commands: bool = False
    mode: str | None = None
    _items: ToolItems = field(factory=ToolItems, init=False)
    _calls: dict[str, tuple[str, JsonObject]] = field(factory=dict, init=False)
    _answer: list[str] = field(factory=list, init=False)
    _answer_size: int = field(default=0, init=False)
    _is_continued: bool = field(default=False, init=False)
    _message_id: str = field(default="", init=False)
    """The id of the answer that is being streamed."""
    _blocks: dict[str, int] = field(factory=dict, init=False)
    """The number of texts in each answer."""
    _error: str | None = field(default=None, init=False)
    _said: str = field(default="", init=False)

    @property
    def answer(self) -> str:
        """The text since the last call of a tool: the result of the run."""
        return "".join(self._answer)[:_MAX_ANSWER]

    def call_of(self, tool_id: str) -> tuple[str, JsonObject] | None:
        """Return name and input of a call that has not ended."""
        return self._calls.get(short_id(tool_id))

    def note_change(self, tool_id: str, change: JsonObject) -> None:
        """Store the change of a file from a question, which has more than the tool's input."""
        tool_id = short_id(tool_id)
        if self._items.get(tool_id) is not None:
            self._items.merge(tool_id, {"changes": [change]}, EventType.FILE_CHANGED)

    def feed(self, notification: Notification) -> list[AgentEvent]:
        """Return the events of a message. Never raises for its content."""
        name, params = notification.method, notification.params
        try:
            events = self._read(name, params)
        except UnexpectedShape:
            events = None
        except RecursionError:
            too_deep = {"text": "nested too deep to be read"}
            return [agent_event(EventType.BACKEND_EVENT, kind=name, payload=too_deep)]
        if events is None:
            return [agent_event(EventType.BACKEND_EVENT, kind=name, payload=params)]
        return events

    def begin_turn(self) -> None:
        """Forget the answer of the turn before."""
        self._forget_answer()
        self._error, self._said = None, ""

    def finish(self) -> list[AgentEvent]:
        """Return the events that end all open items."""
        self._calls.clear()
        return self._items.finish()

    def _read(self, name: str, params: JsonObject) -> list[AgentEvent] | None:
        match name:
            case "assistant":
                return self._assistant(params)
            case "user":
                return self._user(params)
            case "stream_event/message_start":
                event = require_object(params.get("event"))
                message = require_object(event.get("message"))
                if not params.get("parent_tool_use_id"):
                    self._message_id = short_id(text(message.get("id")))
                self.is_answering = True
                return []
            case _ if name == TEXT_DELTA:
                return self._delta(params)
            case _ if name == INIT:
                self.begin_turn()
                self.mode = text(params.get("permissionMode"))
                return self._servers(params)
            case _ if name == RESULT:
                return self._result(params)
            case "system/api_retry":
                return [_retry(params)]
            case "system/permission_denied" | "system/informational":
                note = text(params.get("message") or params.get("content"))
                return [agent_event(EventType.RUN_ERROR, message=note)]
            case "system/status" if "permissionMode" in params:
                self.mode = text(params.get("permissionMode"))
        return [] if name in IGNORED else None

    # --- the model

    def _assistant(self, params: JsonObject) -> list[AgentEvent]:
        message = require_object(params.get("message"))
        parent = params.get("parent_tool_use_id")
        of = {"parent_tool_id": short_id(text(parent))} if parent else {}
        self.is_answering |= not params.get("error")
        message_id = short_id(text(message.get("id")))
        events: list[AgentEvent] = []
        for one in require_list(message.get("content")):
            block = require_object(one)
            found = self._block(params, message_id, block, of)
            if found is None:
                found = [agent_event(EventType.BACKEND_EVENT, kind="assistant", payload=block)]
            events += found
        return events

    def _block(
        self, params: JsonObject, message_id: str, block: JsonObject, of: dict[str, str]
    ) -> list[AgentEvent] | None:
        """Return the events of a part of a message; None if it is of an unknown kind."""
        match block.get("type"):
            case "text" if params.get("error"):
                # It is the message of the failure, and no answer of the model.
                self._error, self._said = text(params.get("error")), text(block.get("text"))
                return []
            case "text":
                said = text(block.get("text"))
                item_id = self._item_id(message_id)
                kind = EventType.SUBAGENT_MESSAGE if of else EventType.AGENT_MESSAGE
                if not of:
                    self._add_to_answer(said)
                self._blocks[message_id] = self._blocks.get(message_id, 0) + 1
                if len(self._blocks) > _MAX_MESSAGES:
                    del self._blocks[next(iter(self._blocks))]
                return [agent_event(kind, text=said, item_id=item_id, **of)]
            case "thinking":
                thought = text(block.get("thinking"))
                item_id = f"{message_id}.thinking"
                return (
                    [agent_event(EventType.AGENT_REASONING, text=thought, item_id=item_id, **of)]
                    if thought
                    else []
                )
            case "tool_use":
                if not of:
                    self._forget_answer()
                return self._started(block, of)
            case "redacted_thinking":
                return []
        return None

    def _add_to_answer(self, said: str) -> None:
        separator = "\n\n" if self._answer and not self._is_continued else ""
        self._is_continued = False
        if self._answer_size < _MAX_ANSWER:
            self._answer.append(separator + said)
            self._answer_size += len(separator) + len(said)

    def _forget_answer(self) -> None:
        self._answer, self._answer_size, self._is_continued = [], 0, False

    def _item_id(self, message_id: str) -> str:
        return f"{message_id}.{self._blocks.get(message_id, 0)}"

    def _delta(self, params: JsonObject) -> list[AgentEvent]:
        if params.get("parent_tool_use_id"):
            return []  # the message follows complete
        item_id = self._item_id(self._message_id)
        piece = text(params.get("text"))
        return [agent_event(EventType.AGENT_MESSAGE_DELTA, text=piece, item_id=item_id)]

    # --- tools

    def _started(self, block: JsonObject, of: dict[str, str]) -> list[AgentEvent]:
        tool_id, name = short_id(text(block.get("id"))), text(block.get("name"))
        tool_input = block.get("input")
        tool_input = tool_input if isinstance(tool_input, Mapping) else {"input": tool_input}
        self._calls[tool_id] = name, tool_input
        self.has_run_commands |= name == items.COMMAND_TOOL
        if name in FILE_TOOLS:
            data = {"changes": [file_changes.proposed(name, tool_input)], **of}
            events = self._items.merge(tool_id, data, EventType.FILE_CHANGED)
        else:
            events = self._items.start(tool_id, {**items.call(name, tool_input), **of})
        for ended in events:
            if ended.event_type != EventType.TOOL_STARTED:
                self._calls.pop(ended.data["tool_id"], None)
        return events

    def _user(self, params: JsonObject) -> list[AgentEvent]:
        content = require_object(params.get("message")).get("content")
        if params.get("isSynthetic") is True:
            self._is_continued = True
            return []
        if not isinstance(content, list):
            return []  # the program's own notes, such as a change of the model
        found = params.get("tool_result_meta")
        metas = {
            text(one.get("id")): one
            for one in (found if isinstance(found, list) else ())
            if isinstance(one, Mapping)
        }
        blocks = [require_object(part) for part in content]
        results = [block for block in blocks if block.get("type") == "tool_result"]
        # Of several results, it is unknown whose details these are.
        details = params.get("tool_use_result") if len(results) == 1 else None
        events: list[AgentEvent] = []
        for block in results:
            tool_id = text(block.get("tool_use_id"))
            events += self._completed(short_id(tool_id), block, metas.get(tool_id, {}), details)
        return events

    def _completed(
        self, tool_id: str, block: JsonObject, meta: JsonObject, result: Any
    ) -> list[AgentEvent]:
        name, tool_input = self._calls.pop(tool_id, ("", {}))
        status = items.status_of(block, meta)
        known = self._items.get(tool_id)
        if name in FILE_TOOLS:
            data: dict[str, Any] = {"status": status}
            if status != "completed":
                data["error"] = items.result_text(block.get("content"))
            if known is None or status == "completed":
                data["changes"] = [file_changes.completed(name, tool_input, result)]
            return [self._items.complete(tool_id, data, EventType.FILE_CHANGED)]
        if known is None:
            return []
        ended = self._items.complete(tool_id, items.outcome(known["kind"], block, status))
        steps = None
        if name in plan.TOOLS and status == "completed" and "parent_tool_id" not in known:
            steps = self.plan.change(name, tool_input, result)
        if steps is None:
            return [ended]
        return [ended, agent_event(EventType.PLAN_UPDATED, steps=steps)]

    # --- the turn

    def _servers(self, params: JsonObject) -> list[AgentEvent]:
        servers = params.get("mcp_servers")
        events = []
        for one in servers if isinstance(servers, list) else ():
            if not isinstance(one, Mapping):
                continue
            name, status = text(one.get("name")), text(one.get("status"))
            if status in ("failed", "needs-auth") or (
                name == TOOL_SERVER and status != "connected"
            ):
                note = f"the MCP server {name} cannot be used: {status}"
                events.append(agent_event(EventType.RUN_ERROR, message=note))
        return events

    def _result(self, result: JsonObject) -> list[AgentEvent]:
        self.turns += 1
        used = usage_of(result)
        if used is not None:
            self.usage = plus(self.usage, used)
        is_failed = result.get("is_error") is True
        self.failure = result_failure(result, self._error, self._said) if is_failed else None
        said = result.get("result")
        self.structured = text(said) if result.get("structured_output") is not None else None
        if not is_failed and not self._answer and isinstance(said, str) and not self.is_answering:
            self._answer = [said]  # of a command that Claude Code executes itself
        return self._items.finish() if is_failed else []


def _retry(params: JsonObject) -> AgentEvent:
    attempt, maximum = whole(params.get("attempt")), whole(params.get("max_retries"))
    delay_ms = amount(params.get("retry_delay_ms"), _MAX_DELAY_MS)
    status = whole(params.get("error_status"), 999)
    wait = "" if delay_ms is None else f" in {delay_ms / 1000:.1f} s"
    count = "" if attempt is None else f", attempt {attempt}"
    count += f" of {maximum}" if count and maximum is not None else ""
    reason = text(params.get("error")).replace("_", " ") or "no answer"
    more = f" ({status})" if status else ""
    message = f"retrying{wait}{count}: {reason}{more}"
    return agent_event(EventType.RUN_ERROR, message=message, extra={"will_retry": True})

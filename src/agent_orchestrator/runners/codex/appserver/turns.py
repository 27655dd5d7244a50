"""Converts notifications of ``codex app-server`` about a turn to events, without I/O.

===================================== ======================================================
notification                          becomes
===================================== ======================================================
item/started, item/completed          the events of :class:`~..item_events.ItemReader`
item/agentMessage/delta               ``agent.message.delta``
item/commandExecution/outputDelta     ``tool.output``
turn/plan/updated                     ``plan.updated``
error, warning                        ``run.error``
thread/tokenUsage/updated             token counts of the whole thread, kept by the reader
turn/completed                        the end of the turn
===================================== ======================================================

A notification that a later item repeats is dropped (:data:`REPEATED_METHODS`). Any other one is a
``backend.event`` under its own name. So are the notifications of sub-agents' threads, except pieces
of items. So no report of codex about its work is lost.

If a turn is steered, codex breaks off the stream of a message. Such a message never comes complete.
Its pieces become a message when the turn continues.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import define, field, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.runners.codex.appserver.exec_items import exec_item, snake
from agent_orchestrator.runners.codex.item_events import ItemReader
from agent_orchestrator.runners.codex.usage import counts
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
from agent_orchestrator.runners.live.streams import MessageStreams

IGNORED_METHODS: Final = (
    "account/rateLimits/updated",
    "item/plan/delta",
    "item/reasoning/summaryPartAdded",
    "item/reasoning/summaryTextDelta",
    "item/reasoning/textDelta",
    "remoteControl/status/changed",
    "thread/readState/changed",
    "thread/status/changed",
    "turn/diff/updated",
)
"""Notifications that codex is asked not to send: pieces of items that are sent whole later, and other topics."""

REPEATED_METHODS: Final = frozenset(
    {
        *IGNORED_METHODS,
        "item/fileChange/outputDelta",
        "item/fileChange/patchUpdated",
        "serverRequest/resolved",
        "thread/settings/updated",
        "thread/started",
    }
)

DELTA_METHODS: Final = frozenset(
    {
        *REPEATED_METHODS,
        "item/agentMessage/delta",
        "item/commandExecution/outputDelta",
        "item/started",
    }
)
"""Messages about a sub-agent's thread that are dropped."""


STREAMS: Final = dict.fromkeys(
    ("item/agentMessage/delta", "item/commandExecution/outputDelta"), (("delta",),)
)
"""The messages with a piece of a text."""

TURNS: Final = frozenset({"turn/started", "turn/completed"})
"""Notifications that are never dropped, even if a run reads too slowly."""


_MAX_CHILDREN: Final = 1_000
"""Maximum number of sub-agents' threads of one turn. They are ended one by one."""


@frozen
class TurnEnd:
    """The end of a turn.

    :param status: ``completed``, ``interrupted``, ``failed``, or another status of a newer codex.
    :param error: codex's TurnError, if ``failed``.
    """

    status: str
    error: JsonObject = field(factory=dict)


@define
class TurnReader:
    """The state of one turn of a thread."""

    thread_id: str
    turn_id: str | None = None
    is_recorded: bool = False
    """Whether codex has written the prompt into its own record of the thread. Codex 0.169 killed
    before it says that the user's message is complete may have lost it; after that it has not."""
    totals: Mapping[str, int] | None = None
    """The token counts of the whole thread, all its turns together."""
    end: TurnEnd | None = None
    has_run_commands: bool = False
    children: dict[str, str | None] = field(factory=dict)
    """The threads of sub-agents with their current turns: None without a turn, ``""`` before a turn that
    was requested has begun."""
    items: ItemReader = field(factory=ItemReader)
    _has_begun: bool = field(default=False, init=False)
    _messages: MessageStreams = field(factory=MessageStreams, init=False)

    def feed(self, notification: Notification) -> list[AgentEvent]:
        """Return the events of a notification. Never raises for its content."""
        try:
            events = self._read(notification.method, notification.params)
        except UnexpectedShape:
            events = None
        except RecursionError:
            payload = {"text": "nested too deep to be read"}
            return [
                AgentEvent(
                    EventType.BACKEND_EVENT, {"kind": notification.method, "payload": payload}
                )
            ]
        if events is None:
            events = [
                agent_event(
                    EventType.BACKEND_EVENT, kind=notification.method, payload=notification.params
                )
            ]
        return events

    def finish(self) -> list[AgentEvent]:
        """Return the events that end all open items."""
        return [*self._messages.finish(), *self.items.tools.finish()]

    @property
    def threads(self) -> tuple[str, ...]:
        """The thread and those of its sub-agents."""
        return (self.thread_id, *self.children)

    def is_stale(self, notification: Notification) -> bool:
        """Return whether it is the end of another turn of the thread, which was abandoned."""
        turn = notification.params.get("turn")
        return (
            notification.method == "turn/completed"
            and notification.params.get("threadId") == self.thread_id
            and isinstance(turn, dict)
            and turn.get("id") != self.turn_id
        )

    def _read(self, method: str, params: JsonObject) -> list[AgentEvent] | None:
        if (thread_id := text(params.get("threadId", self.thread_id))) != self.thread_id:
            self._note_child(thread_id, method, params)
            return [] if method in DELTA_METHODS else None
        match method:
            case "item/started" | "item/completed":
                return self._item(method.removeprefix("item/"), params)
            case "item/agentMessage/delta":
                return self._messages.add(text(params.get("itemId")), text(params.get("delta")))
            case "item/commandExecution/outputDelta":
                piece = text(params.get("delta"))
                return [
                    agent_event(EventType.TOOL_OUTPUT, tool_id=text(params["itemId"]), text=piece)
                ]
            case "turn/started":
                turn = require_object(params.get("turn"))
                self.turn_id = text(turn.get("id"))
                self._has_begun = True
                return []
            case "turn/completed":
                return self._completed(require_object(params.get("turn")))
            case "turn/plan/updated":
                return self._plan(params)
            case "thread/tokenUsage/updated":
                return self._usage(params)
            case "error":
                return self._error(params)
            case "warning" | "configWarning" | "deprecationNotice":
                message = text(params.get("message") or params.get("summary"))
                return [agent_event(EventType.RUN_ERROR, message=message)]
        return [] if method in REPEATED_METHODS or self._is_goal_unchanged(method) else None

    def _is_goal_unchanged(self, method: str) -> bool:
        """Return whether it reports that a resumed thread has no goal, as codex 0.169 does."""
        return method == "thread/goal/cleared" and not self._has_begun

    def _note_child(self, thread_id: str, method: str, params: JsonObject) -> None:
        has_room = len(self.children) < _MAX_CHILDREN
        match method:
            case "turn/started" if thread_id in self.children or has_room:
                self.children[thread_id] = text(require_object(params.get("turn")).get("id"))
            case "turn/completed" if thread_id in self.children or has_room:
                self.children[thread_id] = None
            case _ if has_room:
                self.children.setdefault(thread_id, None)

    # --- items

    def _item(self, phase: str, params: JsonObject) -> list[AgentEvent] | None:
        item = require_object(params.get("item"))
        self.is_recorded |= item.get("type") != "userMessage" or phase == "completed"
        if item.get("type") == "userMessage":
            return self._messages.finish()
        found = exec_item(item)
        if found is None:
            return None
        match found["type"]:
            case "command_execution":
                self.has_run_commands = True
            case "collab_tool_call":
                self._collaborate(phase, found)
            case "agent_message" if phase == "completed":
                self._messages.drop(text(found.get("id")))
            case "reasoning" if not found["text"]:
                return []
        if phase == "started" and found["type"] in ("agent_message", "reasoning"):
            return []
        return self.items.read(phase, found)

    def _collaborate(self, phase: str, call: JsonObject) -> None:
        is_work = call.get("tool") in ("spawn_agent", "send_input") and phase == "completed"
        for one in require_list(call.get("receiver_thread_ids") or []):
            child = text(one)
            if len(self.children) >= _MAX_CHILDREN:
                break
            is_new = is_work and child not in self.children
            self.children.setdefault(child, "" if is_new else None)

    def _plan(self, params: JsonObject) -> list[AgentEvent]:
        steps = [
            {
                "text": text(require_object(step).get("step")),
                "status": snake(text(require_object(step).get("status"))),
            }
            for step in require_list(params.get("plan"))
        ]
        explanation = params.get("explanation")
        return self.items.plan(
            steps, {"extra": {"explanation": explanation}} if explanation else {}
        )

    # --- the turn

    def _completed(self, turn: JsonObject) -> list[AgentEvent]:
        error = turn.get("error")
        self.end = TurnEnd(text(turn.get("status")), error if isinstance(error, dict) else {})
        return []

    def _usage(self, params: JsonObject) -> list[AgentEvent]:
        total = require_object(require_object(params.get("tokenUsage")).get("total"))
        self.totals = counts({snake(name): count for name, count in total.items()})
        return []

    def _error(self, params: JsonObject) -> list[AgentEvent]:
        error = require_object(params.get("error"))
        known: dict[str, Any] = {"message": text(error.get("message"))}
        more = {
            snake(name): value
            for name, value in error.items()
            if value is not None and name != "message"
        }
        if params.get("willRetry"):
            more["will_retry"] = True
        return [agent_event(EventType.RUN_ERROR, **known, **({"extra": more} if more else {}))]

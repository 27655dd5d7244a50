"""Converts an agent's requests for permission to requests of the engine, and decisions to answers.

====================== ===========================================
decision               answer: the option of this kind
====================== ===========================================
approved               ``allow_once``
approved, for the      ``allow_once``, now and whenever the agent
session                asks for the same again
denied, expired        ``reject_once``
``deny_and_stop``      ``cancelled``, and the turn is ended
====================== ===========================================

Options are chosen by their kind, whatever their order. An option that the agent would save (``allow_always``,
``reject_always``) is never chosen: some agents save it in their user's files, for all directories and without end.
An approval for the session is kept here instead.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.approvals import SESSION_SCOPE
from agent_orchestrator.domain.details import (
    CommandDetail,
    Detail,
    FileChangeDetail,
    PlanDetail,
    ToolDetail,
)
from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.runners.acp.tool_calls import ToolCall
from agent_orchestrator.runners.acp.values import objects
from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.live.questions import Question

CANCELLED: Final = {"outcome": {"outcome": "cancelled"}}
"""The answer to a question if its turn is being ended."""

_DENY: Final = Option("deny", "Deny", "deny")
_STOP: Final = Option("deny_and_stop", "Deny, and end the turn", "deny_and_stop")

_MAX_ALLOWED: Final = 1_000
"""Maximum number of approvals that are kept for a session. A new one replaces the oldest."""


@define
class Approvals:
    """The approvals of a session. They are stored with its thread."""

    _allowed: dict[str, None] = field(factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Approvals":
        """Return the approvals in the state of a thread."""
        kept = state.get("allowed")
        return cls(dict.fromkeys(text(one) for one in kept) if isinstance(kept, list) else {})

    def state(self) -> dict[str, Any]:
        return {"allowed": [*self._allowed]} if self._allowed else {}

    def add(self, call: ToolCall) -> None:
        self._allowed[_key(call)] = None
        if len(self._allowed) > _MAX_ALLOWED:
            del self._allowed[next(iter(self._allowed))]

    def have(self, call: ToolCall) -> bool:
        return _key(call) in self._allowed


def _key(call: ToolCall) -> str:
    """Return a hash of the command, the files, or the tool with its input. Repeated requests have the same hash."""
    if (command := call.command) is not None:
        same: Any = ["command", command]
    elif call.kind in ("edit", "delete", "move") and call.paths:
        same = [call.kind, *sorted(call.paths)]
    else:
        tool = call.tool()
        same = ["tool", tool["name"], call.title, tool["input"]]
    return sha256(json.dumps(same, sort_keys=True).encode("utf-8", "replace")).hexdigest()


def question_for(call: ToolCall, options: Any) -> Question:
    """Return the question whether an agent may make a tool call.

    :param options: the agent's options.
    """
    action, same, detail = _described(call)
    reaches = f"{same} without asking again, in this conversation"
    offered = (
        Option("allow_once", "Allow once", "allow_once"),
        Option("allow_session", "Allow for this session", "allow_session", reaches),
        _DENY,
        _STOP,
    )
    return Question("approval_request", action, detail, offered, partial(_answer, options))


def _described(call: ToolCall) -> tuple[str, str, Detail]:
    """Return the text of the request, the actions that an approval for the session covers, and the detail."""
    agent = {"title": call.title}
    if (command := call.command) is not None:
        cwd = text(call.input.get("cwd")) or None
        reason = text(call.input.get("description")) or None
        detail = CommandDetail(type="command", command=command, cwd=cwd, reason=reason, agent=agent)
        return f"Run: {command}", "the same command", detail
    if changes := call.changes:
        paths = ", ".join(f"{change['kind']} {change['path']}" for change in changes)
        files = FileChangeDetail(type="file_change", changes=changes, reason=None, agent=agent)
        return f"Change files: {paths}", "changes of the same files", files
    if call.kind == "switch_mode":
        plan = PlanDetail(type="plan", text=call.output() or call.title, agent=agent)
        return f"Approve the plan: {call.title}", "the same plan", plan
    tool = call.tool()
    server, _, name = (
        tool["name"].rpartition(".") if tool["kind"] == "mcp" else ("", "", tool["name"])
    )
    use = ToolDetail(
        type="tool", name=name, server=server or None, input=tool["input"], agent=agent
    )
    return f"Use {tool['name']}: {call.title}", "the same call", use


def _answer(options: Any, request: Request | None) -> JsonObject:
    if is_cancel(request):
        return CANCELLED
    if request is not None and request.status == "approved":
        return allow_once(options) or denial(options)
    return denial(options)


def allow_once(options: Any) -> JsonObject | None:
    """Return the answer that allows a call once; None if the agent has no such option."""
    return _choice(options, "allow_once")


def denial(options: Any) -> JsonObject:
    """Return the answer that denies a call."""
    return _choice(options, "reject_once") or CANCELLED


def is_cancel(request: Request | None) -> bool:
    """Return whether a decision also ends the turn."""
    chosen = None if request is None else request.chosen
    return chosen is not None and chosen.kind == "deny_and_stop"


def is_for_session(request: Request | None) -> bool:
    """Return whether an approval also holds for the same requests of the session."""
    return request is not None and request.status == "approved" and request.scope == SESSION_SCOPE


def _choice(options: Any, kind: str) -> JsonObject | None:
    """Return the answer that chooses the first option of a kind; None if there is none.

    An id that several options have is never chosen: the agent could read it as another option.
    """
    given = objects(options)
    counts = Counter(text(option.get("optionId")) for option in given)
    for option in given:
        option_id = option.get("optionId")
        if option.get("kind") == kind and isinstance(option_id, str) and counts[option_id] == 1:
            return {"outcome": {"outcome": "selected", "optionId": option_id}}
    return None

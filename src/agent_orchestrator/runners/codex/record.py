"""Codex's own record of a thread, the rollout: its place, and its entries as events. Shapes are those of codex 0.169.

======================================= ====================================================
entry                                   becomes
======================================= ====================================================
event_msg/user_message, UserMessage     ``user.message``
response_item/message of the assistant  ``agent.message``
response_item/reasoning                 ``agent.reasoning``
response_item/…_call, …_call_output     the events of a tool, a file change or a plan
event_msg/error, turn_aborted           ``run.error``
event_msg/token_count                   token counts of the whole thread
======================================= ====================================================

Any other entry is dropped: it repeats one of these, or is for codex alone.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.ports.runner import Conversation
from agent_orchestrator.runners import record
from agent_orchestrator.runners.codex.argv import is_thread_id
from agent_orchestrator.runners.codex.item_events import ItemReader
from agent_orchestrator.runners.codex.usage import counts, usage_between
from agent_orchestrator.runners.events import (
    AgentEvent,
    JsonObject,
    agent_event,
    require_list,
    require_object,
    text,
)

_ROLLOUTS: Final = "sessions/*/*/*/rollout-*.jsonl"
_EXIT_CODE: Final = re.compile(r"(?:Process exited with code|Exit code:) (-?\d{1,10})\b")
_OUTPUT: Final = "\nOutput:\n"
_PATCHED: Final = re.compile(r"^\*\*\* (Add|Update|Delete) File: (.+)$", re.MULTILINE)


def rollout_of(home: Path, thread_id: str) -> Path:
    """Return the record of a thread, relative to codex's home. Blocks.

    :raises AgentFailed: if there is none.
    """
    pattern = f"sessions/*/*/*/rollout-*-{thread_id}.jsonl"
    found = record.records(home, pattern) if is_thread_id(thread_id) else []
    if not found:
        raise AgentFailed("thread_missing", f"codex has no record of thread {thread_id} in {home}")
    return found[0]


def find(home: Path, thread_id: str | None, cwd: str) -> Conversation:
    """Return a thread of codex, or the latest of a directory. Blocks.

    :raises AgentFailed: if there is none.
    """
    if thread_id is None:
        path = record.latest_of(home, record.records(home, _ROLLOUTS), cwd, _directory_of)
        if path is None:
            raise AgentFailed("thread_missing", f"codex has no thread in {cwd}")
    else:
        path = rollout_of(home, thread_id)
    try:
        meta = _payload(record.first_entry(home, path))
        contexts = (e for e in record.last_entries(home, path) if e.get("type") == "turn_context")
        latest = _payload(next(contexts, {}))
    except OSError as error:
        raise AgentFailed("thread_missing", f"codex's record cannot be read: {error}") from None
    found_id, directory = text(meta.get("id")), text(latest.get("cwd") or meta.get("cwd"))
    if not is_thread_id(found_id) or thread_id not in (None, found_id):
        raise AgentFailed("thread_missing", f"{home / path} is not a record of codex")
    thread = Thread(found_id, {record.PLACE: 0})
    return Conversation(thread, directory or cwd, text(latest.get("model"))[:256] or None)


def _directory_of(home: Path, path: Path) -> str | None:
    meta = _payload(record.first_entry(home, path))
    # The source of a sub-agent's thread is an object.
    return text(meta.get("cwd")) if isinstance(meta.get("source"), str) else None


def _payload(entry: JsonObject) -> JsonObject:
    payload = entry.get("payload")
    return payload if isinstance(payload, Mapping) else {}


@define
class RolloutReader:
    """The state of the entries of a rollout.

    :param before: the thread's token counts before them.
    :param cwd: the directory that paths of patches are relative to.
    """

    before: Mapping[str, Any]
    cwd: str
    usage: Usage | None = field(default=None, init=False)
    _totals: Mapping[str, int] | None = field(default=None, init=False)
    _items: ItemReader = field(factory=ItemReader, init=False)
    _calls: dict[str, dict[str, Any]] = field(factory=dict, init=False)
    """The calls that have no output yet, as items of ``codex exec``."""

    @property
    def answer(self) -> str:
        return self._items.last_message or ""

    @property
    def state(self) -> Mapping[str, Any]:
        return {} if self._totals is None else {"usage": self._totals}

    def feed(self, entry: JsonObject) -> list[AgentEvent]:
        payload = _payload(entry)
        match entry.get("type"), payload.get("type"):
            case "event_msg", "user_message":
                return _said(text(payload.get("message")))
            case "event_msg", "item_completed":
                item = require_object(payload.get("item"))
                is_user = item.get("type") == "UserMessage"
                return _said(record.joined_texts(item.get("content"))) if is_user else []
            case "event_msg", "error":
                return [agent_event(EventType.RUN_ERROR, message=text(payload.get("message")))]
            case "event_msg", "turn_aborted":
                note = f"the turn was ended: {text(payload.get('reason')) or 'no reason'}"
                return [*self.finish(), agent_event(EventType.RUN_ERROR, message=note)]
            case "event_msg", "token_count" if isinstance(payload.get("info"), Mapping):
                total = require_object(payload["info"].get("total_token_usage"))
                self._totals = counts(total)
                self.usage = usage_between(self.before, self._totals)
            case "response_item", kind:
                return self._item(text(kind), payload)
        return []

    def finish(self) -> list[AgentEvent]:
        self._calls.clear()
        return self._items.tools.finish()

    def _item(self, kind: str, item: JsonObject) -> list[AgentEvent]:
        match kind:
            case "message" if item.get("role") == "assistant":
                said = {"type": "agent_message", "id": item.get("id")}
                return self._read(
                    "completed", {**said, "text": record.joined_texts(item.get("content"))}
                )
            case "reasoning":
                thought = {"type": "reasoning", "id": item.get("id")}
                summary = record.joined_texts(item.get("summary"))
                return self._read("completed", {**thought, "text": summary}) if summary else []
            case "web_search_call":
                action = item.get("action")
                query = action.get("query") if isinstance(action, Mapping) else None
                search = {"type": "web_search", "id": item.get("id"), "query": query}
                return self._read("completed", {**search, "action": action})
            case "function_call" | "custom_tool_call" | "local_shell_call":
                return self._call(item)
            case "function_call_output" | "custom_tool_call_output":
                return self._output(text(item.get("call_id")), item.get("output"))
        return []

    def _call(self, item: JsonObject) -> list[AgentEvent]:
        call_id, name = text(item.get("call_id")), text(item.get("name"))
        arguments = _arguments(item)
        if name == "update_plan":
            steps = [require_object(one) for one in require_list(arguments.get("plan"))]
            plan = [{"text": text(s.get("step")), "status": text(s.get("status"))} for s in steps]
            return self._items.plan(plan, {})
        if len(self._calls) >= _MAX_CALLS:
            del self._calls[next(iter(self._calls))]
        call = self._calls[call_id] = _as_item(item, name, arguments, self.cwd)
        return self._read("started", {**call, "id": call_id, "status": "in_progress"})

    def _output(self, call_id: str, output: Any) -> list[AgentEvent]:
        call = self._calls.pop(call_id, None)
        if call is None:
            return []
        said = output if isinstance(output, str) else record.joined_texts(output)
        found = _EXIT_CODE.search(said)
        code = int(found[1]) if found else 0
        said = said.partition(_OUTPUT)[2] if found and _OUTPUT in said else said
        status = {"status": "completed" if code == 0 else "failed"}
        more: dict[str, Any]
        match call["type"]:
            case "command_execution":
                more = {"aggregated_output": said, "exit_code": code if found else None}
            case "file_change":
                more = {"error": said} if code else {}
            case "mcp_tool_call":
                more = {"result": {"content": [{"type": "text", "text": said}]}}
            case _:
                more = {"content_items": [{"type": "inputText", "text": said}]}
        return self._read("completed", {**call, "id": call_id, **status, **more})

    def _read(self, phase: str, item: JsonObject) -> list[AgentEvent]:
        return self._items.read(phase, item) or []


_MAX_CALLS: Final = 10_000
"""Maximum number of calls without an output that are known."""


def _said(words: str) -> list[AgentEvent]:
    return [agent_event(EventType.USER_MESSAGE, text=words)] if words else []


def _arguments(item: JsonObject) -> dict[str, Any]:
    """Return the arguments of a call as an object."""
    if isinstance(action := item.get("action"), Mapping):
        return dict(action)
    given = item.get("arguments", item.get("input"))
    try:
        found = json.loads(given) if isinstance(given, str) and "arguments" in item else given
    except ValueError:
        found = given
    return found if isinstance(found, dict) else {"input": found}


def _as_item(item: JsonObject, name: str, arguments: JsonObject, cwd: str) -> dict[str, Any]:
    """Return a call as an item of ``codex exec``."""
    namespace = text(item.get("namespace"))
    command = arguments.get("cmd", arguments.get("command"))
    if namespace.startswith("mcp__"):
        server = namespace.removeprefix("mcp__")
        return {"type": "mcp_tool_call", "server": server, "tool": name, "arguments": arguments}
    if name == "apply_patch":
        return {"type": "file_change", "changes": _changes(text(arguments.get("input")), cwd)}
    if item.get("type") == "local_shell_call" or name in ("exec_command", "shell"):
        words = " ".join(map(text, command)) if isinstance(command, list) else text(command)
        return {"type": "command_execution", "command": words}
    return {"type": "dynamic_tool_call", "tool": name or "tool", "arguments": dict(arguments)}


def _changes(patch: str, cwd: str) -> list[dict[str, Any]]:
    """Return the changes of a patch for the tool ``apply_patch``."""
    _, *parts = _PATCHED.split(patch)
    changes = []
    for kind, path, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        lines = body.partition("*** End Patch")[0].strip("\n").splitlines(keepends=True)
        diff = (
            "".join(line.removeprefix("+") for line in lines) if kind == "Add" else "".join(lines)
        )
        change = {"path": str(PurePath(cwd, path)), "kind": kind.lower()}
        changes.append({**change, "diff": diff} if diff else change)
    return changes

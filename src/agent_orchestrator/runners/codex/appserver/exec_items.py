"""Converts the items of ``codex app-server`` to those of ``codex exec``, so that both are read
alike.

Codex 0.169 uses camel case here for field names and words (``inProgress``). Fields that exist only
here go to ``extra``. Two kinds are dropped: times, because events have them, and codex's analysis
of commands.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.runners.events import JsonObject, text

_TYPES: Final = {
    "agentMessage": "agent_message",
    "reasoning": "reasoning",
    "commandExecution": "command_execution",
    "fileChange": "file_change",
    "mcpToolCall": "mcp_tool_call",
    "dynamicToolCall": "dynamic_tool_call",
    "collabAgentToolCall": "collab_tool_call",
    "webSearch": "web_search",
}

_BOOKKEEPING: Final = frozenset(
    {"startedAtMs", "completedAtMs", "processId", "source", "commandActions", "summary", "content"}
)

_CAMEL_CASE: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")


def exec_item(item: JsonObject) -> dict[str, Any] | None:
    """Return the item in exec's format; None for a type that exec does not have."""
    item_type = _TYPES.get(text(item.get("type")))
    if item_type is None:
        return None
    found = {
        snake(name): value
        for name, value in item.items()
        if value is not None and name not in _BOOKKEEPING
    }
    found["type"] = item_type
    if isinstance(status := item.get("status"), str):
        found["status"] = snake(status)
    match item_type:
        case "reasoning":
            found["text"] = _reasoning(item)
        case "file_change":
            found["changes"] = _changes(item.get("changes"))
        case "collab_tool_call":
            found["tool"] = snake(text(item.get("tool")))
        case "mcp_tool_call" if isinstance(result := item.get("result"), Mapping):
            found["result"] = {snake(name): value for name, value in result.items()}
    return found


def snake(name: str) -> str:
    """Return a name in camel case as words joined by underscores."""
    return _CAMEL_CASE.sub(lambda hump: f"_{hump[1].lower()}", name)


def _reasoning(item: JsonObject) -> str:
    for name in ("summary", "content"):
        parts = item.get(name)
        if isinstance(parts, list) and parts:
            return "\n\n".join(text(part) for part in parts)
    return ""


def _changes(changes: Any) -> Any:
    """Return file changes with their kind as a word."""
    if not isinstance(changes, list):
        return changes
    return [_change(change) if isinstance(change, Mapping) else change for change in changes]


def _change(change: JsonObject) -> dict[str, Any]:
    kind = change.get("kind")
    found = dict(change)
    if isinstance(kind, Mapping):
        found["kind"] = kind.get("type")
        rest = {snake(name): value for name, value in kind.items() if value is not None}
        found |= {name: value for name, value in rest.items() if name != "type"}
    return found

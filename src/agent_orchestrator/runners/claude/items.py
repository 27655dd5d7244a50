"""The tools of Claude Code as items: their input and outcome. Names and shapes are those of 2.1.332."""

import re
from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.runners.events import JsonObject, text

AGENT_TOOLS: Final = frozenset({"Task", "Agent"})
COMMAND_TOOL: Final = "Bash"

_EXIT_CODE: Final = re.compile(r"Exit code (\d{1,3})\b")


def call(name: str, tool_input: JsonObject) -> dict[str, Any]:
    """Return kind, name and input of a call."""
    server, tool = mcp_names(name)
    if server:
        return {"kind": "mcp", "name": f"{server}.{tool}", "input": tool_input}
    match name:
        case "Bash":
            return {"kind": "command", "name": "shell", "input": tool_input}
        case "WebSearch":
            return {"kind": "web_search", "name": "web_search", "input": tool_input}
    kind = "agent" if name in AGENT_TOOLS else "function"
    return {"kind": kind, "name": name, "input": tool_input}


def mcp_names(name: str) -> tuple[str, str]:
    """Return server and tool of a tool of an MCP server; two empty texts for another tool."""
    if not name.startswith("mcp__"):
        return "", ""
    server, _, tool = name.removeprefix("mcp__").partition("__")
    return server, tool


def outcome(kind: str, block: JsonObject, status: str) -> dict[str, Any]:
    """Return the outcome of a call, from the ``tool_result`` of the model's next request."""
    output = result_text(block.get("content"))
    data: dict[str, Any] = {"status": status, "output": output}
    if kind == "command" and status == "failed" and (found := _EXIT_CODE.match(output)):
        data["exit_code"] = int(found[1])
    elif kind == "command" and status == "completed":
        data["exit_code"] = 0
    parts = block.get("content")
    if isinstance(parts, list) and not all(_is_text(part) for part in parts):
        data["result"] = {"content": parts}
    return data


def result_text(content: Any) -> str:
    """Return the text of a ``tool_result``."""
    if isinstance(content, list):
        return "\n".join(text(part.get("text")) for part in content if _is_text(part))
    return text(content)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text"


def status_of(block: JsonObject, meta: JsonObject) -> str:
    """Return how a call ended.

    :param meta: its entry in ``tool_result_meta``.
    """
    decision = meta.get("permission_decision")
    if isinstance(decision, Mapping) and decision.get("decision") == "reject":
        return "declined"
    return "failed" if block.get("is_error") is True else "completed"

"""The tools of Claude Code as items: their input and outcome. Names and shapes are those of 2.1.332."""

import re
from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.runners.events import JsonObject, text
from agent_orchestrator.runners.numbers import whole

FILE_TOOLS: Final = frozenset({"Edit", "MultiEdit", "NotebookEdit", "Write"})
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


def changes(name: str, tool_input: JsonObject, result: Any = None) -> list[dict[str, Any]]:
    """Return the changes of a file tool.

    :param result: its ``tool_use_result``, once it has run.
    """
    path = text(tool_input.get("file_path") or tool_input.get("notebook_path"))
    found = result if isinstance(result, Mapping) else {}
    patch = found.get("structuredPatch")
    is_new = found.get("type") == "create" if "type" in found else False
    change = {"path": text(found.get("filePath")) or path, "kind": "add" if is_new else "update"}
    if is_new:
        return [{**change, "diff": text(found.get("content"))}]
    if isinstance(patch, list) and patch:
        return [{**change, "diff": _unified(patch)}]
    if diff := _proposed(name, tool_input):
        change["diff"] = diff
    return [change]


_PLACES: Final = ("oldStart", "oldLines", "newStart", "newLines")


def _unified(patch: list[Any]) -> str:
    hunks = [one for one in patch if isinstance(one, Mapping)]
    lines: list[str] = []
    for one in hunks:
        places = [whole(one.get(name)) or 0 for name in _PLACES]
        lines.append("@@ -{},{} +{},{} @@".format(*places))
        found = one.get("lines")
        lines += [text(line) for line in found] if isinstance(found, list) else []
    return "".join(f"{line}\n" for line in lines)


def _proposed(name: str, tool_input: JsonObject) -> str:
    """Return what a file tool was to do, as a diff; for a whole file its text."""
    if name == "Write":
        return text(tool_input.get("content"))
    edits = tool_input.get("edits") if name == "MultiEdit" else [tool_input]
    parts = []
    for one in edits if isinstance(edits, list) else ():
        if isinstance(one, Mapping) and ("old_string" in one or "new_string" in one):
            parts += [
                "@@\n",
                _marked("-", one.get("old_string")),
                _marked("+", one.get("new_string")),
            ]
    return "".join(parts)


def _marked(sign: str, said: Any) -> str:
    """Return lines with a sign before each."""
    lines = text(said).removesuffix("\n").replace("\n", f"\n{sign}")
    return f"{sign}{lines}\n" if said else ""

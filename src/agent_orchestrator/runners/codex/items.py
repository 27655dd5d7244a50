"""Converts items of ``codex exec --json`` to the data of tool events. Shapes are those of codex 0.169.
Fields without a place in an event's data go to ``extra``.
"""

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen

from agent_orchestrator.runners.events import JsonObject, require_list, require_object, text
from agent_orchestrator.runners.numbers import exit_code

_STATUSES: Final = ("completed", "failed", "declined")


def _command(item: JsonObject) -> dict[str, Any]:
    return {"kind": "command", "name": "shell", "input": {"command": text(item.get("command"))}}


def _command_result(item: JsonObject) -> dict[str, Any]:
    data: dict[str, Any] = {"output": text(item.get("aggregated_output"))}
    if (code := exit_code(item.get("exit_code"))) is not None:
        data["exit_code"] = code
    return data | unknown_fields(item, "command", "aggregated_output", "exit_code")


def _mcp(item: JsonObject) -> dict[str, Any]:
    arguments = item.get("arguments")
    return {
        "kind": "mcp",
        "name": f"{text(item.get('server'))}.{text(item.get('tool'))}",
        "input": arguments if isinstance(arguments, dict) else {"arguments": arguments},
    }


def _mcp_result(item: JsonObject) -> dict[str, Any]:
    """Return the result of an MCP tool call. ``result`` is set if it has more than the text in ``output``."""
    result, error = item.get("result"), item.get("error")
    content = require_list(result.get("content")) if isinstance(result, dict) else []
    texts = [text(require_object(part).get("text")) for part in content if _is_text(part)]
    data: dict[str, Any] = {"output": "\n".join(texts)}
    if error is not None:
        data["error"] = text(error.get("message") if isinstance(error, dict) else error)
    if isinstance(result, dict):
        more = {name for name, value in result.items() if name != "content" and value is not None}
        if more or len(texts) < len(content):
            data["result"] = result
    elif result is not None:
        data["result"] = result
    return data | unknown_fields(item, "server", "tool", "arguments", "result", "error")


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and set(part) <= {"type", "text"} and part.get("type") == "text"


def _search(item: JsonObject) -> dict[str, Any]:
    # The line has the key "id" twice, item_N and ws_…; the parser keeps the second, in both lines.
    query = {"query": text(item.get("query")), "action": item.get("action")}
    return {"kind": "web_search", "name": "web_search", "input": query}


def _search_result(item: JsonObject) -> dict[str, Any]:
    return {"output": "", **unknown_fields(item, "query", "action")}


def _agent(item: JsonObject) -> dict[str, Any]:
    names = ("prompt", "receiver_thread_ids", "sender_thread_id")
    tool_input = {name: item.get(name) for name in names}
    return {"kind": "agent", "name": text(item.get("tool")), "input": tool_input}


def _agent_result(item: JsonObject) -> dict[str, Any]:
    states = item.get("agents_states")
    messages = [
        text(require_object(state).get("message"))
        for state in (states.values() if isinstance(states, dict) else ())
    ]
    known = ("tool", "prompt", "receiver_thread_ids", "sender_thread_id", "agents_states")
    return {
        "output": "\n".join(message for message in messages if message),
        "result": {"agents_states": states},
        **unknown_fields(item, *known),
    }


def _dynamic(item: JsonObject) -> dict[str, Any]:
    arguments = item.get("arguments")
    return {
        "kind": "function",
        "name": text(item.get("tool")),
        "input": arguments if isinstance(arguments, dict) else {"arguments": arguments},
    }


def _dynamic_result(item: JsonObject) -> dict[str, Any]:
    content = item.get("content_items")
    parts = [require_object(part) for part in content] if isinstance(content, list) else []
    texts = [text(part["text"]) for part in parts if isinstance(part.get("text"), str)]
    data: dict[str, Any] = {"output": "\n".join(texts)}
    if len(texts) < len(parts):
        data["result"] = {"content_items": parts}
    return data | unknown_fields(item, "tool", "arguments", "content_items", "success")


@frozen
class ItemMapping:
    """The functions for one type of item: for its start and for its end."""

    call: Callable[[JsonObject], dict[str, Any]]
    outcome: Callable[[JsonObject], dict[str, Any]]


ITEM_MAPPINGS: Final = {
    "command_execution": ItemMapping(_command, _command_result),
    "mcp_tool_call": ItemMapping(_mcp, _mcp_result),
    "web_search": ItemMapping(_search, _search_result),
    "collab_tool_call": ItemMapping(_agent, _agent_result),
    "dynamic_tool_call": ItemMapping(_dynamic, _dynamic_result),
}


def unknown_fields(item: JsonObject, *known: str) -> dict[str, Any]:
    """Return the fields of an item other than the known ones, as ``extra``."""
    extra = {name: value for name, value in item.items() if name not in {"id", "type", *known}}
    if extra.get("status") in _STATUSES:
        del extra["status"]
    return {"extra": extra} if extra else {}


def item_id(item: JsonObject) -> str:
    """Return the id that its events share; unique within one process of codex."""
    return text(item.get("id"))


def status_of(item: JsonObject) -> str:
    """Return the status of a tool. An item without a status has completed. An unknown status means failed."""
    status = item.get("status", "completed")
    return status if status in _STATUSES else "failed"

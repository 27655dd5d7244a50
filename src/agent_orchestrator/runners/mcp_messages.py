"""The orchestration tools as the messages of an MCP server, independent of what carries them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.ports.runner import Toolbox, ToolSpec
from agent_orchestrator.runners.events import JsonObject, text

TOOL_SERVER: Final = "agent_orchestrator"
"""The name of the server for agents."""

CALL: Final = "tools/call"
CANCEL: Final = "notifications/cancelled"

_VERSION: Final = "2025-06-18"
"""The MCP version, if the agent names none."""

_METHOD_NOT_FOUND: Final = -32601


def reply(message: JsonObject, specs: Sequence[ToolSpec]) -> JsonObject:
    """Return the response to a message other than a call."""
    result: JsonObject | None = None
    match message.get("method"):
        case "initialize":
            params = message.get("params")
            asked = params.get("protocolVersion") if isinstance(params, Mapping) else None
            result = {
                "protocolVersion": asked or _VERSION,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": TOOL_SERVER, "version": "1"},
            }
        case "tools/list":
            result = {"tools": [_tool(spec) for spec in specs]}
        case "ping":
            result = {}
    if result is None and "id" in message:
        return failure(message, _METHOD_NOT_FOUND, f"no method {message.get('method')}")
    return _response(message, result=result or {})


def failure(message: JsonObject, code: int, reason: str) -> JsonObject:
    """Return a response with an error of JSON-RPC."""
    return _response(message, error={"code": code, "message": reason})


def canceled_call(message: JsonObject) -> str:
    """Return the id of the call that a message cancels."""
    params = message.get("params")
    return str(params.get("requestId")) if isinstance(params, Mapping) else ""


async def call_tool(
    tools: Toolbox, message: JsonObject, *, is_structured: bool = False
) -> JsonObject:
    """Execute a call, and return the response to its message.

    :param is_structured: whether the response has the answer as JSON besides its text. Some agents show a model the
        JSON if there is some, and otherwise the list of contents, with the text in quotes.
    """
    params = message.get("params")
    params = params if isinstance(params, Mapping) else {}
    given = params.get("arguments")
    result = await tools.call(text(params.get("name")), {} if given is None else given)
    content = [{"type": "text", "text": result.text}]
    answer: dict[str, Any] = {"content": content, "isError": result.is_error}
    if is_structured:
        answer["structuredContent"] = dict(result.content)
    return _response(message, result=answer)


def _response(message: JsonObject, **outcome: Any) -> JsonObject:
    return {"jsonrpc": "2.0", "id": message.get("id", 0), **outcome}


def _tool(spec: ToolSpec) -> JsonObject:
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "inputSchema": spec.input_schema,
        "annotations": {"title": spec.title, "readOnlyHint": spec.read_only},
    }

"""The orchestration tools as an MCP server inside this process: no network, and no token.

Claude Code 2.1.332 sends the messages of an MCP server of the type ``sdk`` to the client that started it, as
requests ``mcp_message``. So a call reaches the run that works in the process, also without a daemon.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.ports.runner import Toolbox, ToolSpec
from agent_orchestrator.runners.claude.launch import SERVER
from agent_orchestrator.runners.events import JsonObject, text

METHOD: Final = "mcp_message"
CALL: Final = "tools/call"
CANCEL: Final = "notifications/cancelled"

_VERSION: Final = "2025-06-18"
"""The MCP version, if Claude Code names none."""

_METHOD_NOT_FOUND: Final = -32601


def message_of(request: JsonObject) -> JsonObject:
    """Return the MCP message of a request."""
    message = request.get("message")
    return message if isinstance(message, Mapping) else {}


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
                "serverInfo": {"name": SERVER, "version": "1"},
            }
        case "tools/list":
            result = {"tools": [_tool(spec) for spec in specs]}
        case "ping":
            result = {}
    if result is None and "id" in message:
        error = {"code": _METHOD_NOT_FOUND, "message": f"no method {message.get('method')}"}
        return _wrapped(message, error=error)
    return _wrapped(message, result=result or {})


def canceled_call(message: JsonObject) -> str:
    """Return the id of the call that a message cancels."""
    params = message.get("params")
    return str(params.get("requestId")) if isinstance(params, Mapping) else ""


async def call_tool(tools: Toolbox, message: JsonObject) -> JsonObject:
    """Execute a call, and return the response to its message."""
    params = message.get("params")
    params = params if isinstance(params, Mapping) else {}
    given = params.get("arguments")
    result = await tools.call(text(params.get("name")), {} if given is None else given)
    content = [{"type": "text", "text": result.text}]
    return _wrapped(message, result={"content": content, "isError": result.is_error})


def _wrapped(message: JsonObject, **outcome: Any) -> JsonObject:
    return {"mcp_response": {"jsonrpc": "2.0", "id": message.get("id", 0), **outcome}}


def _tool(spec: ToolSpec) -> JsonObject:
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "inputSchema": spec.input_schema,
        "annotations": {"title": spec.title, "readOnlyHint": spec.read_only},
    }

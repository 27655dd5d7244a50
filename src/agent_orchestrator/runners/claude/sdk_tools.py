"""The orchestration tools as an MCP server inside this process: no network, and no token.

Claude Code 2.1.332 sends the messages of an MCP server of the type ``sdk`` to the client that started it, as
requests ``mcp_message``. So a call reaches the run that works in the process, also without a daemon.
"""

from collections.abc import Mapping
from typing import Final

from agent_orchestrator.runners.events import JsonObject

METHOD: Final = "mcp_message"


def message_of(request: JsonObject) -> JsonObject:
    """Return the MCP message of a request."""
    message = request.get("message")
    return message if isinstance(message, Mapping) else {}


def answer(response: JsonObject) -> JsonObject:
    """Return the answer to a request, with the response to its MCP message."""
    return {"mcp_response": response}

"""How an agent reaches its tools."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from attrs import field, frozen

from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER
from agent_orchestrator.runners.tool_server import tool_server

_HOLD_S: Final = 50.0
"""Default seconds to hold a call. MCP clients in TypeScript end a request after 60 s."""


@frozen
class ToolAccess:
    """The MCP server with a run's tools.

    :param token: of this run alone. A session that was opened with another one cannot use the tools.
    :param server: the server, as a member of ``mcpServers``.
    :param is_used: returns whether the agent has connected.
    """

    token: str = field(repr=False)
    server: Mapping[str, Any] = field(repr=False)
    is_used: Callable[[], bool]


@asynccontextmanager
async def tool_access(context: RunContext) -> AsyncIterator[ToolAccess]:
    """Give a run's tools to its agent while the scope is open: at the daemon's address, or without a daemon by a program.

    :raises AgentFailed: if this machine has no free port.
    """
    url, token = context.env.get("AGENTCTL_URL"), context.env.get("AGENTCTL_AUTH_TOKEN")
    if url and token:
        headers = _pairs({"Authorization": f"Bearer {token}"})
        entry = {"type": "http", "name": TOOL_SERVER, "url": f"{url}/mcp", "headers": headers}
        yield ToolAccess(token, entry, lambda: context.has_used_token)
        return
    async with tool_server(context.tools.holding(_HOLD_S)) as server:
        program, *arguments = server.argv
        entry = {"name": TOOL_SERVER, "command": program, "args": arguments}
        entry["env"] = _pairs(server.env)
        yield ToolAccess(server.key, entry, lambda: server.is_used)


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]

"""The MCP server on standard input and output."""

from mcp.server.stdio import stdio_server

from agent_orchestrator.mcp.server import make_server
from agent_orchestrator.ports.runner import Toolbox


async def serve_stdio(tools: Toolbox, version: str) -> None:
    """Serve one client until it closes standard input."""
    server = make_server(version, tools)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

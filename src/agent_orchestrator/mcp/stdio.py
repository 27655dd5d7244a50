"""The MCP server on standard input and output."""

from mcp.server.stdio import stdio_server

from agent_orchestrator.mcp.server import make_server
from agent_orchestrator.mcp.tools import Agent


async def serve_stdio(agent: Agent, version: str) -> None:
    """Serve one client until it closes standard input."""
    server = make_server(version, agent)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())

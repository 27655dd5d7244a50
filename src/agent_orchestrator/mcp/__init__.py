"""The orchestration tools for agents, as an MCP server.

The modules need the ``mcp`` package. Its import takes half a second, so import them only when an
agent connects, in a worker thread.
"""

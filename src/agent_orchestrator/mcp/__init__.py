"""The orchestration tools for agents, as an MCP server on top of a client.

:mod:`.tools` implements the tools, independently of MCP. The other modules need the ``mcp`` package.
Its import takes half a second, so import them only when an agent connects, in a worker thread.
"""

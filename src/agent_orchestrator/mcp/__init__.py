"""The orchestration tools for agents, as an MCP server over a client.

:mod:`.tools` says what there is, and knows nothing of MCP. The other modules stand on the ``mcp``
package, whose import takes half a second: import them when an agent comes, off the event loop.
"""

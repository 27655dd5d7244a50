"""The orchestration tools of agents: values and functions, independent of any protocol.

:class:`~.toolbox.AgentTools` is the implementation of :class:`agent_orchestrator.ports.runner.Toolbox`. Adapters
offer it to a model: the MCP server (:mod:`agent_orchestrator.mcp`), runners, and others.
"""

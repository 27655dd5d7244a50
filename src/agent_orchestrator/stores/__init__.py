"""Where everything is kept: implementations of :class:`agent_orchestrator.ports.Store`."""

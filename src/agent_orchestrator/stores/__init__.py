"""Implementations of :class:`agent_orchestrator.ports.Store`."""

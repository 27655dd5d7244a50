"""Implementations of :class:`agent_orchestrator.ports.store.Store`."""

"""The check of how an agent starts, for authors of agents that speak ACP."""

from agent_orchestrator.runners.acp.check import Finding, Report, check_agent
from agent_orchestrator.runners.acp.recording import write_start

__all__ = ["Finding", "Report", "check_agent", "write_start"]

"""Any program as an agent, described by the configuration alone."""

from agent_orchestrator.runners.command.mapping import FailRule, Rule, UsagePaths
from agent_orchestrator.runners.command.runner import CommandRunner

__all__ = ["CommandRunner", "FailRule", "Rule", "UsagePaths"]

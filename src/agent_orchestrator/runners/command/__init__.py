"""A runner for any program, which the configuration describes."""

from agent_orchestrator.runners.command.mapping import FailRule, Rule, UsagePaths
from agent_orchestrator.runners.command.runner import CommandRunner

__all__ = ["CommandRunner", "FailRule", "Rule", "UsagePaths"]

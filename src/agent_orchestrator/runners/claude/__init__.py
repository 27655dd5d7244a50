"""The runner of Claude Code."""

from agent_orchestrator.runners.claude.runner import ClaudeRunner

__all__ = ["ClaudeRunner"]

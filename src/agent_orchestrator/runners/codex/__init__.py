"""Codex as an agent: ``codex exec``, one process for each run."""

from agent_orchestrator.runners.codex.runner import CodexExecRunner

__all__ = ["CodexExecRunner"]

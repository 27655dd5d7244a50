"""Codex as an agent: ``codex app-server``, warm processes that serve many sessions."""

from agent_orchestrator.runners.codex.appserver.runner import CodexAppServerRunner

__all__ = ["CodexAppServerRunner"]

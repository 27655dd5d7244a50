"""The orchestration tools, given to codex as an MCP server."""

from collections.abc import Mapping
from typing import Any, Final

HOLD_S: Final = 86_400
"""Maximum seconds to hold a call of an orchestration tool. A child may work for hours."""

_TOOL_TIMEOUT_S: Final = HOLD_S + 3_600
"""Codex's own time limit for such a call. Its default in codex 0.169 is 300 s, and keepalives do not extend
it."""

_STARTUP_TIMEOUT_S: Final = 60
"""Seconds that codex waits for the MCP server to start. The daemon imports it at the first call."""


def tools_url(env: Mapping[str, str]) -> str | None:
    """Return the URL of the daemon that serves the tools to a run; None without a daemon."""
    return env.get("AGENTCTL_URL") if env.get("AGENTCTL_AUTH_TOKEN") else None


def tools_config(url: str, token: str | None = None) -> dict[str, Any]:
    """Return the configuration that gives codex the orchestration tools of a daemon.

    In codex 0.169, an unreachable server that is not ``required`` is silently left out. ``exec``
    cannot ask, so it refuses every tool that is not approved beforehand. It accepts no
    ``bearer_token``.

    :param url: the daemon's URL.
    :param token: the run's token, if others cannot read the configuration; None if it comes from
        the environment.
    """
    server = "mcp_servers.agent_orchestrator"
    way_in: dict[str, Any] = {f"{server}.bearer_token_env_var": "AGENTCTL_AUTH_TOKEN"}
    if token is not None:
        way_in = {f"{server}.http_headers": {"Authorization": f"Bearer {token}"}}
    return {
        f"{server}.url": f"{url}/mcp?hold_s={HOLD_S}",
        **way_in,
        f"{server}.required": True,
        f"{server}.default_tools_approval_mode": "approve",
        f"{server}.tool_timeout_sec": _TOOL_TIMEOUT_S,
        f"{server}.startup_timeout_sec": _STARTUP_TIMEOUT_S,
    }

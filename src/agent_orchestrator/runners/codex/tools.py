"""The orchestration tools, given to codex as an MCP server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from attrs import field, frozen

from agent_orchestrator.ports.runner import RunContext
from agent_orchestrator.runners.mcp_messages import TOOL_SERVER
from agent_orchestrator.runners.tool_server import tool_server

HOLD_S: Final = 86_400
"""Maximum seconds to hold a call of an orchestration tool. A child may work for hours."""

_TOOL_TIMEOUT_S: Final = HOLD_S + 3_600
"""Codex's own time limit for such a call. Its default in codex 0.169 is 300 s, and keepalives do not extend
it."""

_STARTUP_TIMEOUT_S: Final = 60
"""Seconds that codex waits for the MCP server to start. The daemon imports it at the first call."""


@frozen
class ToolOptions:
    """What codex needs for the orchestration tools.

    :param config: overrides of its configuration, by dotted key.
    :param env: variables that its process needs.
    :param url: the daemon's URL, if that serves them.
    """

    config: Mapping[str, Any] = field(factory=dict, repr=False)
    env: Mapping[str, str] = field(factory=dict, repr=False)
    url: str | None = None


@asynccontextmanager
async def served_tools(context: RunContext, *, is_private: bool) -> AsyncIterator[ToolOptions]:
    """Serve a run's tools while the scope is open, if no daemon does.

    :param is_private: whether nobody else can read the configuration. It then contains what the server asks for.
        Otherwise that comes from the environment.
    :raises AgentFailed: if this machine has no free port.
    """
    token = context.env.get("AGENTCTL_AUTH_TOKEN")
    if token and (url := context.env.get("AGENTCTL_URL")):
        yield ToolOptions(tools_config(url, token if is_private else None), url=url)
        return
    async with tool_server(context.tools) as server:
        program, *arguments = server.argv
        # Codex 0.169 gives the program only the variables that are named.
        env = {"env": dict(server.env)} if is_private else {"env_vars": list(server.env)}
        config = _config({"command": program, "args": arguments, **env})
        yield ToolOptions(config, {} if is_private else server.env)


def tools_config(url: str, token: str | None = None) -> dict[str, Any]:
    """Return the configuration that gives codex the orchestration tools of a daemon.

    In codex 0.169, an unreachable server that is not ``required`` is silently left out. ``exec``
    cannot ask, so it refuses every tool that is not approved beforehand. It accepts no
    ``bearer_token``.

    :param url: the daemon's URL.
    :param token: the run's token, if others cannot read the configuration; None if it comes from
        the environment.
    """
    access: dict[str, Any] = {"bearer_token_env_var": "AGENTCTL_AUTH_TOKEN"}
    if token is not None:
        access = {"http_headers": {"Authorization": f"Bearer {token}"}}
    return _config({"url": f"{url}/mcp?hold_s={HOLD_S}", **access})


def _config(access: Mapping[str, Any]) -> dict[str, Any]:
    server: dict[str, Any] = {
        **access,
        "required": True,
        "default_tools_approval_mode": "approve",
        "tool_timeout_sec": _TOOL_TIMEOUT_S,
        "startup_timeout_sec": _STARTUP_TIMEOUT_S,
    }
    return {f"mcp_servers.{TOOL_SERVER}.{name}": value for name, value in server.items()}

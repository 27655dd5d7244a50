"""Agents that reach the daemon without a proxy."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_PROXIES: Final = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_EXCEPTIONS: Final = ("NO_PROXY", "no_proxy")


def without_proxy_for(env: Mapping[str, str], url: str) -> dict[str, str]:
    """Return an environment without a proxy for the daemon's address.

    Some agents send requests to an MCP server, even on loopback, through the environment's proxy.
    The proxy would get the run's token, and the request would fail.
    """
    host = urlsplit(url).hostname or ""
    if not any(env.get(name) for name in _PROXIES):
        return dict(env)
    known = next((env[name] for name in _EXCEPTIONS if env.get(name)), "")
    exceptions = f"{known},{host}" if known else host
    return {**env, **dict.fromkeys(_EXCEPTIONS, exceptions)}

"""Global settings. Options override environment variables, then the endpoint file, then the defaults."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from attrs import field, frozen

DEFAULT_URL: Final = "http://127.0.0.1:8765"
URL_VARIABLE: Final = "AGENTCTL_URL"
CA_VARIABLE: Final = "AGENTCTL_CA_FILE"
TOKEN_VARIABLE: Final = "AGENTCTL_AUTH_TOKEN"  # noqa: S105 - the name of a variable

Format = Literal["text", "json"]


class InvalidSetting(ValueError):
    """A setting is invalid. The message names it and a valid value."""


@frozen
class CallSettings:
    """The settings of one invocation.

    :param token: the bearer token; None if neither the option nor the variable is set.
    :param ca_file: a file of trusted certificates; None for the system's.
    :param field: the path of the value to print, separated by dots.
    """

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    format: Format = "text"
    field: str | None = None
    wide: bool = False

    @property
    def structured(self) -> bool:
        """True if the output is for a program."""
        return self.format == "json" or self.field is not None

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_local(self) -> bool:
        """True if the daemon is on this machine, so that paths have the same meaning for it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def resolve(
    options: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    default_format: Format = "text",
) -> CallSettings:
    """Return the settings according to the options and the environment.

    :param default_format: the output format if none is given.
    :raises InvalidSetting: if the URL or the token is invalid, or the URL is ambiguous.
    """
    environ = os.environ if environ is None else environ
    url = options.get("url") or environ.get(URL_VARIABLE) or _found_url(environ)
    if "://" not in url:
        url = f"http://{url}"
    source = "--url" if options.get("url") else URL_VARIABLE
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidSetting(f"{source} must be like {DEFAULT_URL}, but is {url!r}")
    token = options.get("auth_token") or environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise InvalidSetting("a token must have only printable ASCII characters")
    return CallSettings(
        url=url.rstrip("/"),
        token=token,
        ca_file=options.get("ca_file") or environ.get(CA_VARIABLE) or None,
        format=options.get("format") or default_format,
        field=options.get("field"),
        wide=bool(options.get("wide")),
    )


def _found_url(environ: Mapping[str, str]) -> str:
    """Return the URL of the user's running daemon; the default URL if none is running.

    If several are running, it is the one started in this directory or the nearest parent, else the
    one at the default URL.

    :raises InvalidSetting: if several are running and none of these rules applies.
    """
    from agent_orchestrator.endpoints import endpoint_for, running_endpoints
    from agent_orchestrator.user_state import user_state

    endpoints = running_endpoints(user_state(environ))
    try:
        chosen = endpoint_for(endpoints, Path.cwd())
    except FileNotFoundError:  # the current directory was removed
        chosen = endpoint_for(endpoints, Path("/"))
    if chosen is not None:
        return chosen.url
    if not endpoints or any(endpoint.url == DEFAULT_URL for endpoint in endpoints):
        return DEFAULT_URL
    where = ", ".join(f"{endpoint.url} ({endpoint.directory})" for endpoint in endpoints)
    raise InvalidSetting(
        f"several daemons are running: choose one with --url or {URL_VARIABLE}: {where}"
    )

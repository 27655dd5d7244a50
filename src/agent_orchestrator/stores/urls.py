"""URLs of stores, without the secrets in them."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from agent_orchestrator.domain.errors import ConfigError

_SECRET_PARAMETERS: Final = frozenset(
    {"password", "passfile", "sslpassword", "oauth_client_secret"}
)


_SHOWN_PARAMETERS: Final = frozenset({"host", "port", "dbname", "user", "service"})
"""The parameters that say which database it is."""


def is_url(location: str) -> bool:
    """Return whether the location of a store is a URL, not a path."""
    return "://" in location


def check_userinfo(url: str) -> None:
    """Check that the user and password of a URL are escaped.

    What is not escaped would be taken for a part of the address, and be shown in errors.

    :raises ConfigError: if they are not.
    """
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if url.count("@") > authority.count("@") or authority.count("@") > 1:
        raise ConfigError(
            "store: escape the characters @ / ? # in the URL's user, password and parameters: write @ as %40,"
            " / as %2F, ? as %3F, # as %23"
        )


def secrets_of(url: str) -> tuple[str, ...]:
    """Return the texts in a URL that must not be shown, as they are written and decoded."""
    try:
        return tuple(dict.fromkeys(form for secret in _secrets(url) for form in _forms(secret)))
    except ValueError:
        return (url,)


def without_secrets(url: str) -> str:
    """Return what a URL says about the place of a database, without its passwords."""
    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        kept = [pair for pair in parse_qsl(parts.query) if pair[0] in _SHOWN_PARAMETERS]
    except ValueError:
        return f"{url.partition('://')[0]}://…"
    netloc = f"{user.partition(':')[0]}{at}{host}"
    query = f"?{urlencode(kept)}" if kept else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


def _secrets(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    yield user.partition(":")[2]
    for name, value in parse_qsl(parts.query):
        if name in _SECRET_PARAMETERS:
            yield value


def _forms(secret: str) -> Iterator[str]:
    if secret:
        yield from (secret, unquote(secret), quote(unquote(secret), safe=""))

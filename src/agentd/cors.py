"""CORS (the Fetch standard's): what pages of listed origins may read and send, and no others.

Without listed origins there is not one of its headers. Cookies are never involved: a page sends its
token itself, so that it can do nothing but what whoever gave it the token lets it.
"""

from collections.abc import Iterable
from typing import Final

from quart import Response
from werkzeug.datastructures import Headers

_ALLOWED: Final = {
    "Access-Control-Allow-Methods": "GET, PATCH, POST, PUT",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Mcp-Protocol-Version"
    ),
    "Access-Control-Max-Age": "600",
}

_EXPOSED: Final = "Idempotent-Replayed, Log-Epoch, Retry-After, WWW-Authenticate"

_CORS_HEADERS: Final = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary")


def is_preflight(method: str, headers: Headers) -> bool:
    """Tell whether a browser asks if a page may send what it wants to. It asks without a token."""
    return method == "OPTIONS" and "Access-Control-Request-Method" in headers


def preflight(asked: Headers) -> Response:
    """Return the answer for a page that may; the same for every path, there or not."""
    response = Response(b"", 204, _ALLOWED)
    del response.headers["Content-Type"], response.headers["Content-Length"]
    if asked.get("Access-Control-Request-Private-Network") == "true":
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


def add_cors_headers(response: Response, origins: list[str], listed: frozenset[str]) -> None:
    """Let a page read an answer, if its origin is listed."""
    if len(origins) == 1 and origins[0].lower() in listed:
        values = (origins[0], _EXPOSED, "Origin")
        response.headers.update(zip(_CORS_HEADERS, values, strict=True))


def cors_headers(response: Response) -> Iterable[tuple[str, str]]:
    """Return the headers that :func:`add_cors_headers` has set."""
    return [(name, response.headers[name]) for name in _CORS_HEADERS if name in response.headers]

"""CORS headers (Fetch standard) for pages of the allowed origins.

Without allowed origins no CORS header is sent. Cookies are not used: a page sends its token itself,
so it has exactly the access of that token.
"""

from collections.abc import Iterable
from typing import Final

from quart import Response
from werkzeug.datastructures import Headers

_ALLOWED: Final = {
    "Access-Control-Allow-Methods": "DELETE, GET, PATCH, POST, PUT",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Mcp-Protocol-Version"
    ),
    "Access-Control-Max-Age": "600",
}

_EXPOSED: Final = "Idempotent-Replayed, Log-Epoch, Retry-After, WWW-Authenticate"

_CORS_HEADERS: Final = ("Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Vary")


def is_preflight(method: str, headers: Headers) -> bool:
    """Return whether a request is a CORS preflight. Browsers send it without a token."""
    return method == "OPTIONS" and "Access-Control-Request-Method" in headers


def preflight(request_headers: Headers) -> Response:
    """Return the answer that allows a page's request. It is the same for every path, even unknown ones."""
    response = Response(b"", 204, _ALLOWED)
    del response.headers["Content-Type"], response.headers["Content-Length"]
    if request_headers.get("Access-Control-Request-Private-Network") == "true":
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


def add_cors_headers(response: Response, origins: list[str], allowed: frozenset[str]) -> None:
    """Let a page read an answer if its origin is allowed."""
    if len(origins) == 1 and origins[0].lower() in allowed:
        values = (origins[0], _EXPOSED, "Origin")
        response.headers.update(zip(_CORS_HEADERS, values, strict=True))


def cors_headers(response: Response) -> Iterable[tuple[str, str]]:
    """Return the headers that :func:`add_cors_headers` has set."""
    return [(name, response.headers[name]) for name in _CORS_HEADERS if name in response.headers]

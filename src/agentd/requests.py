"""Reading of requests: query strings and bodies, strictly."""

from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from quart import Request as QuartRequest
from quart import Websocket
from werkzeug.exceptions import RequestEntityTooLarge

from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from agent_orchestrator.wire import strict_json

Received = TypeVar("Received")

MAX_QUERY_FIELDS = 1100
"""Room for a thousand ``sessionId``; more is refused before it is taken apart."""


class Request(QuartRequest):
    """A request, and who sent it."""

    principal: Principal = LOCAL


class Socket(Websocket):
    """A WebSocket, who opened it (None: a first frame has yet to tell) and its subprotocol."""

    principal: Principal | None = None
    subprotocol: str | None = None


def current(proxy: object, _: type[Received]) -> Received:
    """Return the request or socket behind the framework's proxy, as our class of it."""
    return cast("Received", proxy._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001


def query_pairs(query_string: bytes) -> list[tuple[str, str]]:
    """Return the names and values of a query string in order.

    :raises InvalidRequest: if it is not UTF-8 or has too many fields.
    """
    if not query_string:
        return []
    try:
        return parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except UnicodeDecodeError:
        raise InvalidRequest.of({"query": "is not UTF-8"}) from None
    except ValueError:
        problem = f"has more than {MAX_QUERY_FIELDS} fields"
        raise InvalidRequest.of({"query": problem}) from None


async def body_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that is the body; no body at all stands for an empty object.

    :raises UnsupportedMediaType: if the body is something else than JSON in UTF-8.
    :raises PayloadTooLarge: if it is longer than the daemon takes.
    :raises InvalidRequest: if it is not strict JSON, or not an object.
    """
    content_type = request.headers.get("Content-Type")
    if content_type is not None and not _is_json(content_type):
        raise UnsupportedMediaType("the body must be application/json")
    try:
        data: bytes = await request.body
    except RequestEntityTooLarge:
        limit = request.max_content_length
        details = {"limit_bytes": limit}
        raise PayloadTooLarge(f"the body is larger than {limit:,} bytes", details) from None
    if content_type is None:
        if data:
            raise UnsupportedMediaType("a body needs the content type application/json")
        return {}
    value = strict_json.loads(data)
    if not isinstance(value, dict):
        raise InvalidRequest.of({"body": "must be a JSON object"})
    return value


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    return kind == "application/json" and all(
        part.replace('"', "") in ("", "charset=utf-8", "charset=utf8") for part in parameters
    )

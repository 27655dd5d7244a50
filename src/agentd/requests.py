"""Reading of requests: query strings and bodies, strictly."""

from functools import partial
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, unquote_plus

import anyio
import anyio.lowlevel
import anyio.to_thread
from quart import Request as QuartRequest
from quart import Websocket
from quart.wrappers.request import Body as QuartBody

from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from agent_orchestrator.wire import strict_json
from agentd.lockout import Peer

Received = TypeVar("Received")

PEER: Final = "agentd.peer"
"""Where the state of a connection holds who is at its other end."""

MAX_QUERY_FIELDS = 1100
"""Room for a thousand ``sessionId``; more is refused before it is taken apart."""


MAX_VALUES: Final = 20_000
"""Values a body may hold, names of members included."""

SMALL_BYTES: Final = 64 * 1024
"""Bytes of a body that is read on the event loop: a larger one is read in a thread."""

MAX_READERS: Final = 2
"""Large bodies read at the same time."""

LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_S: Final = 5.0
"""How much and how long of a refused body is read and dropped. A connection that is closed with
something unread is reset, and the refusal lost with it."""


class RequestBody(QuartBody):
    """A body that is kept up to a limit; what is longer is dropped as it comes."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, None)
        self._limit = max_content_length
        self._size = 0
        self._unwanted = False
        self.too_long = self._is_over(expected_content_length or 0)

    def append(self, data: bytes) -> None:
        """Take the next part."""
        self._size += len(data)
        if self._is_over(self._size):
            self.too_long = True
            self.clear()
        if not self.too_long and not self._unwanted:
            super().append(data)
        elif self._size > LINGER_BYTES:
            self.set_complete()

    def _is_over(self, size: int) -> bool:
        return self._limit is not None and size > self._limit

    async def linger(self) -> None:
        """Drop what came of the body and wait for its end, within reason."""
        self._unwanted = True
        self.clear()
        with anyio.move_on_after(LINGER_S):
            await self._complete.wait()


def peer_of(received: QuartRequest | Websocket) -> Peer:
    """Return the other end of the connection a request came over."""
    found = received.scope.get("state", {}).get(PEER)
    return found if isinstance(found, Peer) else Peer(str(received.remote_addr))


class HttpRequest(QuartRequest):
    """A request, and who sent it."""

    body_class = RequestBody
    body: RequestBody
    principal: Principal = LOCAL


class WebSocket(Websocket):
    """A WebSocket, who opened it (None: a first frame has yet to tell) and its subprotocol."""

    principal: Principal | None = None
    subprotocol: str | None = None
    is_unfinished: bool = False
    """Whether a message was sent in part: what is sent next belongs to it."""


def current_request(proxy: object, _: type[Received]) -> Received:
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
        raise _too_many_fields() from None


def query_names(query_string: bytes) -> list[str]:
    """Return the names in a query string in order: cheaper than :func:`query_pairs`, for a stranger's.

    :raises InvalidRequest: if it has too many fields.
    """
    fields = query_string.split(b"&", MAX_QUERY_FIELDS)
    if len(fields) > MAX_QUERY_FIELDS:
        raise _too_many_fields()
    names = (field.partition(b"=")[0].decode("latin-1") for field in fields)
    return [unquote_plus(name) if "%" in name or "+" in name else name for name in names]


def _too_many_fields() -> InvalidRequest:
    return InvalidRequest.of({"query": f"has more than {MAX_QUERY_FIELDS} fields"})


STALL_S: Final = 1.0
"""Seconds for what came in time and was not looked at: a daemon that was stopped (SIGSTOP, a machine
asleep) finds the time over first, and then the body in its socket."""


async def body_object(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object that is the body; no body at all stands for an empty object.

    :raises UnsupportedMediaType: if the body is something else than JSON in UTF-8.
    :raises PayloadTooLarge: if it is longer than the daemon takes.
    :raises InvalidRequest: if it is not strict JSON, not an object, or takes too long to come.
    """
    content_type = request.headers.get("Content-Type")
    if len(request.headers.getlist("Content-Type")) > 1:
        raise InvalidRequest.of({"Content-Type": "is given by several headers"})
    if "Content-Encoding" in request.headers:
        encodings = ",".join(request.headers.getlist("Content-Encoding")).split(",")
        if any(name.strip().lower() not in ("", "identity") for name in encodings):
            raise UnsupportedMediaType("the body must not be encoded (Content-Encoding)")
    if content_type is not None and not _is_json(content_type):
        raise UnsupportedMediaType("the body must be application/json")
    data: bytes = b"" if request.body.too_long else await _received(request)
    if request.body.too_long:
        limit = request.max_content_length
        raise PayloadTooLarge(f"the body is larger than {limit:,} bytes", {"limit_bytes": limit})
    if content_type is None:
        if data:
            raise UnsupportedMediaType("a body needs the content type application/json")
        return {}
    read = partial(strict_json.loads, data, most=MAX_VALUES)
    is_small = len(data) <= SMALL_BYTES
    value = read() if is_small else await anyio.to_thread.run_sync(read, limiter=_readers())
    if not isinstance(value, dict):
        raise InvalidRequest.of({"body": "must be a JSON object"})
    return value


_READERS: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("body readers")


def _readers() -> anyio.CapacityLimiter:
    """Return what keeps large bodies from being read all at once: each takes several times its size."""
    try:
        return _READERS.get()
    except LookupError:
        _READERS.set(limiter := anyio.CapacityLimiter(MAX_READERS))
        return limiter


async def _received(request: HttpRequest) -> bytes:
    for timeout_s in (request.body_timeout, STALL_S):
        with anyio.move_on_after(timeout_s):
            data: bytes = await request.body
            request.body.clear()  # one copy is enough
            return data
    seconds = f"{request.body_timeout:g}"
    raise InvalidRequest.of({"body": f"was not complete within {seconds} s"})


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    return kind == "application/json" and all(
        part.replace('"', "") in ("", "charset=utf-8", "charset=utf8") for part in parameters
    )

"""Strict parsing of requests: query strings and bodies."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, unquote_plus

import anyio
import anyio.lowlevel
from quart import Request as QuartRequest
from quart import Websocket
from quart.wrappers.request import Body as QuartBody

from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from agent_orchestrator.long_work import run_long
from agent_orchestrator.wire import strict_json
from agentd.lockout import Peer

Received = TypeVar("Received")

PEER: Final = "agentd.peer"
"""Key of the :class:`Peer` in the state of a connection."""

MAX_QUERY_FIELDS = 1100
"""Maximum number of fields of a query string: enough for a thousand ``sessionId``."""

MAX_VALUES: Final = 20_000
"""Maximum number of JSON values in a body, including member names."""

SMALL_BYTES: Final = 64 * 1024
"""Bytes of a body up to which it is parsed on the event loop, not in a thread."""

MAX_READERS: Final = 2
"""Maximum number of large bodies parsed at the same time."""

LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_S: Final = 5.0
"""Maximum bytes and seconds of a refused body to read and drop. Closing a connection with unread
data resets it, and the client may lose the answer."""


MAX_WAITING: Final = 256 * 2**10
"""Bytes of a streamed body that wait for the handler. Then the connection is not read."""

SLOW_BYTES: Final = 2**20
"""Bytes of a streamed body that must arrive within its time limit. A sender that is slower keeps one of the few
places of imports from others, at little cost."""


class RequestBody(QuartBody):
    """A body with a maximum length. A longer one is dropped while it arrives."""

    _taken: anyio.Event | None = None
    """Set when the handler has taken what has arrived of a streamed body; None if it is not streamed."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, None)
        self._limit = max_content_length
        self._size = 0
        self._is_refused = False
        self.too_long = self._is_over(expected_content_length or 0)

    @property
    def has_arrived(self) -> bool:
        """Whether it is complete."""
        return self._complete.is_set()

    def stream(self) -> None:
        """Let the handler take the body in parts, of any length. Must be called before it arrives."""
        self._limit = None
        self.too_long = False
        self._taken = anyio.Event()

    async def has_room(self) -> None:
        """Wait until the handler has taken enough of a streamed body."""
        while self._taken is not None and len(self._data) > MAX_WAITING and not self._is_refused:
            await self._taken.wait()

    async def parts(self, timeout_s: float) -> AsyncGenerator[bytes]:
        """Yield the parts of a streamed body.

        :param timeout_s: maximum seconds between two parts, and for each ``SLOW_BYTES``.
        :raises InvalidRequest: if they do not arrive in time.
        """
        waited_s, size = 0.0, 0
        while True:
            began = anyio.current_time()
            for limit_s in (timeout_s, STALL_S):
                with anyio.move_on_after(limit_s) as scope:
                    part = await anext(self, b"")
                if not scope.cancelled_caught:
                    break
            else:
                raise InvalidRequest.of({"body": f"nothing came within {timeout_s:g} s"})
            # At most the limit counts: the rest was a pause of the daemon.
            waited_s += min(anyio.current_time() - began, timeout_s)
            size += len(part)
            if size >= SLOW_BYTES:
                waited_s, size = 0.0, 0
            elif waited_s > timeout_s + STALL_S and not self._complete.is_set():
                problem = f"less than {SLOW_BYTES:,} bytes came within {timeout_s:g} s"
                raise InvalidRequest.of({"body": problem})
            self._note_taken()
            if part:
                yield part
            elif self._complete.is_set():
                return

    def _note_taken(self) -> None:
        if self._taken is not None:
            self._taken.set()
            self._taken = anyio.Event()

    def append(self, data: bytes) -> None:
        """Add the next part."""
        self._size += len(data)
        if self._is_over(self._size):
            self.too_long = True
            self.clear()
        if not self.too_long and not self._is_refused:
            super().append(data)
        elif self._size > LINGER_BYTES:
            self.set_complete()

    def _is_over(self, size: int) -> bool:
        return self._limit is not None and size > self._limit

    async def linger(self) -> None:
        """Drop the body, and wait up to ``LINGER_S`` for its end."""
        self._is_refused = True
        self.clear()
        self._note_taken()
        with anyio.move_on_after(LINGER_S):
            await self._complete.wait()


def peer_of(received: QuartRequest | Websocket) -> Peer:
    """Return the other end of a request's connection."""
    peer = received.scope.get("state", {}).get(PEER)
    return peer if isinstance(peer, Peer) else Peer(str(received.remote_addr))


class HttpRequest(QuartRequest):
    """A request and its caller."""

    body_class = RequestBody
    body: RequestBody
    principal: Principal = LOCAL


class WebSocket(Websocket):
    """A WebSocket with its caller (None until the frame with the token) and its subprotocol."""

    principal: Principal | None = None
    subprotocol: str | None = None
    is_unfinished: bool = False
    """Whether the message being sent is incomplete."""


def current_request(proxy: object, _: type[Received]) -> Received:
    """Return the request or socket behind the framework's proxy, with the type of our subclass."""
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
    """Return the names in a query string in order. Cheaper than :func:`query_pairs`, for strangers.

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
"""Extra seconds to read a body that has arrived already. After a pause of the daemon (SIGSTOP, suspend)
the timeout comes first, although the body is in the socket."""


async def body_object(request: HttpRequest) -> dict[str, Any]:
    """Return the body, which must be a JSON object. Without a body, return an empty object.

    :raises UnsupportedMediaType: if the body is not JSON in UTF-8.
    :raises PayloadTooLarge: if it is longer than the maximum.
    :raises InvalidRequest: if it is not strict JSON, not an object, or takes too long to arrive.
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
    data: bytes = b"" if request.body.too_long else await _read_body(request)
    if request.body.too_long:
        limit = request.max_content_length
        raise PayloadTooLarge(f"the body is larger than {limit:,} bytes", {"limit_bytes": limit})
    if content_type is None:
        if data:
            raise UnsupportedMediaType("a body needs the content type application/json")
        return {}
    parse = partial(strict_json.loads, data, max_values=MAX_VALUES)
    is_small = len(data) <= SMALL_BYTES
    value = parse() if is_small else await run_long(parse, limiter=_readers())
    if not isinstance(value, dict):
        raise InvalidRequest.of({"body": "must be a JSON object"})
    return value


_READERS: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("body readers")


def _readers() -> anyio.CapacityLimiter:
    """Return the limiter for parsing large bodies: each needs several times its size in memory."""
    try:
        return _READERS.get()
    except LookupError:
        _READERS.set(limiter := anyio.CapacityLimiter(MAX_READERS))
        return limiter


async def _read_body(request: HttpRequest) -> bytes:
    if request.body.has_arrived:
        return await _taken(request.body)
    for timeout_s in (request.body_timeout, STALL_S):
        with anyio.move_on_after(timeout_s):
            return await _taken(request.body)
    seconds = f"{request.body_timeout:g}"
    raise InvalidRequest.of({"body": f"was not complete within {seconds} s"})


async def _taken(body: RequestBody) -> bytes:
    data: bytes = await body
    body.clear()  # one copy is enough
    return data


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    return kind == "application/json" and all(
        part.replace('"', "") in ("", "charset=utf-8", "charset=utf8") for part in parameters
    )

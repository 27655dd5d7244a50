"""GET /stream as server-sent events, WS /stream as text frames."""

from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import anyio
from anyio import CancelScope
from attrs import frozen
from hypercorn.typing import ASGISendCallable
from quart import Response

from agent_orchestrator.domain import errors
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.fields import MAX_ID, MAX_INTEGER, MAX_NAME
from agent_orchestrator.operations import (
    HEAD,
    CaughtUp,
    Draining,
    StreamItem,
    StreamPart,
    StreamRequest,
)
from agent_orchestrator.ports import Gateway, Subscription, Transport
from agent_orchestrator.wire import codec, problems, sse, strict_json
from agentd.auth import Guard
from agentd.descriptors import Descriptors
from agentd.http1 import Fragment
from agentd.lifetime import Lifetime
from agentd.lockout import Peer
from agentd.metrics import Metrics
from agentd.requests import WebSocket, peer_of, query_pairs
from agentd.responses import (
    LiveResponse,
    problem_of,
    problem_response,
    stream_part,
    stream_start,
)

MAX_STREAMS: Final = 1000
"""Streams one principal may have open."""

QUIET_S: Final = 15.0
"""Seconds of silence after which a sign of life is sent."""

AUTH_FRAME_S: Final = 5.0
"""Seconds a WebSocket without a token in its headers has to send one."""

CHUNK_BYTES: Final = 64 * 1024
"""About what is put together before it is sent: a reader that lags costs no more than this."""

RETRY_S: Final = 5
"""Seconds after which a reader whose stream was ended is to come again."""

LAST_SEND_S: Final = 0.5
"""Seconds a reader is given to take the end of its stream, before it is cut off."""

_SESSION_NAMES = ("sessionId", "session_id")


def stream_request(query_string: bytes, last_event_id: str | None) -> StreamRequest:
    """Return what a reader asks for.

    :param last_event_id: the header a browser resumes with; the cursor of the URL it first opened
        is older, so the header wins.
    :raises InvalidRequest: naming every bad parameter.
    """
    found: dict[str, str] = {}
    sessions: list[str] = []
    given: dict[str, str] = {}
    for name, value in query_pairs(query_string):
        if name in _SESSION_NAMES:
            sessions.append(value)
        elif name not in ("cursor", "epoch"):
            found[name] = "is not a parameter of this call"
        elif name in given:
            found[name] = "is given twice"
        else:
            given[name] = value
    sessions = list(dict.fromkeys(sessions))
    if any(not value.strip() or len(value) > MAX_ID for value in sessions):
        found["sessionId"] = f"must be 1 to {MAX_ID} characters"
    cursor = last_event_id or given.get("cursor")
    epoch = given.get("epoch")
    if epoch is not None and not 0 < len(epoch) <= MAX_NAME:
        found.setdefault("epoch", f"must be 1 to {MAX_NAME} characters")
    if cursor is not None and (problem := _cursor_problem(cursor, single=len(sessions) == 1)):
        found.setdefault("cursor", problem)
    if found:
        raise errors.InvalidRequest.of(found)
    return StreamRequest(sessions, cursor, epoch)


def _cursor_problem(cursor: str, *, single: bool) -> str | None:
    if cursor == HEAD:
        return None
    if not single:
        return f"must be 1 to {MAX_NAME} characters" if not 0 < len(cursor) <= MAX_NAME else None
    if cursor.isascii() and cursor.isdigit() and len(cursor) < 20 and int(cursor) <= MAX_INTEGER:
        return None
    return f"must be an integer between 0 and {MAX_INTEGER}"


class StreamLimiter:
    """How many streams each principal has open.

    :param maximum: how many it may.
    :param metrics: told how many there are of all, and what they are handed.
    :param descriptors: asked whether there is room for one more.
    """

    def __init__(self, most: int, metrics: Metrics, descriptors: Descriptors) -> None:
        self._maximum = most
        self._descriptors = descriptors
        self.metrics = metrics
        self._open_counts: Counter[str] = Counter()

    @contextmanager
    def slot(self, principal: str) -> Iterator[None]:
        """Take a stream slot while the scope lasts.

        :raises RateLimited: if there is none left.
        :raises Unavailable: if the process has hardly any descriptors left.
        """
        self._descriptors.check_stream()
        if self._open_counts[principal] >= self._maximum:
            raise errors.RateLimited(
                f"this principal has {self._maximum:,} open streams, the maximum: close one first",
                {"streams": self._maximum},
            )
        self._open_counts[principal] += 1
        self.metrics.streams += 1
        try:
            yield
        finally:
            self.metrics.streams -= 1
            self._open_counts[principal] -= 1
            if not self._open_counts[principal]:
                del self._open_counts[principal]


class EventStreamResponse(LiveResponse):
    """An answer that goes on: the web framework's connection hands it the line.

    :param quiet_s: seconds of silence after which a sign of life is sent.
    :param slot: held while it lasts.
    :param peer: who reads it.
    """

    def __init__(
        self,
        transport: Transport,
        asked: StreamRequest,
        lifetime: Lifetime,
        quiet_s: float,
        slot: AbstractContextManager[None],
        metrics: Metrics,
        peer: Peer,
    ) -> None:
        super().__init__()
        self._peer = peer
        self._slot = slot
        self._metrics = metrics
        self._transport = transport
        self._stream_request = asked
        self._lifetime = lifetime
        self._quiet_s = quiet_s

    async def send_all(self, send: ASGISendCallable) -> Response | None:
        """Send the stream until the reader leaves or the daemon closes.

        :return: the refusal, if it came to that.
        """
        started = False
        last = b""
        try:
            with self._slot:
                async with self._transport.subscribe(self._stream_request) as subscription:
                    with self._lifetime.until_closing():
                        started = True
                        await send(stream_start(self, subscription.epoch))
                        await _run_until_revoked(
                            subscription, partial(self._pump, subscription, send)
                        )
                    last = sse.STOPPING
        except Exception as error:  # noqa: BLE001 - logged there unless it is an ordinary refusal
            problem = problem_of(error)
            if not started:
                return problem_response(problem)
            # Nothing more can be said here: the reader comes again and is told in due form.
        async with _send_last(self._peer):
            await send(stream_part(last, more=False))
        return None

    async def _pump(self, subscription: Subscription, send: ASGISendCallable) -> None:
        told = False
        while True:
            batch = await _next_batch(subscription, self._quiet_s, self._lifetime, told=told)
            if not batch:
                is_news = self._lifetime.draining and not told
                told |= is_news
                await send(stream_part(sse.DRAINING if is_news else sse.KEEPALIVE))
            self._metrics.streamed(_events_in(batch))
            for chunk in _chunks(batch, from_head=self._stream_request.cursor == HEAD):
                await send(stream_part(chunk))


async def _run_until_revoked(
    subscription: Subscription, work: Callable[[], Awaitable[None]]
) -> None:
    """Do some work until it ends, or its reader may not go on: also one that takes nothing."""
    ended: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def do(what: Callable[[], Awaitable[None]]) -> None:
            try:
                await what()
            except Exception as error:  # noqa: BLE001 - raised again, and not as one of a group
                ended.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(do, subscription.wait_revoked)
        await do(work)
    if ended:
        raise ended[0]


@asynccontextmanager
async def _send_last(peer: Peer) -> AsyncIterator[None]:
    """Say the last thing, and cut off who does not take it: nothing else would end its connection."""
    with anyio.move_on_after(LAST_SEND_S) as deadline:
        yield
    if deadline.cancelled_caught:
        peer.cut()


def _events_in(batch: Sequence[StreamPart]) -> int:
    return sum(isinstance(item, StreamItem) for item in batch)


async def _next_batch(
    subscription: Subscription, quiet_s: float, lifetime: Lifetime, *, told: bool
) -> Sequence[StreamPart]:
    """Return what comes next; nothing when it was quiet for a while, or the daemon drains.

    :param told: whether the reader was told that it drains.
    """
    deadline = anyio.current_time() + quiet_s
    with CancelScope(deadline=deadline) if told else lifetime.until_draining(deadline=deadline):
        return await subscription.receive()
    return ()


def _chunks(batch: Sequence[StreamPart], *, from_head: bool) -> Iterator[bytes]:
    """Yield the frames of a batch, put together or cut so that each part has about one size."""
    chunk = bytearray()
    for item in batch:
        for piece in _encode_item(item, from_head=from_head):
            for part in _slices(piece):
                chunk += part
                if len(chunk) >= CHUNK_BYTES:
                    yield bytes(chunk)
                    chunk.clear()
    if chunk:
        yield bytes(chunk)


def _slices(data: bytes) -> Iterator[bytes]:
    return (data[place : place + CHUNK_BYTES] for place in range(0, len(data), CHUNK_BYTES))


def _encode_item(item: StreamPart, *, from_head: bool) -> tuple[bytes, ...]:
    if isinstance(item, CaughtUp) and from_head:
        return f"id: {item.cursor}\n".encode(), sse.CAUGHT_UP
    if isinstance(item, CaughtUp):
        return (sse.CAUGHT_UP,)
    if isinstance(item, Draining):  # of a daemon behind this one
        return (sse.DRAINING,)
    event = item.event
    return sse.encode_json(codec.event_to_json(event), event.event_type, item.cursor)


# --- WebSocket ------------------------------------------------------------------------------

_CLOSE_CODES: Final = {errors.Unavailable: 1013, errors.Internal: 1011}
"""RFC 6455's own codes where one fits ("try again later", "internal error"); otherwise 4000 and
the HTTP status that tells of the error."""


def close_code(error: errors.OrchestratorError) -> int:
    """Return the WebSocket close code that tells of an error."""
    return _CLOSE_CODES.get(type(error)) or 4000 + problems.status_of(error)


@frozen
class SocketStream:
    """Serves WebSocket readers.

    :param quiet_s: seconds of silence after which a sign of life is sent.
    :param auth_frame_s: seconds a socket without a token in its headers has to send one.
    """

    gateway: Gateway
    guard: Guard
    lifetime: Lifetime
    quiet_s: float
    auth_frame_s: float
    limiter: StreamLimiter

    async def serve(self, socket: WebSocket) -> None:
        """Serve a socket until its reader leaves (which cancels this) or the daemon closes."""
        await socket.accept(subprotocol=socket.subprotocol)
        error = await self._refusal(socket)
        async with _send_last(peer_of(socket)):
            if error is None:
                stopping = errors.Unavailable(
                    "the daemon is stopping: reconnect with the cursor", retry_after_s=RETRY_S
                )
                await _send_error(socket, stopping)
                await socket.close(1001, "the daemon is stopping")
            else:
                await _send_error(socket, error)
                await socket.close(close_code(error), error.code)

    async def _refusal(self, socket: WebSocket) -> errors.OrchestratorError | None:
        try:
            principal = socket.principal
            if principal is None:
                with self.lifetime.until_closing():
                    token = await self._token_frame(socket)
                    peer = peer_of(socket)
                    with self.guard.logging_refusals(peer):
                        principal = await self.guard.holder(token, self.gateway, peer)
            if principal is None:
                return None
            asked = stream_request(socket.query_string, socket.headers.get("Last-Event-ID"))
            with self.limiter.slot(principal.id):
                return await self._follow(socket, principal, asked)
        except Exception as raised:  # noqa: BLE001 - logged there unless it is an ordinary refusal
            return problem_of(raised)

    async def _follow(
        self, socket: WebSocket, principal: Principal, asked: StreamRequest
    ) -> errors.OrchestratorError | None:
        error: errors.OrchestratorError | None = None
        async with (
            self.gateway.acting_as(principal).subscribe(asked) as subscription,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_discard_frames, socket)
            try:
                await _run_until_revoked(subscription, partial(self._pump, socket, subscription))
            except errors.OrchestratorError as raised:
                error = raised
            tasks.cancel_scope.cancel()
        return error

    async def _token_frame(self, socket: WebSocket) -> str:
        frame: Any = None
        with anyio.move_on_after(self.auth_frame_s):
            text = await socket.receive()
            frame = strict_json.loads(text.encode() if isinstance(text, str) else text)
        if not (
            isinstance(frame, dict)
            and frame.get("type") == "auth"
            and isinstance(frame.get("token"), str)
        ):
            seconds = f"{self.auth_frame_s:g}"
            raise errors.Unauthorized(
                f'the first frame must be {{"type": "auth", "token": …}}, within {seconds} s'
            )
        return str(frame["token"])

    async def _pump(self, socket: WebSocket, subscription: Subscription) -> None:
        told = False
        with self.lifetime.until_closing():
            while True:
                batch = await _next_batch(subscription, self.quiet_s, self.lifetime, told=told)
                if not batch:
                    is_news = self.lifetime.draining and not told
                    told |= is_news
                    await socket.send(_frame("draining" if is_news else "ping"))
                self.limiter.metrics.streamed(_events_in(batch))
                for item in batch:
                    await _send(socket, _item_frame(item, subscription.epoch))


async def _discard_frames(socket: WebSocket) -> None:
    """Take what the reader sends, which the framework would otherwise pile up."""
    while True:
        await socket.receive()


async def _send(socket: WebSocket, pieces: tuple[bytes, ...]) -> None:
    """Send a text message, a long one in fragments (RFC 6455, 5.4)."""
    if len(pieces) == 1:
        await socket.send(pieces[0].decode())
        return
    decoder = getincrementaldecoder("utf-8")()  # a character may be on both sides of a cut
    socket.is_unfinished = True
    for piece in pieces:
        for part in _slices(piece):
            await socket.send(Fragment(decoder.decode(part)))
    await socket.send("")
    socket.is_unfinished = False


def _item_frame(item: StreamPart, epoch: str | None) -> tuple[bytes, ...]:
    if isinstance(item, CaughtUp):
        return (_frame("caught_up", cursor=item.cursor, epoch=epoch).encode(),)
    if isinstance(item, Draining):  # of a daemon behind this one
        return (_frame("draining").encode(),)
    head = f'{{"type":"event","cursor":{strict_json.dumps(item.cursor)},"event":'.encode()
    event = codec.event_to_json(item.event)
    return (head + event[0] + b"}",) if len(event) == 1 else (head, *event, b"}")


async def _send_error(socket: WebSocket, error: errors.OrchestratorError) -> None:
    """Say what went wrong, unless it would be taken for the rest of a message that was broken off."""
    if not socket.is_unfinished:
        await socket.send(_frame("error", **problems.to_body(error)))


def _frame(kind: str, **values: Any) -> str:
    return strict_json.dumps({"type": kind, **values})

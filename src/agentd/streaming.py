"""Event streams: GET /stream as server-sent events, WS /stream as text frames."""

from codecs import getincrementaldecoder
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
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
from agent_orchestrator.operations.events import (
    HEAD,
    CaughtUp,
    Draining,
    StreamItem,
    StreamPart,
    StreamRequest,
)
from agent_orchestrator.ports.transport import Gateway, Subscription, Transport
from agent_orchestrator.wire import codec, problems, sse, strict_json
from agent_orchestrator.wire.encoded import Encoded
from agentd.admission import STREAM_RETRY_S
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
"""Maximum number of open streams for each principal."""

KEEPALIVE_S: Final = 15.0
"""Interval of keepalives on a quiet stream, in seconds."""

AUTH_FRAME_S: Final = 5.0
"""Seconds a WebSocket without a token in its headers has to send one."""

CHUNK_BYTES: Final = 64 * 1024
"""Approximate size of the parts that are sent, in bytes. A slow reader holds one part in memory."""

KEPT_BATCHES: Final = 8
"""Number of batches whose frames are kept for other readers. Each has about a mebibyte at most."""

RETRY_S: Final = 5
"""Seconds after which a reader should reconnect when the daemon ends its stream."""

LAST_READ_S: Final = 0.1
"""Maximum seconds to read the last events when the daemon stops."""

LAST_SEND_S: Final = 0.5
"""Maximum seconds for a reader to receive the end of its stream. Then its connection is reset."""

_SESSION_NAMES = ("sessionId", "session_id")


def stream_request(query_string: bytes, last_event_id: str | None) -> StreamRequest:
    """Return the parameters of a stream.

    :param last_event_id: the header with which a browser resumes. It overrides the cursor in the
        URL, which is older.
    :raises InvalidRequest: naming every invalid parameter.
    """
    problems: dict[str, str] = {}
    sessions: list[str] = []
    values: dict[str, str] = {}
    for name, value in query_pairs(query_string):
        if name in _SESSION_NAMES:
            sessions.append(value)
        elif name not in ("cursor", "epoch"):
            problems[name] = "is not a parameter of this call"
        elif name in values:
            problems[name] = "is given twice"
        else:
            values[name] = value
    sessions = list(dict.fromkeys(sessions))
    if any(not value.strip() or len(value) > MAX_ID for value in sessions):
        problems["sessionId"] = f"must be 1 to {MAX_ID} characters"
    cursor = last_event_id or values.get("cursor")
    epoch = values.get("epoch")
    if epoch is not None and not 0 < len(epoch) <= MAX_NAME:
        problems.setdefault("epoch", f"must be 1 to {MAX_NAME} characters")
    if cursor is not None and (problem := _cursor_problem(cursor, single=len(sessions) == 1)):
        problems.setdefault("cursor", problem)
    if problems:
        raise errors.InvalidRequest.of(problems)
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
    """Limits the open streams.

    :param maximum: maximum number for each principal.
    :param maximum_of_all: maximum number of all principals.
    :param metrics: counts streams and events.
    :param descriptors: limits streams by the free file descriptors.
    """

    def __init__(
        self, maximum: int, maximum_of_all: int, metrics: Metrics, descriptors: Descriptors
    ) -> None:
        self.frames = SharedFrames()
        self._maximum = maximum
        self._maximum_of_all = maximum_of_all
        self._descriptors = descriptors
        self.metrics = metrics
        self._open_counts: Counter[str] = Counter()

    @contextmanager
    def slot(self, principal: str) -> Iterator[None]:
        """Occupy a stream slot while the scope is open.

        :raises RateLimited: if the principal has the maximum number of streams.
        :raises Unavailable: if file descriptors are short, or all principals together have too many streams.
        """
        self._descriptors.check_stream()
        if self.metrics.streams >= self._maximum_of_all:
            raise errors.Unavailable(
                f"{self._maximum_of_all:,} streams are open, the maximum of the daemon",
                {"streams": self._maximum_of_all},
                retry_after_s=STREAM_RETRY_S,
            )
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


class SharedFrames:
    """The encoded frames of the last batches.

    Readers at the same position of a session get the same batch object, which is encoded once for all of them.
    """

    def __init__(self) -> None:
        self._recent: OrderedDict[int, tuple[Sequence[StreamPart], Sequence[bytes]]] = OrderedDict()

    def chunks(self, batch: Sequence[StreamPart], *, from_head: bool) -> Iterable[bytes]:
        """Return the frames of a batch, joined or cut to parts of about ``CHUNK_BYTES``."""
        key = id(batch)  # unique while the batch is kept in the cache
        if (cached := self._recent.get(key)) is not None:
            return cached[1]
        if not all(map(_is_short, batch)):
            return _chunks(batch, from_head=from_head)
        chunks = tuple(_chunks(batch, from_head=from_head))
        self._recent[key] = batch, chunks
        if len(self._recent) > KEPT_BATCHES:
            self._recent.popitem(last=False)
        return chunks


def _is_short(item: StreamPart) -> bool:
    return isinstance(item, StreamItem) and not isinstance(item.event.data, Encoded)


class EventStreamResponse(LiveResponse):
    """A stream of server-sent events.

    :param keepalive_s: interval of keepalives on a quiet stream, in seconds.
    :param slot: the stream slot, entered while the stream is open.
    :param frames: the frames that readers share.
    :param peer: the reader's connection.
    """

    def __init__(
        self,
        transport: Transport,
        params: StreamRequest,
        lifetime: Lifetime,
        keepalive_s: float,
        slot: AbstractContextManager[None],
        metrics: Metrics,
        frames: SharedFrames,
        peer: Peer,
    ) -> None:
        super().__init__()
        self._is_sending = False
        self._frames = frames
        self._peer = peer
        self._slot = slot
        self._metrics = metrics
        self._transport = transport
        self._stream_request = params
        self._lifetime = lifetime
        self._keepalive_s = keepalive_s

    async def send_all(self, send: ASGISendCallable) -> Response | None:
        """Send the stream until the reader disconnects or the daemon closes.

        :return: the refusal, if the stream did not start.
        """
        started = False
        last = b""
        rest: Sequence[StreamPart] = ()
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
                    if (
                        not self._is_sending
                    ):  # else an incomplete event was sent, which nothing may follow
                        rest = await _last_batch(subscription)
        except Exception as error:  # noqa: BLE001 - `problem_of` logs unexpected errors
            problem = problem_of(error)
            if not started:
                return problem_response(problem)
            # A started stream cannot send an error. The reader reconnects and gets it.
        async with _send_last(self._peer):
            await self._send_batch(rest, send)
            await send(stream_part(last, more=False))
        return None

    async def _pump(self, subscription: Subscription, send: ASGISendCallable) -> None:
        drain_sent = False
        while True:
            batch = await _next_batch(
                subscription, self._keepalive_s, self._lifetime, drain_sent=drain_sent
            )
            if not batch:
                announce = self._lifetime.draining and not drain_sent
                drain_sent |= announce
                await send(stream_part(sse.DRAINING if announce else sse.KEEPALIVE))
            await self._send_batch(batch, send)

    async def _send_batch(self, batch: Sequence[StreamPart], send: ASGISendCallable) -> None:
        self._metrics.streamed(_events_in(batch))
        from_head = self._stream_request.cursor == HEAD
        self._is_sending = True
        for chunk in self._frames.chunks(batch, from_head=from_head):
            await send(stream_part(chunk))
        self._is_sending = False


async def _run_until_revoked(
    subscription: Subscription, work: Callable[[], Awaitable[None]]
) -> None:
    """Run a function until it ends or the reader's access is revoked, even if the reader stalls."""
    errors_raised: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def run(function: Callable[[], Awaitable[None]]) -> None:
            try:
                await function()
            except Exception as error:  # noqa: BLE001 - raised below, without an exception group
                errors_raised.append(error)
            tasks.cancel_scope.cancel()

        tasks.start_soon(run, subscription.wait_revoked)
        await run(work)
    if errors_raised:
        raise errors_raised[0]


async def _last_batch(subscription: Subscription) -> Sequence[StreamPart]:
    """Return what was written just before the daemon stops, such as the release of a run."""
    with anyio.move_on_after(LAST_READ_S), suppress(errors.OrchestratorError):
        return await subscription.receive()
    return ()


@asynccontextmanager
async def _send_last(peer: Peer) -> AsyncIterator[None]:
    """Limit the time for the last send. A reader that does not receive it is cut off."""
    with anyio.move_on_after(LAST_SEND_S) as deadline:
        yield
    if deadline.cancelled_caught:
        peer.cut()


def _events_in(batch: Sequence[StreamPart]) -> int:
    return sum(isinstance(item, StreamItem) for item in batch)


async def _next_batch(
    subscription: Subscription, keepalive_s: float, lifetime: Lifetime, *, drain_sent: bool
) -> Sequence[StreamPart]:
    """Return the next items; none after ``keepalive_s`` seconds, or when the daemon begins to drain.

    :param drain_sent: whether the drain was announced to the reader.
    """
    deadline = anyio.current_time() + keepalive_s
    with (
        CancelScope(deadline=deadline) if drain_sent else lifetime.until_draining(deadline=deadline)
    ):
        return await subscription.receive()
    return ()


def _chunks(batch: Sequence[StreamPart], *, from_head: bool) -> Iterator[bytes]:
    """Yield the frames of a batch, joined or cut to parts of about ``CHUNK_BYTES``."""
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
    return (data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES))


def _encode_item(item: StreamPart, *, from_head: bool) -> tuple[bytes, ...]:
    if isinstance(item, CaughtUp) and from_head:
        return f"id: {item.cursor}\n".encode(), sse.CAUGHT_UP
    if isinstance(item, CaughtUp):
        return (sse.CAUGHT_UP,)
    if isinstance(item, Draining):  # relayed from another daemon
        return (sse.DRAINING,)
    event = item.event
    return sse.encode_json(codec.event_to_json(event), event.event_type, item.cursor)


# --- WebSocket ------------------------------------------------------------------------------

_CLOSE_CODES: Final = {errors.Unavailable: 1013, errors.Internal: 1011}
"""Codes of RFC 6455 ("try again later", "internal error"). Other errors use 4000 plus the HTTP
status."""


def close_code(error: errors.OrchestratorError) -> int:
    """Return the WebSocket close code for an error."""
    return _CLOSE_CODES.get(type(error)) or 4000 + problems.status_of(error)


@frozen
class SocketStream:
    """Serves WebSocket readers.

    :param keepalive_s: interval of keepalives on a quiet stream, in seconds.
    :param auth_frame_s: seconds a socket without a token in its headers has to send one.
    """

    gateway: Gateway
    guard: Guard
    lifetime: Lifetime
    keepalive_s: float
    auth_frame_s: float
    limiter: StreamLimiter

    async def serve(self, socket: WebSocket) -> None:
        """Serve a socket until the daemon closes. Canceled if the reader disconnects."""
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
            params = stream_request(socket.query_string, socket.headers.get("Last-Event-ID"))
            with self.limiter.slot(principal.id):
                return await self._follow(socket, principal, params)
        except Exception as raised:  # noqa: BLE001 - `problem_of` logs unexpected errors
            return problem_of(raised)

    async def _follow(
        self, socket: WebSocket, principal: Principal, params: StreamRequest
    ) -> errors.OrchestratorError | None:
        error: errors.OrchestratorError | None = None
        async with (
            self.gateway.acting_as(principal).subscribe(params) as subscription,
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
            received = await socket.receive()
            # Quart gives None for an empty binary message.
            data = received.encode() if isinstance(received, str) else received or b""
            frame = strict_json.loads(data, field="frame")
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
        drain_sent = is_sending = False
        with self.lifetime.until_closing():
            while True:
                batch = await _next_batch(
                    subscription, self.keepalive_s, self.lifetime, drain_sent=drain_sent
                )
                is_sending = True
                if not batch:
                    announce = self.lifetime.draining and not drain_sent
                    drain_sent |= announce
                    await socket.send(_frame("draining" if announce else "ping"))
                await self._send_batch(socket, subscription, batch)
                is_sending = False
        if not is_sending:  # else an incomplete event was sent, which nothing may follow
            with anyio.move_on_after(LAST_SEND_S):
                await self._send_batch(socket, subscription, await _last_batch(subscription))

    async def _send_batch(
        self, socket: WebSocket, subscription: Subscription, batch: Sequence[StreamPart]
    ) -> None:
        self.limiter.metrics.streamed(_events_in(batch))
        for item in batch:
            await _send(socket, _item_frame(item, subscription.epoch))


async def _discard_frames(socket: WebSocket) -> None:
    """Discard the reader's frames, which the framework would otherwise buffer."""
    while True:
        await socket.receive()


async def _send(socket: WebSocket, pieces: tuple[bytes, ...]) -> None:
    """Send a text message. A long one is sent in fragments (RFC 6455, 5.4)."""
    if len(pieces) == 1:
        await socket.send(pieces[0].decode())
        return
    decoder = getincrementaldecoder("utf-8")()  # a character may be split between pieces
    socket.is_unfinished = True
    for piece in pieces:
        for part in _slices(piece):
            await socket.send(Fragment(decoder.decode(part)))
    await socket.send("")
    socket.is_unfinished = False


def _item_frame(item: StreamPart, epoch: str | None) -> tuple[bytes, ...]:
    if isinstance(item, CaughtUp):
        return (_frame("caught_up", cursor=item.cursor, epoch=epoch).encode(),)
    if isinstance(item, Draining):  # relayed from another daemon
        return (_frame("draining").encode(),)
    head = f'{{"type":"event","cursor":{strict_json.dumps(item.cursor)},"event":'.encode()
    event = codec.event_to_json(item.event)
    return (head + event[0] + b"}",) if len(event) == 1 else (head, *event, b"}")


async def _send_error(socket: WebSocket, error: errors.OrchestratorError) -> None:
    """Send an error, unless an incomplete message was sent: it would become a part of that."""
    if not socket.is_unfinished:
        await socket.send(_frame("error", **problems.to_body(error)))


def _frame(kind: str, **values: Any) -> str:
    return strict_json.dumps({"type": kind, **values})

"""The HTTP client transport: operations as requests, streams as server-sent events."""

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
import httpx

from agent_orchestrator.domain.errors import (
    Internal,
    InvalidRequest,
    OrchestratorError,
    Unreachable,
)
from agent_orchestrator.domain.model import Event
from agent_orchestrator.fields import MAX_NAME, check, shown
from agent_orchestrator.operations.events import (
    CaughtUp,
    Draining,
    StreamItem,
    StreamPart,
    StreamRequest,
)
from agent_orchestrator.operations.session_files import LINES
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Download, Reply, Subscription
from agent_orchestrator.wire import codec, problems, sse, strict_json

Req = TypeVar("Req")
Res = TypeVar("Res")

Token = str | Callable[[], str | None] | None

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
"""Maximum seconds of a call, besides the seconds it asks the server to wait."""

SILENCE_S: Final = 45.0
"""Seconds without data after which a stream is broken. The server sends a comment every 15 s."""

MIN_BYTES_PER_S: Final = 64 * 2**10
"""Minimum rate of a long answer or frame, in bytes per second. It prevents a server that sends a byte now
and then from holding a call forever."""

MAX_ANSWER: Final = sse.MAX_FRAME
"""Maximum bytes of an answer. Pages end before this limit, and a run's result is no longer than an event."""

MAX_VALUES: Final = 2**23
"""Maximum number of JSON values in an answer or event, member names included. Each takes many times its
bytes in memory. A page of 8 MiB has fewer."""


class HttpTransport:
    """A transport to a daemon over HTTP.

    :param http: a client whose ``base_url`` is the daemon's. The caller closes it.
    :param token: the bearer token, or a function that returns the current one.
    """

    def __init__(self, http: httpx.AsyncClient, *, token: Token = None) -> None:
        self._http = http
        self._token = token

    def _headers(self) -> dict[str, str]:
        token = self._token() if callable(self._token) else self._token
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        check(operation.request, request)
        path, query, body = codec.request_parts(operation, request)
        headers = self._headers() | _PLAIN_ENCODINGS
        content: bytes | None = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = strict_json.dumps(body).encode()
        wait_s = 0.0
        if not operation.is_mutation:  # in mutations, timeout_s is not the time of the call
            wait_s = getattr(request, "timeout_s", None) or getattr(request, "wait_s", None) or 0.0
        answer_s = None if operation.takes_long else ANSWER_TIMEOUT_S + float(wait_s)
        response_context = self._http.stream(
            operation.method,
            path,
            params=query or None,
            content=content,
            headers=headers,
            timeout=httpx.Timeout(answer_s, connect=CONNECT_TIMEOUT_S),
        )
        return await self._answer(operation, response_context, answer_s)

    async def upload(
        self, operation: Operation[Req, Res], request: Req, data: AsyncIterator[bytes]
    ) -> Reply[Res]:
        check(operation.request, request)
        path, query, _ = codec.request_parts(operation, request)
        response_context = self._http.stream(
            operation.method,
            path,
            params=query or None,
            content=data,
            headers=self._headers() | _PLAIN_ENCODINGS | {"Content-Type": LINES},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        )
        return await self._answer(operation, response_context, None)

    async def _answer(
        self,
        operation: Operation[Any, Res],
        response_context: AbstractAsyncContextManager[httpx.Response],
        answer_s: float | None,
    ) -> Reply[Res]:
        """Send a request and return the answer to it.

        :param answer_s: seconds that the server has; None for no limit.
        """
        try:
            with _timed(answer_s) as deadline:
                async with response_context as response:
                    plain = await _body(response, deadline)
        except httpx.TransportError as error:
            raise _unreachable(self._http, error) from error
        if response.status_code >= 400:
            raise problems.from_body(response.status_code, plain)
        try:
            answer = codec.from_plain(operation.answer, plain)
        except ValueError as error:
            raise Internal(
                f"the server's answer is not a valid answer to {operation.name}: {shown(str(error))}"
            ) from error
        return Reply(answer, replayed=response.headers.get("Idempotent-Replayed") == "true")

    @asynccontextmanager
    async def download(
        self, operation: Operation[Req, Res], request: Req
    ) -> AsyncIterator[Download]:
        check(operation.request, request)
        path, query, _ = codec.request_parts(operation, request)
        async with AsyncExitStack() as stack:
            try:
                with _timed(CONNECT_TIMEOUT_S + SILENCE_S) as deadline:
                    response = await stack.enter_async_context(
                        self._http.stream(
                            operation.method,
                            path,
                            params=query or None,
                            headers=self._headers() | _PLAIN_ENCODINGS,
                            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S),
                        )
                    )
                    _check_coding(response)
                    if response.status_code != 200:
                        plain = await _body(response, deadline)
                        raise problems.from_body(response.status_code, plain)
            except httpx.TransportError as error:
                raise _unreachable(self._http, error) from error
            chunks = response.aiter_bytes()
            try:
                yield _HttpDownload(self._http, chunks)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
                    await _drain(chunks)

    async def version(self) -> str | None:
        """Return the version of the daemon, or None if it cannot be determined."""
        response_context = self._http.stream(
            "GET", "/health", headers=_PLAIN_ENCODINGS, timeout=CONNECT_TIMEOUT_S
        )
        try:
            with _timed(CONNECT_TIMEOUT_S) as deadline:
                async with response_context as response:
                    body = await _body(response, deadline)
        except (httpx.TransportError, Internal):
            return None
        version = body.get("version") if isinstance(body, dict) else None
        return shown(version) if isinstance(version, str) else None

    @asynccontextmanager
    async def subscribe(self, request: StreamRequest) -> AsyncIterator[Subscription]:
        async with AsyncExitStack() as stack:
            subscription = _SseSubscription(self._http, self._headers, request)
            stack.push_async_callback(subscription.aclose)
            await subscription.open()
            yield subscription


class _HttpDownload:
    """The lines of an answer."""

    def __init__(self, http: httpx.AsyncClient, chunks: AsyncIterator[bytes]) -> None:
        self._http = http
        self._chunks = chunks

    async def receive(self) -> bytes:
        try:
            return await anext(self._chunks, b"")
        except httpx.TransportError as error:
            raise _unreachable(self._http, error) from error


def _unreachable(http: httpx.AsyncClient, error: httpx.TransportError) -> Unreachable:
    # On trio, only the cause of a TLS error has a message.
    reason: BaseException | None = error
    while reason is not None and not str(reason):
        reason = reason.__cause__ or reason.__context__
    return Unreachable(f"no answer from {http.base_url}: {reason or type(error).__name__}")


_PLAIN_ENCODINGS: Final = {"Accept-Encoding": "identity"}
"""Disables compression: a small compressed answer can expand to gigabytes."""


class _ProgressDeadline:
    """A deadline that is extended by received data.

    :param limit_s: seconds without any extension; None for no limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        self._end = math.inf if limit_s is None else anyio.current_time() + limit_s
        self.scope = anyio.CancelScope(deadline=self._end)

    def note(self, size: int) -> None:
        """Extend the deadline for the bytes received so far."""
        self.scope.deadline = self._end + size / MIN_BYTES_PER_S


@contextlib.contextmanager
def _timed(limit_s: float | None) -> Iterator[_ProgressDeadline]:
    """Raise :exc:`httpx.ReadTimeout` if the body takes longer than its limit."""
    deadline = _ProgressDeadline(limit_s)
    with deadline.scope:
        yield deadline
    if deadline.scope.cancelled_caught:
        raise httpx.ReadTimeout(_TOO_SLOW)


_TOO_SLOW: Final = f"the answer is too slow: less than {MIN_BYTES_PER_S:,} bytes per second"


def _check_coding(response: httpx.Response) -> None:
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in ("", "identity"):
        raise Internal(f"the server's answer has an unsupported encoding ({shown(coding)})")


async def _body(response: httpx.Response, deadline: _ProgressDeadline) -> Any:
    """Return the JSON value of an answer; None for an error without one.

    :raises Internal: if the answer is compressed, is not strict JSON, or has more than
        :data:`MAX_ANSWER` bytes or :data:`MAX_VALUES` values.
    """
    data = bytearray()
    _check_coding(response)
    chunks = response.aiter_bytes()
    is_whole = False
    try:
        async for chunk in chunks:
            data += chunk
            if len(data) > MAX_ANSWER:
                break
            deadline.note(len(data))
        else:
            is_whole = True
    finally:
        if not is_whole:
            with anyio.CancelScope(shield=True):
                await response.aclose()
                await _drain(chunks)
    if not is_whole:
        raise Internal(f"the server's answer has more than {MAX_ANSWER:,} bytes")
    try:
        return _json(data, "the server's answer")
    except Internal:
        if response.status_code >= 400:  # perhaps from a proxy; the status is enough
            return None
        raise


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Exhaust the chunks of a closed response.

    httpx reads through nested generators. Iterating once more finishes them; trio warns about
    generators that are left unfinished.
    """
    with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
        async for _ in chunks:
            pass


def _json(data: bytes | bytearray, subject: str) -> Any:
    """Decode JSON from the server.

    :param subject: its name in error messages.
    :raises Internal: if it is not strict JSON, or has more than :data:`MAX_VALUES` values.
    """
    try:
        return strict_json.loads(data, field=subject, max_values=MAX_VALUES, is_last=True)
    except InvalidRequest as error:
        raise Internal(f"{subject} {error.details['fields'][subject]}") from error


class _SseSubscription:
    """A subscription over server-sent events. After a cancelled read it reconnects at its cursor."""

    def __init__(
        self, http: httpx.AsyncClient, headers: Callable[[], dict[str, str]], request: StreamRequest
    ) -> None:
        self._http = http
        self._headers = headers
        self._request = request
        self._cursor = request.cursor
        self.epoch = request.epoch
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None
        self._decoder = sse.Decoder()
        self._frame_due = math.inf
        """Time by which an incomplete frame must be complete, extended by its received bytes."""
        self._ready: list[StreamPart] = []

    async def open(self) -> None:
        """Connect at the current cursor.

        :raises OrchestratorError: if the server refuses the stream.
        :raises Unreachable: if the server does not answer.
        """
        params: list[tuple[str, str | int | float | bool | None]] = [
            ("sessionId", session_id) for session_id in self._request.session_ids
        ]
        if self._cursor is not None:
            params.append(("cursor", self._cursor))
        if self.epoch is not None:
            params.append(("epoch", self.epoch))
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
        self._stack = AsyncExitStack()
        try:
            with _timed(CONNECT_TIMEOUT_S + SILENCE_S) as deadline:
                response = await self._stack.enter_async_context(
                    self._http.stream(
                        "GET",
                        "/stream",
                        params=params,
                        headers=self._headers()
                        | _PLAIN_ENCODINGS
                        | {"Accept": "text/event-stream"},
                        timeout=timeout,
                    )
                )
                _check_coding(response)
                if response.status_code != 200:
                    plain = await _body(response, deadline)
                    raise problems.from_body(response.status_code, plain)
        except httpx.TransportError as error:
            await self.aclose()
            raise _unreachable(self._http, error) from error
        except OrchestratorError:
            await self.aclose()
            raise
        self.epoch = _short_text(response.headers.get(sse.EPOCH_HEADER), "epoch") or self.epoch
        self._decoder = sse.Decoder()
        self._frame_due = math.inf
        self._chunks = response.aiter_bytes()

    async def aclose(self) -> None:
        chunks, self._chunks = self._chunks, None
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()
            if chunks is not None:
                await _drain(chunks)

    async def wait_revoked(self) -> None:
        # The server checks access and ends the stream, which ``receive`` reports.
        await anyio.sleep_forever()

    async def receive(self) -> Sequence[StreamPart]:
        while not self._ready:
            if self._chunks is None:
                await self.open()
            await self._read()
        items, self._ready = self._ready, []
        return items

    async def _read(self) -> None:
        assert self._chunks is not None
        done = False
        try:
            due = self._frame_due + self._decoder.pending / MIN_BYTES_PER_S
            with anyio.CancelScope(deadline=due) as scope:
                chunk = await anext(self._chunks)
                done = True
            if scope.cancelled_caught:
                raise httpx.ReadTimeout(_TOO_SLOW)
        except StopAsyncIteration:
            raise Unreachable(f"{self._http.base_url} ended the stream") from None
        except httpx.TransportError as error:
            raise _unreachable(self._http, error) from error
        finally:
            if not done:
                await self.aclose()
        try:
            for frame in self._decoder.feed(chunk):
                self._take(frame)
                self._frame_due = math.inf
        except (sse.FrameTooLong, Internal) as error:
            await self.aclose()
            raise Internal(f"the server's stream cannot be read: {error}") from None
        if not self._decoder.pending:
            self._frame_due = math.inf
        elif self._frame_due == math.inf:
            self._frame_due = anyio.current_time() + SILENCE_S

    def _take(self, frame: sse.Frame) -> None:
        """Convert a frame to stream parts.

        :raises Internal: if the frame is invalid.
        """
        cursor = _short_text(frame.id, "cursor")
        if frame.comment == sse.CAUGHT_UP_COMMENT:
            self._cursor = cursor or self._cursor
            self._ready.append(CaughtUp(self._cursor or "0"))
        elif frame.comment == sse.DRAINING_COMMENT:
            self._ready.append(Draining(self._cursor or "0"))
        elif frame.data and cursor is not None:
            try:
                event = codec.from_plain(Event, _json(frame.data.encode(), "an event"))
            except ValueError as error:
                raise Internal(f"the server sent an invalid event: {shown(str(error))}") from error
            self._cursor = cursor
            self._ready.append(StreamItem(cursor, event))


def _short_text(text: str | None, name: str) -> str | None:
    """Return a text from the server, such as a cursor. It is sent back in a URL, so it must be short.

    :raises Internal: if it is longer than :data:`MAX_NAME`.
    """
    if text is not None and len(text) > MAX_NAME:
        raise Internal(f"its {name} has more than {MAX_NAME:,} characters")
    return text

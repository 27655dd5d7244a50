"""The way to a daemon: operations as HTTP requests, streams as server-sent events."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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
from agent_orchestrator.fields import check
from agent_orchestrator.operations import (
    CaughtUp,
    Draining,
    Operation,
    StreamItem,
    StreamPart,
    StreamRequest,
)
from agent_orchestrator.ports import Reply, Subscription
from agent_orchestrator.wire import codec, problems, sse, strict_json

Req = TypeVar("Req")
Res = TypeVar("Res")

Token = str | Callable[[], str | None] | None

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
"""How long a call without a waiting time of its own may take."""

SILENCE_S: Final = 45.0
"""A stream silent for so long is broken: the server sends a comment every 15 s."""


class HttpTransport:
    """Reaches a daemon over HTTP.

    :param http: a client whose ``base_url`` is the daemon's; it is not closed here.
    :param token: the bearer token, or what returns the one to send next.
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
        headers = self._headers()
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = strict_json.dumps(body).encode()
        waits = 0.0
        if (
            not operation.is_mutation
        ):  # only a look waits; elsewhere it is the time of something else
            waits = getattr(request, "timeout_s", None) or getattr(request, "wait_s", None) or 0.0
        answer_s = None if operation.takes_long else ANSWER_TIMEOUT_S + float(waits)
        timeout = httpx.Timeout(answer_s, connect=CONNECT_TIMEOUT_S)
        try:
            response = await self._http.request(
                operation.method,
                path,
                params=query or None,
                content=content,
                headers=headers,
                timeout=timeout,
            )
        except httpx.TransportError as error:
            raise _unreachable(self._http, error) from error
        plain = _body(response)
        if response.status_code >= 400:
            raise problems.from_body(response.status_code, plain)
        try:
            answer = codec.from_plain(operation.answer, plain)
        except ValueError as error:
            raise Internal(
                f"the server's answer is not one of {operation.name}: {error}"
            ) from error
        return Reply(answer, replayed=response.headers.get("Idempotent-Replayed") == "true")

    @asynccontextmanager
    async def subscribe(self, request: StreamRequest) -> AsyncIterator[Subscription]:
        async with AsyncExitStack() as stack:
            subscription = _SseSubscription(self._http, self._headers, request)
            stack.push_async_callback(subscription.aclose)
            await subscription.open()
            yield subscription


def _unreachable(http: httpx.AsyncClient, error: httpx.TransportError) -> Unreachable:
    # On trio, what TLS found is told by the causes only.
    reason: BaseException | None = error
    while reason is not None and not str(reason):
        reason = reason.__cause__ or reason.__context__
    return Unreachable(f"no answer from {http.base_url}: {reason or type(error).__name__}")


def _body(response: httpx.Response) -> Any:
    try:
        return strict_json.loads(response.content)
    except InvalidRequest:
        return None


class _SseSubscription:
    """A place in a stream. Broken off by a cancellation, it goes on from its cursor."""

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
        self._ready: list[StreamPart] = []

    async def open(self) -> None:
        """Connect at the cursor.

        :raises OrchestratorError: if the stream is refused.
        :raises Unreachable: if there is no answer.
        """
        params: list[tuple[str, str | int | float | bool | None]] = [
            ("sessionId", one) for one in self._request.session_ids
        ]
        if self._cursor is not None:
            params.append(("cursor", self._cursor))
        if self.epoch is not None:
            params.append(("epoch", self.epoch))
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
        self._stack = AsyncExitStack()
        try:
            response = await self._stack.enter_async_context(
                self._http.stream(
                    "GET",
                    "/stream",
                    params=params,
                    headers=self._headers() | {"Accept": "text/event-stream"},
                    timeout=timeout,
                )
            )
            if response.status_code != 200:
                await response.aread()
                raise problems.from_body(response.status_code, _body(response))
        except httpx.TransportError as error:
            await self.aclose()
            raise _unreachable(self._http, error) from error
        except OrchestratorError:
            await self.aclose()
            raise
        self.epoch = response.headers.get(sse.EPOCH_HEADER, self.epoch)
        self._decoder = sse.Decoder()
        self._chunks = response.aiter_bytes()

    async def aclose(self) -> None:
        chunks, self._chunks = self._chunks, None
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()
            if chunks is not None:
                # httpx reads through generators within generators. Asked for the rest, each finds
                # the response closed and ends, where trio would complain of one left in the middle.
                with contextlib.suppress(httpx.HTTPError, httpx.StreamError):
                    async for _ in chunks:
                        pass

    async def over(self) -> None:
        # Whoever sends ends what is sent: that is told by receiving it.
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
            chunk = await anext(self._chunks)
            done = True
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
        except sse.FrameTooLong as error:
            await self.aclose()
            raise Internal(f"the server's stream cannot be read: {error}") from None

    def _take(self, frame: sse.Frame) -> None:
        if frame.comment == sse.CAUGHT_UP_COMMENT:
            self._cursor = frame.id or self._cursor
            self._ready.append(CaughtUp(self._cursor or "0"))
        elif frame.comment == sse.DRAINING_COMMENT:
            self._ready.append(Draining(self._cursor or "0"))
        elif frame.data and frame.id is not None:
            try:
                event = codec.from_plain(Event, strict_json.loads(frame.data.encode()))
            except (InvalidRequest, ValueError) as error:
                raise Internal(f"the server's event is not one: {error}") from error
            self._cursor = frame.id
            self._ready.append(StreamItem(frame.id, event))

"""A hostile server with oversized or malformed answers: every call ends with a clear error."""

import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs
import pytest
import sniffio
from pace import allowed

from agent_orchestrator.domain.errors import (
    Internal,
    InvalidRequest,
    OrchestratorError,
    Unavailable,
    Unreachable,
)
from agent_orchestrator.fields import specs
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations.events import StreamRequest
from agent_orchestrator.operations.runs import GET_RUN, LIST_RUNS
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.transport import Transport
from agent_orchestrator.remote import connect
from agent_orchestrator.transports import http
from agent_orchestrator.wire import codec, sse

pytestmark = pytest.mark.anyio

LARGEST = 200_000
VALUES = 5_000
PIECE = b"x" * 60_000

Answer = Callable[[], Iterator[bytes]]
"""Yields the bytes of an answer, which may be endless."""


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    first = [b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Connection: close"]
    return b"\r\n".join([*first, *lines, b"", b""])


def endless(first: bytes, again: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield again


def whole(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> Iterator[bytes]:
    yield head(b"Content-Length: %d" % len(body), *lines, status=status) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def answering(answer: Answer, pause_s: float = 0.0) -> AsyncIterator[Transport]:
    """Serve this answer to every request; yield a transport to it."""

    async def talk(line: anyio.abc.SocketStream) -> None:
        async with line:
            with_end = b""
            try:
                while b"\r\n\r\n" not in with_end:
                    with_end += await line.receive()
                for piece in answer():
                    await line.send(piece)
                    await anyio.sleep(pause_s)
                await line.send_eof()
                async for _ in line:  # unread data would reset the connection
                    pass
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, talk)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        try:
            async with connect(f"http://127.0.0.1:{port}") as client:
                yield client.transport
        finally:
            tasks.cancel_scope.cancel()


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", LARGEST)
    monkeypatch.setattr(http, "MAX_VALUES", VALUES)
    monkeypatch.setattr(sse, "MAX_FRAME", LARGEST)


DEEP = b'{"a":' * 60_000
CHUNKED = b"Transfer-Encoding: chunked"
BOMB = gzip.compress(b" " * 4 * LARGEST)

TOO_LARGE: dict[str, tuple[str, Answer]] = {
    "one huge text": ("200,000 bytes", lambda: whole(b'{"a":"%b"}' % (b"a" * LARGEST))),
    "a length": ("200,000 bytes", lambda: endless(head(b"Content-Length: 9999999999"), PIECE)),
    "until it closes": ("200,000 bytes", lambda: endless(head(), PIECE)),
    "chunks": ("200,000 bytes", lambda: endless(head(CHUNKED), chunk(PIECE))),
    "many values": ("5,000 values", lambda: whole(b'{"a":[' + b"[]," * VALUES + b"0]}")),
    "many names": (
        "5,000 values",
        lambda: whole(b"{" + b",".join(b'"%d":0' % n for n in range(VALUES)) + b"}"),
    ),
    "a bomb": ("gzip", lambda: whole(BOMB, b"Content-Encoding: gzip")),
    "a bomb in a bomb": (
        "gzip, gzip",
        lambda: whole(gzip.compress(BOMB), b"Content-Encoding: gzip, gzip"),
    ),
    "an unknown coding": ("br", lambda: whole(b"{}", b"Content-Encoding: br")),
    "an error": ("200,000 bytes", lambda: whole(b" " * LARGEST + b"{}", status=b"409 Conflict")),
}
"""Answers above a limit, and the words of the error."""

UNREADABLE: dict[str, Answer] = {
    "deep": lambda: whole(DEEP),
    "deep and closed": lambda: whole(b'{"run":' * 20_000 + b"0" + b"}" * 20_000),
    "twins": lambda: whole(b'{"run":{},"run":{}}'),
    "digits": lambda: whole(b'{"run":%b}' % (b"9" * 150_000)),
    "nothing": lambda: whole(b""),
    "not UTF-8": lambda: whole(b"\xff" * 150_000),
    "a list": lambda: whole(b"[0]"),
    "wrong kinds": lambda: whole(b'{"run":0,"session":[],"message":"x","runs":{"a":0}}'),
    "an error without words": lambda: whole(DEEP, status=b"400 Bad Request"),
    "moved": lambda: whole(b"", b"Location: /elsewhere", status=b"307 Temporary Redirect"),
    "headers": lambda: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: %b\r\n" % PIECE),
    "one header": lambda: endless(b"HTTP/1.1 200 OK\r\nX-More: ", PIECE),
    "no header": lambda: endless(b"", PIECE),
    "a chunk's head": lambda: endless(head(CHUNKED), b"1" * 60_000),
    "trailers": lambda: endless(head(CHUNKED) + b"0\r\n", b"X-More: %b\r\n" % PIECE),
}
"""Malformed answers, some of them endless."""


def least(kind: type) -> dict[str, Any]:
    """Return values for the required fields of a command."""
    found: dict[str, Any] = {}
    for name, spec in specs(kind).items():
        if spec.required:
            item = spec.item
            entry = "x" if item is None or not attrs.has(item) else least(item)
            text = "/x" if name == "path" else (spec.choices or ("x",))[0]
            known = {str: text, int: 1, float: 1.0, dict: {}, bool: True, list: [entry]}
            found[name] = next(known[one] for one in known if one in spec.kinds)
    return found


def sample(operation: Operation[Any, Any]) -> Any:
    return codec.command(operation.request, least(operation.request))


async def refusals(transport: Transport) -> list[Exception]:
    """Return the error of each call. On trio a few calls are enough, as all share the same code."""
    found = []
    is_trio = sniffio.current_async_library() == "trio"
    answers = [one for one in OPERATIONS if not one.answers_lines]
    for operation in answers[:: 12 if is_trio else 1]:
        with anyio.fail_after(60), pytest.raises((OrchestratorError, Unreachable)) as refused:
            await transport.call(operation, sample(operation))
        assert not isinstance(refused.value, InvalidRequest) or not refused.value.details
        found.append(refused.value)
    return found


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("shape", TOO_LARGE)
async def test_answer_above_a_limit_is_refused_and_names_the_limit(shape: str) -> None:
    named, answer = TOO_LARGE[shape]
    async with answering(answer) as transport:
        for error in await refusals(transport):
            assert isinstance(error, Internal)
            assert named in error.message
            assert len(error.message) < 300


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("shape", UNREADABLE)
async def test_malformed_answer_is_a_clear_error(shape: str) -> None:
    async with answering(UNREADABLE[shape]) as transport:
        for error in await refusals(transport):
            assert 0 < len(str(error)) < 1_000


REASONS: dict[bytes, str] = {
    b'{"run":' * 501 + b"0" + b"}" * 501: "is nested too deeply",
    b'{"run":{},"run":{}}': "has the key 'run' twice",
    b'{"run":%b}' % (b"9" * 101): "more than 100 digits",
    b"<html>": "is not JSON",
    b"": "is not JSON",
    b"\xff": "is not UTF-8",
}


@pytest.mark.parametrize("number", range(len(REASONS)))
async def test_error_says_why_an_answer_cannot_be_read(number: int) -> None:
    body, reason = [*REASONS.items()][number]
    async with answering(lambda: whole(body)) as transport:
        with anyio.fail_after(60), pytest.raises(Internal) as refused:
            await transport.call(GET_RUN, sample(GET_RUN))
    assert refused.value.message.startswith("the server's answer ")
    assert reason in refused.value.message


# --- slow answers ---------------------------------------------------------------------------

SLOW: dict[str, Answer] = {
    "a body": lambda: endless(head(), b"x"),
    "a body in chunks": lambda: endless(head(CHUNKED), chunk(b"x")),
    "a header": lambda: endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"x"),
    "answers before the answer": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_TIMEOUT_S", "SILENCE_S", "CONNECT_TIMEOUT_S"):
        monkeypatch.setattr(http, name, allowed(0.4))


@pytest.mark.usefixtures("short_times")
@pytest.mark.parametrize("shape", SLOW)
async def test_answer_that_is_too_slow_is_unreachable(shape: str) -> None:
    async with answering(SLOW[shape], pause_s=0.01) as transport:
        with anyio.fail_after(60), pytest.raises(Unreachable, match="too slow"):
            await transport.call(GET_RUN, sample(GET_RUN))
        with anyio.fail_after(60), pytest.raises(Unreachable, match="too slow"):
            async with transport.subscribe(StreamRequest()) as subscription:
                await subscription.receive()


async def test_timeout_grows_with_the_size_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    slowness = allowed(2)  # of this machine now
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 0.3 * slowness)
    monkeypatch.setattr(http, "MIN_BYTES_PER_S", 20 / slowness)
    body = b'{"runs":[],"next_cursor":null}'
    answer = [head(b"Content-Length: %d" % len(body)), *(b"%c" % one for one in body)]
    async with answering(lambda: iter(answer), pause_s=0.02 * slowness) as transport:
        with anyio.fail_after(60 * slowness):
            found = await transport.call(LIST_RUNS, sample(LIST_RUNS))
    assert found.answer.runs == ()


# --- streams --------------------------------------------------------------------------------


def stream(*lines: bytes) -> bytes:
    start = (b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", b"Connection: close", *lines)
    return b"\r\n".join([*start, b"", b""])


def frame(data: bytes, cursor: bytes = b"1") -> Iterator[bytes]:
    yield stream() + b"id: %b\nevent: x\ndata: %b\n\n" % (cursor, data)


STREAMS: dict[str, tuple[str, Answer]] = {
    "a frame without an end": ("200,000 bytes", lambda: endless(stream() + b"data: ", PIECE)),
    "a frame of lines": ("200,000 bytes", lambda: endless(stream(), b"data:\n" * 1000)),
    "a comment without an end": ("200,000 bytes", lambda: endless(stream() + b": ", PIECE)),
    "many values": ("5,000 values", lambda: frame(b'{"data":[' + b"[]," * VALUES + b"0]}")),
    "deep": ("an event", lambda: frame(b'{"data":' * 2000)),
    "deep and closed": (
        "an event is nested too deeply",
        lambda: frame(b'{"data":' * 2000 + b"0" + b"}" * 2000),
    ),
    "digits": ("more than 100 digits", lambda: frame(b'{"data":%b}' % (b"9" * 101))),
    "twins": ("an event has the key 'data' twice", lambda: frame(b'{"data":{},"data":{}}')),
    "not an event": ("invalid event", lambda: frame(b"[]")),
    "a long cursor": ("256 characters", lambda: frame(b"{}", cursor=PIECE)),
    "a long epoch": (
        "256 characters",
        lambda: endless(stream(b"Log-Epoch: " + PIECE), b": still here\n\n"),
    ),
    "a bomb": ("gzip", lambda: endless(stream(b"Content-Encoding: gzip"), BOMB)),
    "a refusal": (
        "200,000 bytes",
        lambda: whole(b" " * LARGEST + b"{}", status=b"409 Conflict"),
    ),
    "a bomb of a refusal": (
        "gzip",
        lambda: whole(BOMB, b"Content-Encoding: gzip", status=b"409 Conflict"),
    ),
}


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("shape", STREAMS)
async def test_malformed_stream_is_a_clear_error(shape: str) -> None:
    named, answer = STREAMS[shape]
    async with answering(answer) as transport:
        with anyio.fail_after(60), pytest.raises(Internal) as refused:
            async with transport.subscribe(StreamRequest()) as subscription:
                await subscription.receive()
    assert named in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.usefixtures("short_times")
async def test_stream_frame_that_is_too_slow_is_unreachable() -> None:
    answers = [stream() + b": caught up\n\n", *[b"data: x\n"] * 2000]
    way = answering(lambda: iter(answers), pause_s=0.01)
    async with way as transport, transport.subscribe(StreamRequest()) as subscription:
        with anyio.fail_after(60):
            assert len(await subscription.receive()) == 1
            with pytest.raises(Unreachable, match="too slow"):
                await subscription.receive()


async def test_stream_with_only_keep_alives_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout_s = allowed(0.4)
    monkeypatch.setattr(http, "SILENCE_S", timeout_s)
    answers = [stream(), *[b": still here\n\n"] * 30, b": caught up\n\n"]
    way = answering(lambda: iter(answers), pause_s=timeout_s / 20)
    async with way as transport, transport.subscribe(StreamRequest()) as subscription:
        with anyio.fail_after(60 + 3 * timeout_s):
            assert len(await subscription.receive()) == 1


@pytest.mark.parametrize("asked", [10**90, -(10**90), 1e308, "9" * 90, None, [], True])
async def test_retry_after_of_a_server_is_limited_to_an_hour(asked: object) -> None:
    error = {"code": "unavailable", "message": "", "details": {"retry_after_s": asked}}
    body = json.dumps({"error": error}).encode()
    async with answering(lambda: whole(body, status=b"503 No")) as transport:
        with pytest.raises(Unavailable) as refused:
            await transport.call(GET_RUN, sample(GET_RUN))
    assert 0 <= refused.value.retry_after_s <= 3600

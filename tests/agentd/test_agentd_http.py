"""Below the app: clients that do not speak HTTP/1.1, break off, or disconnect."""

import asyncio
import json
import logging
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pace import allowed
from serving import Serving, exchange, serving, until
from websockets.asyncio.client import connect

pytestmark = pytest.mark.anyio

HOST = b"Host: localhost\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /stream HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


async def ask(server: Serving, request: bytes) -> tuple[int, bytes]:
    """Return the status and the whole answer, after which the connection was closed."""
    return await anyio.to_thread.run_sync(exchange, server.address, request)


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower().split(b"\r\n")
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"code", "message", "details"}
    return error


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


async def test_other_http_versions_are_refused(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    for request in (
        PREFACE,
        PREFACE + SETTINGS,
        b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n",
        b"HEAD /health HTTP/3.0\r\n" + HOST + b"\r\n",
    ):
        status, answer = await ask(server, request)
        assert status == 505
        if not request.startswith(b"HEAD"):
            assert problem(answer)["message"] == "only HTTP/1.1 is supported"
    offer = (
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    )
    status, answer = await ask(server, b"GET /health HTTP/1.1\r\n" + HOST + offer)
    assert status == 200
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"h2c" not in answer
    assert warnings(caplog) == []


async def test_malformed_http_gets_an_error_of_the_api(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    post = b"POST /sessions HTTP/1.1\r\n" + HOST
    for request, expected in [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (post + b"Content-Length: -1\r\n\r\n{}", 400),
        (post + CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 100_000 + b"\r\n\r\n", 431),
        (post + b"Transfer-Encoding: gzip\r\n\r\n{}", 501),
    ]:
        status, answer = await ask(server, request)
        assert status == expected, request[:60]
        assert answer.lower().count(b"connection: close") == 1
        assert problem(answer)["code"] == "invalid_request"
    assert await server.event_count() == 0
    assert warnings(caplog) == []


async def test_failed_websocket_handshake_closes_its_connection(server: Serving) -> None:
    before = len(asyncio.all_tasks())
    for request, expected in [
        (UPGRADE + b"Sec-WebSocket-Version: 13\r\n\r\n", 400),
        (UPGRADE + KEY + b"\r\n", 400),
        (UPGRADE + KEY + b"Sec-WebSocket-Version: 8\r\n\r\n", 426),
        # A frame before the handshake is answered (RFC 6455, 4.1, forbids it).
        (UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\n\r\n\x81\x80\0\0\0\0", 400),
    ]:
        status, answer = await ask(server, request)
        assert status == expected
        assert problem(answer)["code"] == "invalid_request"
        assert (b"sec-websocket-version: 13" in answer) == (status == 426)
    await until(lambda: len(asyncio.all_tasks()) <= before, "their tasks have ended")


async def test_readers_that_disconnect_during_history_leave_no_task_or_warning(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    session = await server.session("talkative")
    await server.say(session, "4000")
    before = len(asyncio.all_tasks())
    # The second request waits for the end of the stream, which never comes.
    request = (b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n") * 2
    for reset in (True, False):
        readers = [socket.create_connection(server.address) for _ in range(30)]
        for reader in readers:
            reader.sendall(request)
        for reader in readers:
            await anyio.to_thread.run_sync(reader.recv, 1000)
            if reset:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            reader.close()
    await until(lambda: server.readers == 0, "the places of all readers are given up")
    await until(lambda: len(asyncio.all_tasks()) <= before, "their tasks have ended")
    assert warnings(caplog) == []


async def test_unauthenticated_websocket_is_closed_at_the_shutdown(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, tokens=("correct-horse",)) as server,
        connect(server.url.replace("http", "ws") + "/stream") as reader,
    ):
        await until(
            lambda: len(server.lifetime._until_draining | server.lifetime._until_closing) == 1,
            "it is waited for",
        )
        server.lifetime.close()
        with anyio.fail_after(60):
            await reader.wait_closed()
        assert reader.close_code == 1001


async def test_shutdown_does_not_wait_long_for_stalled_readers(tmp_path: Path) -> None:
    with ExitStack() as stalled:
        async with serving(tmp_path) as server:
            session = await server.session("talkative")
            await server.say(session, "4000")
            for _ in range(5):
                reader = stalled.enter_context(socket.create_connection(server.address))
                reader.sendall(b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n")
                await anyio.to_thread.run_sync(reader.recv, 10)
            started = time.perf_counter()
        assert time.perf_counter() - started < allowed(4)


async def test_leading_slashes_are_part_of_the_path(server: Serving) -> None:
    for path in (b"//sessions", b"///sessions", b"//health", b"//stream"):
        end = HOST + b"Connection: close\r\n\r\n"
        status, answer = await ask(server, b"GET " + path + b" HTTP/1.1\r\n" + end)
        assert (status, problem(answer)["code"]) == (404, "not_found")


async def test_content_encoding_and_repeated_content_types_are_refused(server: Serving) -> None:
    kind = b"Content-Type: application/json\r\n"
    for headers, expected in [
        (kind, 201),
        (kind + b"Content-Encoding: identity\r\n", 201),
        (kind + b"Content-Encoding: gzip\r\n", 415),
        (kind + b"Content-Encoding: identity\r\nContent-Encoding: br\r\n", 415),
        (kind + kind, 400),
        (kind + b"Content-Type: text/plain\r\n", 400),
    ]:
        head = b"POST /sessions HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n"
        status, _ = await ask(server, head + HOST + headers + b"\r\n{}")
        assert status == expected, headers

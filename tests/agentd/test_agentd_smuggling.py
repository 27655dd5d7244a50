"""Request smuggling: requests whose end a proxy and the daemon could see at different places."""

import socket

import anyio
import pytest
from serving import Serving

pytestmark = pytest.mark.anyio

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
HIDDEN = b"POST /sessions HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\n\r\n{}"
"""The hidden request, which would create a session."""

LENGTH = b"Content-Length: %d\r\n" % (len(HIDDEN) + 5)
CHUNKED = b"Transfer-Encoding: chunked\r\n"

PAIRS = {
    "length and coding": LENGTH + CHUNKED,
    "coding and length": CHUNKED + LENGTH,
    "two lengths": b"Content-Length: 5\r\n" + LENGTH,
    "two lengths in one": b"Content-Length: 5, 6\r\n",
    "a length with a sign": b"Content-Length: +5\r\n",
    "a length in hexadecimal": b"Content-Length: 0x5\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n" + LENGTH,
    "a coding that only looks like one": b"Transfer-Encoding: xchunked\r\n" + LENGTH,
    "a coding after it": b"Transfer-Encoding: chunked, identity\r\n" + LENGTH,
    "two codings": CHUNKED + b"Transfer-Encoding: identity\r\n" + LENGTH,
    "a coding on the next line": b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH,
    "a null in the name": b"Transfer\x00-Encoding: chunked\r\n" + LENGTH,
    "a lone carriage return": b"X: y\rTransfer-Encoding: chunked\r\n" + LENGTH,
}


def answers(address: tuple[str, int], sent: bytes) -> bytes:
    """Return all data until the daemon closes the connection."""
    found = b""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(sent)
        while part := connection.recv(65536):
            found += part
    return found


@pytest.mark.parametrize("pair", PAIRS)
async def test_request_with_an_ambiguous_length_is_refused(server: Serving, pair: str) -> None:
    head = b"POST /sessions HTTP/1.1\r\n" + HOST + JSON + PAIRS[pair] + b"\r\n"
    sent = head + b"0\r\n\r\n" + HIDDEN
    found = await anyio.to_thread.run_sync(answers, server.address, sent)
    assert found.count(b"HTTP/1.1 ") == 1, found
    assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), found
    assert await server.event_count() == 0


async def test_hidden_request_is_executed_without_the_ambiguous_length(server: Serving) -> None:
    """A control for the test above: without the ambiguity the second request is executed."""
    sent = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN
    closing = sent.replace(b"Content-Length: 2", b"Connection: close\r\nContent-Length: 2")
    found = await anyio.to_thread.run_sync(answers, server.address, closing)
    assert found.count(b"HTTP/1.1 ") == 2
    assert await server.event_count() == 1


LONG = {
    "one header": b"X: " + b"a" * 17_000 + b"\r\n",
    "many headers": b"".join(b"X-%d: y\r\n" % number for number in range(3000)),
}


@pytest.mark.parametrize("headers", [*LONG, "the target"])
async def test_long_headers_are_refused_however_they_arrive(server: Serving, headers: str) -> None:
    target = b"/health" + (b"?" + b"a" * 17_000 if headers == "the target" else b"")
    sent = b"GET " + target + b" HTTP/1.1\r\n" + HOST + LONG.get(headers, b"") + b"\r\n"
    for _ in range(5):  # one segment or several
        found = await anyio.to_thread.run_sync(answers, server.address, sent)
        assert found.startswith(b"HTTP/1.1 431"), found[:200]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://127.0.0.1/health", 200),
        (b"http://127.0.0.1?x=http://y", 200),  # the page
        (b"http://evil.example/health", 400),
        (b"http://127.0.0.1@evil.example/health", 400),
        (b"http://127.0.0.1:80/health", 400),
        (b"https://evil.example/health", 400),
        (b"/health?next=http://evil.example/", 200),
        (b"/health?http://evil.example", 200),
    ],
)
async def test_absolute_target_must_match_the_host_header(
    server: Serving, target: bytes, status: int
) -> None:
    sent = b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    found = await anyio.to_thread.run_sync(answers, server.address, sent)
    assert found.startswith(b"HTTP/1.1 %d" % status), found[:300]

"""Silent and slow connections: they are closed, and others are served meanwhile."""

import gc
import resource
import socket
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from pace import allowed_work
from serving import serving, sse_reader, until
from websockets.asyncio.client import connect

from agentd.server import MAX_UNAUTHENTICATED

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"


async def until_closed(stream: anyio.abc.SocketStream) -> None:
    """Wait until the other side closes; drop the data before."""
    with anyio.fail_after(60):
        try:
            while True:
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


@pytest.mark.parametrize("said", [b"", b"GET /sess", b"GET /sessions HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_connection_without_a_complete_request_is_closed(tmp_path: Path, said: bytes) -> None:
    async def drip(stream: anyio.abc.SocketStream) -> None:
        # The server closes the connection meanwhile, as the test expects.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            for byte in said:
                await stream.send(bytes([byte]))
            while said:
                await anyio.sleep(0.05)
                await stream.send(b"a")

    async with serving(tmp_path, tokens=(TOKEN,), first_request_s=0.5) as server:
        began = time.monotonic()
        async with (
            await anyio.connect_tcp(*server.address) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(drip, stream)
            await until_closed(stream)
            tasks.cancel_scope.cancel()
        assert time.monotonic() - began >= 0.5


async def test_authenticated_connection_may_be_idle(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(TOKEN,), first_request_s=3.0) as server:
        stream = await anyio.connect_tcp(*server.address)
        async with stream:
            asked = f"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            for pause_s in (0.0, 3.5):
                await anyio.sleep(pause_s)
                await stream.send(asked.encode())
                assert (await stream.receive()).startswith(b"HTTP/1.1 200")


async def test_request_with_a_slow_body_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(TOKEN,), body_s=0.5) as server:
        stream = await anyio.connect_tcp(*server.address)
        async with stream:
            head = (
                f"POST /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
            await stream.send(head.encode())
            with anyio.fail_after(45):
                assert (await stream.receive()).startswith(b"HTTP/1.1 400")
        assert await server.event_count() == 0


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Raise the limit of descriptors: both ends of the connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_thousands_of_idle_connections_do_not_block_other_callers(
    tmp_path: Path, descriptors: None
) -> None:
    # They are closed because of their number, not because of their age.
    async with serving(tmp_path, tokens=(TOKEN,), first_request_s=600) as server:
        session = await server.session()
        with ExitStack() as held:
            async with sse_reader(server.client, f"/stream?sessionId={session}") as frames:
                await anext(frames)
                gc.collect()
                gc.freeze()  # the collector need not scan the objects of earlier tests
                held.callback(gc.unfreeze)
                took: list[float] = []
                idle: list[socket.socket] = []
                async with httpx.AsyncClient(
                    base_url=server.url, headers=server.client.headers
                ) as other:
                    for number in range(2000):
                        one = held.enter_context(socket.socket())
                        one.setblocking(False)  # noqa: FBT003
                        one.connect_ex(server.address)
                        idle.append(one)
                        if number % 10 == 0:
                            # The time of this process counts; other tests' load does not.
                            began = time.process_time()
                            with anyio.fail_after(45):
                                answer = await other.get(f"/sessions/{session}")
                            took.append(time.process_time() - began)
                            assert answer.status_code == 200
                    took.sort()
                    assert took[int(len(took) * 0.99)] < allowed_work(0.25)
                # New callers are served, and an existing stream goes on.
                async with httpx.AsyncClient(
                    base_url=server.url, headers=server.client.headers
                ) as late:
                    await late.patch(f"/sessions/{session}", json={"title": "new"})
                # Connections that the full backlog dropped are retried after 1, 3, 7 and 15 s.
                with anyio.fail_after(120):
                    assert (await anext(frames)).event == "session.updated"
                    while sum(is_open(one) for one in idle) > MAX_UNAUTHENTICATED:
                        await anyio.sleep(0.01)
                assert sum(is_open(one) for one in idle) > MAX_UNAUTHENTICATED - 20


def is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def test_number_of_streams_of_one_principal_is_limited(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(TOKEN, "another" * 5), max_streams=2) as server:
        session = await server.session()
        path = f"/stream?sessionId={session}"
        url = server.url.replace("http", "ws") + path
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with sse_reader(server.client, path) as frames:
            await anext(frames)
            async with connect(url, additional_headers=headers) as socket_:
                await socket_.recv()
                refused = await server.client.get(path)
                assert refused.status_code == 429
                assert refused.json()["error"]["details"] == {"streams": 2}
                async with connect(url, additional_headers=headers) as third:
                    assert "rate_limited" in str(await third.recv())
                other = {"Authorization": f"Bearer {'another' * 5}"}
                async with sse_reader(server.client, path, headers=other) as theirs:
                    await anext(theirs)
        # Both places are free again once the daemon has noticed.
        await until(lambda: server.readers == 0, "the streams are over")
        async with sse_reader(server.client, path) as one, sse_reader(server.client, path) as two:
            await anext(one)
            await anext(two)


async def test_body_that_came_while_the_daemon_was_stopped_is_accepted(tmp_path: Path) -> None:
    body = b'{"title": "in time"}'
    head = b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(tmp_path, body_s=3.0) as server:
        with socket.create_connection(server.address, timeout=60) as connection:
            connection.sendall(head + body[:5])
            await anyio.sleep(0.2)  # until it waits for the rest; that is not observable
            connection.sendall(body[5:])
            time.sleep(3.5)  # noqa: ASYNC251 - the loop is blocked, as in a stopped process
            with anyio.fail_after(60):
                answer = await anyio.to_thread.run_sync(connection.recv, 65536)
    assert answer.startswith(b"HTTP/1.1 201 "), answer


HANDSHAKE = (
    b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)


async def test_websocket_frames_are_not_decompressed(tmp_path: Path) -> None:
    """A few bytes would expand a thousandfold before their size is checked."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(b"a" * 50_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    async with (
        serving(tmp_path, tokens=(TOKEN,)) as server,
        await anyio.connect_tcp(*server.address) as stream,
    ):
        await stream.send(HANDSHAKE)
        answer = await stream.receive()
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"permessage-deflate" not in answer
        # A whole text frame, its first reserved bit set: deflated (RFC 7692, 6).
        head = b"\xc1\xfe" + struct.pack(">H", len(bomb)) + bytes(4)
        tracemalloc.start()
        try:
            await stream.send(head + bomb)
            await until_closed(stream)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 5_000_000


@pytest.mark.parametrize("token", ["", f"Authorization: Bearer {TOKEN}\r\n"])
async def test_endless_websocket_message_is_not_buffered(tmp_path: Path, token: str) -> None:
    async with (
        serving(tmp_path, tokens=(TOKEN,)) as server,
        await anyio.connect_tcp(*server.address) as stream,
    ):
        await stream.send(HANDSHAKE.replace(b"\r\n\r\n", b"\r\n" + token.encode() + b"\r\n"))
        assert (await stream.receive()).startswith(b"HTTP/1.1 101")
        part = b"a" * 65536
        tracemalloc.start()
        try:
            with suppress(anyio.BrokenResourceError), anyio.fail_after(60):
                await stream.send(b"\x81\xff" + struct.pack(">Q", 1 << 40) + bytes(4))
                for _ in range(320):
                    await stream.send(part)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 5_000_000
        await until_closed(stream)
        await until(lambda: server.metrics.streams == 0, "its place is given up")

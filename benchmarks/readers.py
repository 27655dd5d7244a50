"""Measure many readers of one session, compared with a server that sends them the same bytes in large pieces."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

import anyio

from agent_orchestrator import Client, connect
from agent_orchestrator.wire.sse import CAUGHT_UP, Decoder
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import Server, agentd, server
from benchmarks.turns import PATIENCE_S

CONFIG: Final = """\
[providers.talk]
runner = "function"
target = "benchmarks.function_agents:talk"

[routing]
default = "talk"
"""

_LAST: Final = b"event: run.completed"


class Reader(asyncio.Protocol):
    """One reader of a stream. It keeps what it receives, which is checked after the time was taken."""

    def __init__(self, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
        self._pieces: list[bytes] = []
        self._tail = self._mark = b""
        self._marked = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if self._mark in self._tail + data:
            self._marked.set()
        self._tail = data[-100:]

    async def read_until(self, mark: bytes) -> None:
        """Wait for these bytes, of which nothing may have come yet."""
        if mark not in b"".join(self._pieces):
            self._mark, self._marked = mark, asyncio.Event()
            await self._marked.wait()

    def body(self) -> bytes:
        """Return what came after the headers, without the framing of its transfer."""
        rest, parts = b"".join(self._pieces).partition(b"\r\n\r\n")[2], []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            parts.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return b"".join(parts)


def measure(effort: Effort, directory: Path) -> list[Figure]:
    readers = effort.of(full=100, quick=100, smoke=4)
    events = effort.of(full=500, quick=500, smoke=20)
    rounds = effort.of(full=7, quick=3, smoke=1)
    with agentd(directory / "daemon", config=CONFIG) as daemon:
        return anyio.run(partial(_figures, daemon, directory, readers, events, rounds))


async def _figures(
    daemon: Server, directory: Path, count: int, events: int, rounds: int
) -> list[Figure]:
    live, late, alone, bare = [], [], [], []
    sent = directory / "sent"
    async with connect(daemon.url) as client:
        for number in range(rounds + 1):
            alone.append((await _live(client, daemon, 1, events))[0])
            seconds, session_id, body = await _live(client, daemon, count, events)
            live.append(seconds)
            path = f"/stream?sessionId={session_id}&cursor=0"
            late.append(await _late(daemon, path, count, body))
            sent.write_bytes(body)
            argv = [sys.executable, "-m", "benchmarks.bare_stream", "--file", str(sent)]
            with server(directory / f"bare{number}", argv=argv) as running:
                bare.append(await _late(running, "/", count, body))
    least = median(bare[1:])  # the first round warms up
    behind, many, one = (median(taken[1:] or taken) for taken in (late, live, alone))
    return [
        Figure(
            name=f"{count} readers catch up on {events} events: agentd / the same bytes by 64 KiB",
            value=behind / least,
            bound=3,
            detail=f"{behind * 1000:.0f} ms / {least * 1000:.0f} ms",
        ),
        Figure(
            name=f"{count} readers follow a run with {events} events / one reader, and the same bytes by 64 KiB",
            value=many / (one + least),
            bound=1.5,
            detail=f"{many * 1000:.0f} ms / ({one * 1000:.0f} + {least * 1000:.0f}) ms",
        ),
    ]


async def _live(
    client: Client, daemon: Server, count: int, events: int
) -> tuple[float, str, bytes]:
    """Return the seconds in which readers got a run's events while it worked, the session, and what each of them got."""
    session = await client.create_session()
    path = f"/stream?sessionId={session.id}&cursor=0"
    async with _connected(daemon, path, count) as readers, asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(reader.read_until(CAUGHT_UP) for reader in readers))
        started = time.perf_counter()
        done = [asyncio.ensure_future(reader.read_until(_LAST)) for reader in readers]
        await client.send_message(session.id, str(events))
        await asyncio.gather(*done)
        seconds = time.perf_counter() - started
    bodies = {reader.body() for reader in readers}
    check(len(bodies) == 1, "the readers got different bytes")
    (body,) = bodies
    frames = [frame for frame in Decoder().feed(body) if frame.event]
    check([frame.id for frame in frames] == [str(n + 1) for n in range(len(frames))], "a gap")
    deltas = sum(frame.event == "agent.message.delta" for frame in frames)
    check(deltas == events, f"{deltas} of {events} deltas came")
    return seconds, session.id, body


async def _late(daemon: Server, path: str, count: int, body: bytes) -> float:
    """Return the seconds in which readers got this from a server that had it before they came."""
    started = time.perf_counter()
    async with _connected(daemon, path, count) as readers, asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(reader.read_until(_LAST) for reader in readers))
        seconds = time.perf_counter() - started
        if path != "/":
            await asyncio.gather(*(reader.read_until(CAUGHT_UP) for reader in readers))
    events = body.replace(CAUGHT_UP, b"")
    check(all(one.body().replace(CAUGHT_UP, b"") == events for one in readers), "other bytes came")
    return seconds


@asynccontextmanager
async def _connected(daemon: Server, path: str, count: int) -> AsyncIterator[list[Reader]]:
    """Return this many readers, which have connected."""
    loop, port = asyncio.get_running_loop(), urlsplit(daemon.url).port
    readers = [Reader(path) for _ in range(count)]
    try:
        for reader in readers:
            await loop.create_connection(lambda one=reader: one, "127.0.0.1", port)
        yield readers
    finally:
        for reader in readers:
            reader.transport.abort()

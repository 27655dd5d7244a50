"""Measure many readers of streams: how late their events are, what they cost, and what idle ones take."""

import asyncio
import re
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final
from urllib.parse import urlsplit

import anyio
import psutil

from agent_orchestrator import Client, connect
from agent_orchestrator.wire.sse import CAUGHT_UP
from benchmarks.figures import Effort, Figure, check
from benchmarks.processes import Server, agentd
from benchmarks.turns import PATIENCE_S

CONFIG: Final = """\
[daemon]
max_concurrency = 64

[providers.beat]
runner = "function"
target = "benchmarks.function_agents:beat"

[routing]
default = "beat"
"""

_SENT: Final = re.compile(rb'"text":"sent at ([0-9.]+)"')
_AT_ONCE: Final = 200
"""Readers that connect at once."""

_SETTLE_S: Final = 2.0
_PAGE: Final = resource.getpagesize()
"""Bytes in which memory is measured."""


class _Reader(asyncio.Protocol):
    """One reader. It notes how late each event is."""

    def __init__(self, path: str, token: str | None = None) -> None:
        bearer = "" if token is None else f"authorization: Bearer {token}\r\n"
        self._request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{bearer}\r\n".encode()
        self._tail = b""
        self.caught_up = asyncio.get_running_loop().create_future()
        self.late_s: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        text = self._tail + data
        if not self.caught_up.done():
            if text.startswith(b"HTTP/") and not text.startswith(b"HTTP/1.1 200 "):
                self.caught_up.set_exception(ConnectionError(text[:300].decode()))
            elif CAUGHT_UP in text:
                self.caught_up.set_result(None)
        self.late_s += [now - float(sent) for sent in _SENT.findall(text)]
        # Keep an event that has not come completely, and no complete one.
        self._tail = text[text.rindex(b"\n") + 1 :] if b"\n" in text else text

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.caught_up.done():
            self.caught_up.set_exception(ConnectionError(f"cut off: {exc}"))


def measure(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=1000, quick=1000, smoke=20)
    seconds = effort.of(full=20, quick=8, smoke=1)
    allow_descriptors()
    with agentd(directory / "daemon", config=CONFIG) as daemon:
        few = effort.of(full=50, quick=50, smoke=2)
        spread = anyio.run(partial(_follow, daemon, count, few, 100 / few, seconds))
        slow = anyio.run(partial(_follow, daemon, count, 1, 10, seconds))
        fast = anyio.run(partial(_follow, daemon, count, 1, 100, seconds))
    many = f"{count:,} readers"
    return [
        *_figures(f"{many} of {few} sessions, 100 events/s in all", spread, 250, 0.6),
        *_figures(f"{many} of one session, 10 events/s", slow, 150, None),
        *_figures(f"{many} of one session, 100 events/s", fast, 500, 1.0),
    ]


def _figures(
    name: str, found: tuple[list[float], float], bound_ms: float, bound_cores: float | None
) -> list[Figure]:
    late_s, cores = found
    p50, p99 = median(late_s), quantiles(late_s, n=100)[98]
    detail = f"p50 {p50 * 1000:.0f} ms, {cores:.2f} cores of agentd, {len(late_s):,} deliveries"
    figures = [
        Figure(
            name=f"{name}: lateness of an event (p99)",
            value=p99 * 1000,
            bound=bound_ms,
            unit="ms",
            places=0,
            detail=detail,
        )
    ]
    if bound_cores is not None:
        figures.append(
            Figure(
                name=f"{name}: processor of agentd", value=cores, bound=bound_cores, unit="cores"
            )
        )
    return figures


async def _follow(
    daemon: Server, count: int, sessions: int, rate: float, seconds: int
) -> tuple[list[float], float]:
    """Return how late each event came to each reader, and the cores that agentd used.

    :param rate: events per second of each session.
    """
    process = psutil.Process(daemon.pid)
    each = max(2, round(rate * seconds))
    async with connect(daemon.url) as client:
        ids = [(await client.create_session()).id for _ in range(sessions)]
        paths = [f"/stream?sessionId={ids[number % sessions]}&cursor=0" for number in range(count)]
        async with _connected(daemon, paths) as readers:
            await anyio.sleep(_SETTLE_S)
            used, started = _used(process), time.monotonic()
            for session_id in ids:
                await client.send_message(session_id, f"{each} {rate}")
            with anyio.fail_after(PATIENCE_S + 3 * seconds):
                while any(len(one.late_s) < each for one in readers):  # noqa: ASYNC110 - cheapest
                    await anyio.sleep(0.1)
            cores = (_used(process) - used) / (time.monotonic() - started)
            check(all(len(one.late_s) == each for one in readers), "a reader got too many events")
            return [late for one in readers for late in one.late_s], cores


def measure_idle(effort: Effort, directory: Path) -> list[Figure]:
    count = effort.of(full=3000, quick=1500, smoke=20)
    idle_s = effort.of(full=32, quick=16, smoke=1)  # two intervals of keepalives, or one
    allow_descriptors()
    with agentd(directory / "daemon", config=CONFIG) as daemon:
        turns = effort.of(full=40, quick=20, smoke=2)
        return anyio.run(partial(_idle, daemon, count, idle_s, turns))


async def _idle(daemon: Server, count: int, idle_s: float, turns: int) -> list[Figure]:
    process = psutil.Process(daemon.pid)
    async with connect(daemon.url) as administrator:
        quiet = (await administrator.create_session()).id
    tokens = await admin_tokens(daemon, 3)
    paths = [f"/stream?sessionId={quiet}&cursor=head"] * count
    async with connect(daemon.url, token=tokens[0]) as client:
        busy = (await client.create_session()).id
        await _turns(client, process, busy, turns)
        # The first readers take what all later ones share.
        async with _connected(daemon, paths[: count // 10], tokens):
            await anyio.sleep(_SETTLE_S)
        await anyio.sleep(_SETTLE_S)
        alone_s = await _turns(client, process, busy, turns)
        before = process.memory_info().rss
        async with _connected(daemon, paths, tokens):
            await anyio.sleep(_SETTLE_S)
            during = process.memory_info().rss
            used, started = _used(process), time.monotonic()
            await anyio.sleep(idle_s)
            cores = (_used(process) - used) / (time.monotonic() - started)
            beside_s = await _turns(client, process, busy, turns)
        with anyio.move_on_after(20):
            while process.memory_info().rss > 1.1 * before:  # noqa: ASYNC110 - no event tells
                await anyio.sleep(0.2)
        after = process.memory_info().rss
    mib = 1024**2
    return [
        Figure(
            name=f"memory of each of {count:,} idle readers",
            value=max(during - before, _PAGE) / count / 1024,
            bound=30,
            unit="KiB",
            places=1,
            detail=f"{before / mib:.0f} MiB before, {during / mib:.0f} MiB with them",
        ),
        Figure(
            name="memory of agentd after they left / before",
            value=after / before,
            bound=1.1,
            detail=f"{after / mib:.0f} MiB / {before / mib:.0f} MiB",
        ),
        Figure(
            name=f"processor of agentd for {count:,} idle readers",
            value=max(cores, 0.001),  # less cannot be measured
            bound=0.02,
            unit="cores",
            places=3,
        ),
        Figure(
            name=f"processor of a turn elsewhere, beside {count:,} idle readers / without",
            value=beside_s / alone_s,
            bound=1.1,
            detail=f"{beside_s * 1000:.1f} ms / {alone_s * 1000:.1f} ms",
        ),
    ]


async def _turns(client: Client, process: psutil.Process, session_id: str, count: int) -> float:
    """Return agentd's processor seconds for a turn, the median of some tens."""
    taken = []
    for _ in range(5):
        used = _used(process)
        for _ in range(count):
            sent = await client.send_message(session_id, "1 1000")
            assert sent.run is not None
            ended = (await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)).run
            check(ended.status == "completed", f"a run {ended.status}")
        taken.append((_used(process) - used) / count)
    return max(median(taken), 0.0001)  # less cannot be measured, of a few turns


@asynccontextmanager
async def _connected(
    daemon: Server, paths: Sequence[str], tokens: Sequence[str | None] = (None,)
) -> AsyncIterator[list[_Reader]]:
    """Return readers that have caught up, one for each path."""
    loop, port = asyncio.get_running_loop(), urlsplit(daemon.url).port
    readers: list[_Reader] = []
    try:
        for start in range(0, len(paths), _AT_ONCE):
            some = [
                _Reader(path, tokens[(start + place) * len(tokens) // len(paths)])
                for place, path in enumerate(paths[start : start + _AT_ONCE])
            ]
            for reader in some:
                await loop.create_connection(lambda one=reader: one, "127.0.0.1", port)
            readers += some
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(reader.caught_up for reader in some))
        yield readers
    finally:
        for reader in readers:
            reader.transport.abort()


def _used(process: psutil.Process) -> float:
    """Return the processor seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def admin_tokens(daemon: Server, count: int) -> list[str]:
    """Return a token of each of several administrators."""
    tokens: list[str] = []
    for number in range(count):
        # Once there is a token, callers need one.
        async with connect(daemon.url, token=tokens[0] if tokens else None) as client:
            created = await client.create_token(
                "reader", principal=f"reader-{number}", scopes=["admin"]
            )
            tokens.append(created.secret)
    return tokens


def allow_descriptors() -> None:
    """Raise this process's limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Offer agentd ten times what it can take: messages, and readers. Later ones are refused, earlier ones are not slowed."""

import asyncio
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final
from urllib.parse import urlsplit

import anyio

from agent_orchestrator import Client, connect
from agentd.admission import MAX_ALL_STREAMS
from benchmarks.accepts import MANUAL
from benchmarks.figures import Effort, Figure, check
from benchmarks.function_agents import ECHO
from benchmarks.load import request
from benchmarks.processes import Server, agentd
from benchmarks.scale.many_readers import admin_tokens, allow_descriptors
from benchmarks.turns import PATIENCE_S

OFFERED: Final = 5000
"""Messages offered each second."""

_PRINCIPALS: Final = 10
_NORMAL: Final = 2.0
"""Times the earlier time at which a turn counts as normal again."""

_AT_ONCE: Final = 200
"""Readers that connect at once."""


class _Caller(asyncio.Protocol):
    """A connection that sends its request whenever it has no answer to wait for."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self._received = b""
        self._since: float | None = None
        self.statuses: Counter[str] = Counter()
        self.took_s: list[float] = []
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self) -> None:
        if self._since is None and not self.is_lost:
            self._since = time.monotonic()
            self.transport.write(self._sent)

    @property
    def is_waiting(self) -> bool:
        return self._since is not None and not self.is_lost

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if end)
        if not end or len(body) < int(fields[b"content-length"]):
            return
        status = head.split(b" ", 2)[1].decode()
        check(status == "201" or b"retry-after" in fields, f"refused without Retry-After: {head!r}")
        self.statuses[status] += 1
        assert self._since is not None
        if status == "201":
            self.took_s.append(time.monotonic() - self._since)
        self._since, self._received = None, b""

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True


def measure(effort: Effort, directory: Path) -> list[Figure]:
    callers = effort.of(full=3000, quick=1500, smoke=20)
    seconds = effort.of(full=15, quick=6, smoke=1)
    readers = effort.of(full=10_000, quick=10_000, smoke=40)
    allow_descriptors()
    with agentd(directory / "messages", config=ECHO) as daemon:
        figures = anyio.run(partial(_messages, daemon, callers, seconds))
    with agentd(directory / "readers", config=ECHO) as daemon:
        return [*figures, *anyio.run(partial(_readers, daemon, readers))]


async def _messages(daemon: Server, count: int, seconds: int) -> list[Figure]:
    async with connect(daemon.url) as client:
        echo = (await client.create_session()).id
        # The load is for one session, so that its events do not reach the reader of the other one.
        loaded = (await client.create_session()).id
        await _turn(client, echo)
        before_s = median([await _turn(client, echo) for _ in range(20)])
        sent = request(f"/sessions/{loaded}/messages", MANUAL).encode()
        callers = await _connect(daemon, sent, count)
        during_s: list[float] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_offer, callers, OFFERED / count, seconds)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                began = time.monotonic()
                await client.get_session(echo)
                during_s.append(time.monotonic() - began)
                await anyio.sleep(0.1)
        await _until_answered(callers)
        # Later on they are closed because they are idle.
        check(not any(one.is_lost for one in callers), "connections were cut off")
        ended = time.monotonic()
        while await _turn(client, echo) > _NORMAL * before_s:
            check(time.monotonic() - ended < PATIENCE_S, "a turn does not get normal again")
        normal_s = time.monotonic() - ended
        statuses = sum((one.statuses for one in callers), Counter[str]())
        check(set(statuses) <= {"201", "503"}, f"there were other answers: {statuses}")
        runs = (await client.get_session(loaded)).last_seq
        check(runs >= statuses["201"], f"{statuses['201']} were accepted, {runs} events are there")
        for one in callers:
            one.transport.abort()
    took_s = [taken for one in callers for taken in one.took_s]
    counts = f"{statuses['201']:,} accepted, {statuses['503']:,} refused with 503 in {seconds} s"
    return [
        Figure(
            name=f"{OFFERED:,} messages/s offered: time of those accepted (p99)",
            value=_p99(took_s) * 1000,
            bound=3000,
            unit="ms",
            places=0,
            detail=counts,
        ),
        Figure(
            name=f"{OFFERED:,} messages/s offered: time of a read by another caller (p99)",
            value=_p99(during_s) * 1000,
            bound=500,
            unit="ms",
            places=0,
            detail=f"p50 {median(during_s) * 1000:.0f} ms",
        ),
        Figure(
            name="seconds after that until a turn takes less than twice as long as before",
            value=max(normal_s, 0.001),
            bound=5,
            unit="s",
            detail=f"{before_s * 1000:.1f} ms before",
        ),
    ]


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98] if len(values) > 1 else values[0]


async def _offer(callers: list[_Caller], rate: float, seconds: int) -> None:
    """Let each caller send at a steady rate, if it has the answer to its last request."""
    interval, started = 1 / rate / len(callers), time.monotonic()
    number = 0
    while (now := time.monotonic() - started) < seconds:
        while number * interval <= now:
            callers[number % len(callers)].send()
            number += 1
        await anyio.sleep(0.005)


async def _turn(client: Client, session_id: str) -> float:
    began = time.monotonic()
    sent = await client.send_message(session_id, "hello")
    assert sent.run is not None
    ended = (await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)).run
    check(ended.result is not None and ended.result.text == "echo: hello", "a wrong answer")
    return time.monotonic() - began


async def _until_answered(callers: list[_Caller]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while any(one.is_waiting for one in callers):  # noqa: ASYNC110 - simpler than an event of each
            await anyio.sleep(0.01)


async def _connect(daemon: Server, sent: bytes, count: int) -> list[_Caller]:
    """Return callers that have each sent a message. Those that idled for too long meanwhile are replaced."""
    loop, port = asyncio.get_running_loop(), urlsplit(daemon.url).port
    callers: list[_Caller] = []
    with anyio.fail_after(5 * PATIENCE_S):
        while (missing := count - len(callers)) > 0:
            some = [_Caller(sent) for _ in range(min(missing, _AT_ONCE))]
            for caller in some:
                await loop.create_connection(lambda one=caller: one, "127.0.0.1", port)
                caller.send()
            await _until_answered(some)
            check(not any(one.is_lost for one in some), "a connection was cut off")
            callers = [one for one in (*callers, *some) if not one.is_lost]
    for caller in callers:
        caller.statuses.clear()
        caller.took_s.clear()
    return callers


class _Head(asyncio.Protocol):
    """A reader that only notes whether its stream was opened."""

    def __init__(self, path: str, token: str) -> None:
        lines = [f"GET {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {token}"]
        self._request = "\r\n".join([*lines, "", ""]).encode()
        self.answer = asyncio.get_running_loop().create_future()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.answer.done():
            self._received += data
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if end:
                self.answer.set_result(
                    (head.split(b" ", 2)[1].decode(), b"retry-after" in head.lower())
                )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result((f"cut off: {exc}", False))


async def _readers(daemon: Server, count: int) -> list[Figure]:
    """Open more streams than agentd takes."""
    async with connect(daemon.url) as client:
        session_id = (await client.create_session()).id
    tokens = await admin_tokens(daemon, _PRINCIPALS)
    loop, port = asyncio.get_running_loop(), urlsplit(daemon.url).port
    path = f"/stream?sessionId={session_id}&cursor=head"
    readers: list[_Head] = []
    answers: list[tuple[str, bool]] = []
    async with connect(daemon.url, token=tokens[0]) as client:
        for start in range(0, count, _AT_ONCE):
            some = [
                _Head(path, tokens[(start + place) * _PRINCIPALS // count])
                for place in range(min(_AT_ONCE, count - start))
            ]
            for reader in some:
                await loop.create_connection(lambda one=reader: one, "127.0.0.1", port)
            readers += some
            async with asyncio.timeout(PATIENCE_S):
                answers += await asyncio.gather(*(reader.answer for reader in some))
        took_s = []
        for number in range(10):
            began = time.monotonic()
            await client.update_session(session_id, title=json.dumps(number))
            took_s.append(time.monotonic() - began)
        for reader in readers:
            reader.transport.abort()
    statuses = [status for status, _ in answers]
    opened = statuses.count("200")
    check(opened == min(count, MAX_ALL_STREAMS), f"the answers were {Counter(statuses)}")
    check(statuses == sorted(statuses), "an earlier reader was refused, and a later one was not")
    check(all(says for status, says in answers if status != "200"), "no Retry-After")
    return [
        Figure(
            name=f"{count:,} readers want a stream, {opened:,} get one: time of a change beside them",
            value=median(took_s) * 1000,
            bound=1000,
            unit="ms",
            places=0,
            detail=f"the others, who came later, get {statuses[-1]} and when to come again",
        )
    ]

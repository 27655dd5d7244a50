"""A load generator in a separate process, on raw sockets to use little processor time.

Reads a :class:`Plan` as JSON from stdin and prints, for each round, the seconds from the first
request to the last answer.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import deque

import attrs
from attrs import frozen

from benchmarks.figures import check
from benchmarks.processes import ROOT, environment


@frozen
class Plan:
    """The requests to send, in rounds, over persistent connections.

    :param rounds: for each round and connection, its requests in order. A connection sends the next
        request after the answer to the one before. Each answer must be 201.
    """

    port: int
    rounds: list[list[list[str]]]


def request(path: str, body: str, *headers: str) -> str:
    """Return the bytes of a POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body.encode())}",
        *headers,
    ]
    return "\r\n".join([*lines, "", body])


def generate(plan: Plan) -> list[float]:
    """Run the plan in a separate process. Return the seconds of each round."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        env=environment(),
        input=json.dumps(attrs.asdict(plan)),
        capture_output=True,
        text=True,
        check=False,
    )
    check(ended.returncode == 0, f"the load generator failed:\n{ended.stderr}")
    return [float(seconds) for seconds in json.loads(ended.stdout)]


class _Connection(asyncio.Protocol):
    """Sends requests one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._received = b""
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def begin(self, requests: list[bytes]) -> asyncio.Future[None]:
        self._waiting.extend(requests)
        self._done = asyncio.get_running_loop().create_future()
        self._next()
        return self._done

    def _next(self) -> None:
        assert self._done is not None
        if self._waiting:
            self._transport.write(self._waiting.popleft())
        else:
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        _, found, rest = head.lower().partition(b"content-length: ")
        length = int(rest.split(b"\r", 1)[0]) if found else 0
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 201 ") or len(body) != length:
            self._fail(f"answered {self._received[:500]!r}")
            return
        self._received = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, problem: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(problem))


async def _send(plan: Plan) -> list[float]:
    loop = asyncio.get_running_loop()
    connections = []
    for _ in plan.rounds[0]:
        _, protocol = await loop.create_connection(_Connection, "127.0.0.1", plan.port)
        connections.append(protocol)
    taken = []
    for sent in plan.rounds:
        encoded = [[text.encode() for text in texts] for texts in sent]
        started = time.perf_counter()
        async with asyncio.timeout(120):
            pairs = zip(connections, encoded, strict=True)
            await asyncio.gather(*(connection.begin(requests) for connection, requests in pairs))
        taken.append(time.perf_counter() - started)
    return taken


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_send(Plan(**json.load(sys.stdin))))))

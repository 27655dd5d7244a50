"""As much as may be said, in the worst shapes: what it costs a daemon, and who waits for it.

Three bounds hold for each case:

- a look at ``/health`` every 20 ms takes at most 100 ms at the 99th percentile, without the waits for a
  processor: how busy the machine is with other work makes no difference;
- memory grows by at most four times the input;
- twice the input takes at most 2.5 times the processor time.
"""

import base64
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import httpx
from attrs import define, field, frozen
from tests.chaos.daemon import ROOT, Daemon, daemon
from tests.chaos.outcome import SMALL, Effort, Outcome, percentile
from tests.chaos.size_calls import CALLS, CallCase, Site

HEALTH_S: Final = 0.1
GROWTH: Final = 4.0
DOUBLED: Final = 2.5

SLACK: Final = 24 * 2**20
"""Bytes of memory that are not counted: what SQLite caches, and what is taken once."""

SLACK_S: Final = 0.2
"""Seconds of processor time likewise."""

FULL: Final = 63 * 2**20
"""Bytes of an agent's line; a line of 64 MiB or more is cut."""

MANY: Final = 2**20
"""Bytes in small pieces: each costs what an event costs."""

SHARED: Final = 24 * 2**20
"""Bytes of one value that many readers hold together."""

CONFIG: Final = f"""\
[limits]
children = 10000
descendants = 10000

[providers.large]
runner = "command"
argv = ["{sys.executable}", "-I", "-S", "{ROOT}/tests/chaos/large.py"]
output = "jsonl"
map = [
  {{ when = {{ type = "say" }}, emit = "agent.message", data = {{ text = "$.text", more = "$.more" }} }},
  {{ when = {{ type = "changes" }}, emit = "file.changed", data = {{ changes = "$.changes" }} }},
]

[providers.live]
runner = "acp"
argv = ["{sys.executable}", "-I", "-S", "{ROOT}/tests/chaos/large.py", "acp"]
tools = false

[routing]
default = "large"
"""

TOOL_PIECES: Final = "tool-pieces"
"""The shape that an agent with ACP has."""


@frozen
class Case:
    """One way to be large.

    :param shape: of what the agent says: see :mod:`tests.chaos.large`.
    :param full: how many bytes that has at most.
    :param path: what is read of it afterwards; the cost of that is measured instead.
    :param is_socket: whether it is read over a WebSocket.
    :param stalled: how many ask for it and then take nothing, instead of one that reads it.
    """

    shape: str
    full: int = FULL
    path: str | None = None
    is_socket: bool = False
    stalled: int = 0
    is_live: bool = False
    """Whether those who take nothing follow while it is said."""

    @property
    def name(self) -> str:
        if self.path is None:
            return f"{self.shape}, said"
        if self.is_live:
            return f"{self.shape}, said to {self.stalled} who take nothing of it"
        way = "WebSocket" if self.is_socket else "GET"
        way += f" by {self.stalled} who take nothing of it" if self.stalled else ""
        return f"{self.shape}, {way} {self.path.partition('?')[0]}"


STREAM: Final = "/stream?sessionId={session}&cursor=0"

CASES: Final = (
    *(Case(shape) for shape in ("text", "escapes", "escaped", "latin", "cjk", "not-utf-8")),
    *(Case(shape) for shape in ("strings", "values", "deep", "lines-of-60000", "lines-of-1000000")),
    *(Case(shape, MANY) for shape in ("twins", "small-lines")),
    Case("blank-lines", 8 * MANY),
    Case(TOOL_PIECES, 8 * MANY),
    Case("cjk", path=STREAM),
    Case("cjk", path="/stream"),
    Case("cjk", path=STREAM, is_socket=True),
    Case("lines-of-60000", path=STREAM),
    Case("lines-of-1000000", path=STREAM, is_socket=True),
    Case("small-lines", MANY, path=STREAM),
    Case("small-lines", MANY, path=STREAM, is_socket=True),
    Case("cjk", path="/sessions/{session}/events?limit=1000"),
    Case("lines-of-1000000", path="/sessions/{session}/events?limit=1000"),
    Case("cjk", path="/runs/{run}"),
    Case("cjk", path="/sessions/{session}/tree"),
    Case("lines-of-60000", path=STREAM, stalled=40),
    Case("lines-of-1000000", path=STREAM, is_socket=True, stalled=40),
    Case("lines-of-60000", path="/sessions/{session}/events?limit=1000", stalled=10),
    Case("cjk", SHARED, path=STREAM, stalled=10),
    Case("cjk", SHARED, path=STREAM, is_socket=True, stalled=10),
    Case("cjk", SHARED, path="/sessions/{session}/events?limit=1000", stalled=10),
    Case("cjk", SHARED, path="/runs/{run}", stalled=10),
    Case("lines-of-1000000", path="/stream", stalled=10, is_live=True),
    Case("lines-of-1000000", path="/stream", is_socket=True, stalled=10, is_live=True),
    Case("small-lines", MANY, path="/stream", stalled=10, is_live=True),
)


QUICK: Final = (
    Case("deep"),
    Case(TOOL_PIECES, 2 * MANY),
    Case("small-lines", MANY // 4, path=STREAM),
    Case("small-lines", MANY // 4, path=STREAM, is_socket=True),
    Case("lines-of-60000", path="/sessions/{session}/events?limit=1000"),
    Case("lines-of-60000", path=STREAM, stalled=5),
)
"""One of each kind, where time is short: a line of an agent, messages of a live one, a frame of each stream, a call, slow readers."""


@frozen
class Cost:
    """What a daemon had to give.

    :param cpu_s: processor time.
    :param growth: bytes by which its memory grew.
    :param health_s: how long a look at its health took, at the 99th percentile. The time for which the
        daemon or who looks was ready, and the machine gave it no processor, does not count.
    """

    cpu_s: float
    growth: int
    health_s: float


async def sweep(effort: Effort, directory: Path) -> Outcome:
    """Say and read as much as there may be, and half as much, and compare the costs."""
    outcome = Outcome("sizes", effort.seed)
    cases = (*CASES, *CALLS) if effort.share >= SMALL else QUICK
    worst = [0.0, 0.0, 0.0]
    for case in cases:
        outcome.tries += 1
        full = case.full if effort.share >= SMALL else min(case.full, 2 * MANY)
        for attempt in range(3):
            place = directory / f"{outcome.tries}-{attempt}"
            found, problems = await anyio.to_thread.run_sync(_compared, case, full, place)
            if not problems:
                break
        print(f"  {case.name}: {found}", file=sys.stderr, flush=True)
        worst = [max(pair) for pair in zip(worst, found.values, strict=True)]
        for problem in problems:
            outcome.fault("broken", f"{case.name}: {problem}")
    outcome.notes.append(
        f"at worst {worst[0] * 1000:.0f} ms, {worst[1]:.1f} times the memory, "
        f"{worst[2]:.1f} times the time for twice the input"
    )
    return outcome


@frozen
class _Figures:
    health_s: float
    growth: float
    doubled: float
    cpu_s: float

    @property
    def values(self) -> tuple[float, float, float]:
        return self.health_s, self.growth, self.doubled

    def __str__(self) -> str:
        return (
            f"/health {self.health_s * 1000:.0f} ms, memory x {self.growth:.2f}, "
            f"twice the input x {self.doubled:.2f}, {self.cpu_s:.2f} s of the processor"
        )


def _compared(case: Case | CallCase, full: int, directory: Path) -> tuple[_Figures, list[str]]:
    cost: Any = _cost_of_call if isinstance(case, CallCase) else _cost
    half, whole = (cost(case, size, directory / str(size)) for size in (full // 2, full))
    grown = max(0, whole.growth - SLACK) / full
    doubled = max(0.0, whole.cpu_s - SLACK_S) / max(half.cpu_s, 0.01)
    figures = _Figures(whole.health_s, grown, doubled, whole.cpu_s)
    problems = []
    if whole.health_s > HEALTH_S:
        problems.append(f"a look at /health took {whole.health_s * 1000:.0f} ms")
    if grown > GROWTH:
        problems.append(f"memory grew by {grown:.1f} times the input")
    if doubled > DOUBLED:
        problems.append(f"twice the input took {doubled:.1f} times as long")
    return figures, problems


def _cost(case: Case, size: int, directory: Path) -> Cost:
    with daemon(directory, config=CONFIG) as one:
        one.start()
        _say(one, f"{case.shape} 100" if case.shape == TOOL_PIECES else "text 100")
        if case.path is None:
            with _measured(one) as cost:
                _say(one, f"{case.shape} {size}")
        elif case.is_live:
            asked = case.path, case.stalled
            with _measured(one) as cost, _taking_nothing(one, *asked, is_socket=case.is_socket):
                _say(one, f"{case.shape} {size}")
        else:
            session, run = _say(one, f"{case.shape} {size}")
            one.stop()
            one.start()
            path = case.path.format(session=session, run=run)
            _read(one, "/stream?cursor=head", is_socket=False)  # what is loaded at the first time
            with _measured(one) as cost:
                if case.stalled:
                    _stall(one, path, case.stalled, is_socket=case.is_socket)
                else:
                    _read(one, path, is_socket=case.is_socket)
        one.stop()
    return cost[0]


def _cost_of_call(case: CallCase, size: int, directory: Path) -> Cost:
    with daemon(directory, config=CONFIG, env={"AGENTD_AUTH_TOKEN": TOKEN}) as one:
        one.start()
        with _client(one) as client:
            request = case.prepare(Site(one, client, partial(_say, one)), size)
            client.get("/daemon/status")
        Path(f"/proc/{one.pid}/clear_refs").write_text("5")  # the most memory is that of now
        with _measured(one) as cost:
            _exchange(one, request.raw(one.port, TOKEN))
        one.stop()
    return cost[0]


def _exchange(one: Daemon, request: bytes) -> None:
    """Send a call that must succeed, and read the answer to its end."""
    with socket.create_connection(("127.0.0.1", one.port), timeout=300) as line:
        line.sendall(request)
        head = line.recv(_PIECE)
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201", b"HTTP/1.1 202")), head[:1000]
        while line.recv(_PIECE):
            pass


TOKEN: Final = "of-the-sweep"
"""A daemon with named tokens accepts no call without a token."""


def _client(one: Daemon) -> httpx.Client:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.Client(base_url=one.url, trust_env=False, timeout=600, headers=headers)


def _say(one: Daemon, prompt: str) -> tuple[str, str]:
    """Have the agent say something; return its session and run once it has."""
    with _client(one) as client:
        provider = "live" if prompt.startswith(TOOL_PIECES) else "large"
        session = client.post("/sessions", json={"provider": provider}).json()["session"]["id"]
        sent = client.post(f"/sessions/{session}/messages", json={"text": prompt}).json()
        run = sent["run"]["id"]
        # The run itself may hold a large result.
        while any(
            one["queued_count"] + one["running_count"]
            for one in client.get("/daemon/status").json()["runs"]
        ):
            time.sleep(0.02)
    return session, run


_ENDS: Final = (b"caught up", b"caught_up")
_PIECE: Final = 2**18


def _asking(path: str, *, is_socket: bool) -> bytes:
    more = "Connection: close\r\n"
    if is_socket:
        more = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
        )
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n".encode()


STALLED_S: Final = 3.0
"""Seconds for which nothing is taken."""


def _stall(one: Daemon, path: str, readers: int, *, is_socket: bool) -> None:
    """Ask for it many times, and take nothing."""
    with _taking_nothing(one, path, readers, is_socket=is_socket):
        time.sleep(STALLED_S)


@contextmanager
def _taking_nothing(one: Daemon, path: str, readers: int, *, is_socket: bool) -> Iterator[None]:
    """Have so many ask for it, and take nothing while the scope lasts."""
    with ExitStack() as lines:
        for _ in range(readers):
            line = lines.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 2**10)
            line.connect(("127.0.0.1", one.port))
            line.sendall(_asking(path, is_socket=is_socket))
        yield


def _read(one: Daemon, path: str, *, is_socket: bool) -> None:
    """Read an answer to its end, a stream until it has caught up."""
    tail = b""
    with socket.create_connection(("127.0.0.1", one.port), timeout=300) as line:
        line.sendall(_asking(path, is_socket=is_socket))
        while data := line.recv(_PIECE):
            tail = (tail + data)[-200:]
            if "/stream" in path and any(end in tail for end in _ENDS):
                return


# --- what is measured -----------------------------------------------------------------------


@define
class _Looks(threading.Thread):
    """Looks at the health of a daemon every 20 ms."""

    port: int
    pid: int
    over: threading.Event = field(factory=threading.Event)
    took: list[float] = field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as line:
            while not self.over.wait(max(0.0, 0.02 - (self.took[-1] if self.took else 0.0))):
                began = time.perf_counter() - self._delayed_s()
                line.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                while not line.recv(_PIECE).endswith(b"}"):
                    pass
                self.took.append(max(0.0, time.perf_counter() - self._delayed_s() - began))

    def _delayed_s(self) -> float:
        """Return for how long the event loop, and who looks, were ready and had no processor."""
        own = f"self/task/{threading.get_native_id()}"
        return sum(_delayed_s(place) for place in (own, f"{self.pid}/task/{self.pid}"))


@contextmanager
def _measured(one: Daemon) -> Iterator[list[Cost]]:
    """Measure what a daemon gives while the scope lasts."""
    looks = _Looks(one.port, one.pid)
    looks.start()
    memory, cpu_s, found = _memory(one.pid, "VmRSS"), _cpu_s(one.pid), []
    try:
        yield found
    finally:
        looks.over.set()
        looks.join()
    growth = _memory(one.pid, "VmHWM") - memory
    found.append(Cost(_cpu_s(one.pid) - cpu_s, growth, percentile(looks.took or [0.0], 0.99)))


def _cpu_s(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)


def _memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _delayed_s(place: str) -> float:
    """Return for how long a thread has waited for a processor: the second number of ``schedstat``."""
    return int(Path(f"/proc/{place}/schedstat").read_text().split()[1]) / 1e9

"""Measure turns on a warm codex app-server through the gateway, compared with the app-server alone."""

import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import anyio
import psutil
import websockets
from anyio.streams.buffered import BufferedByteReceiveStream

from agent_orchestrator import Client, connect
from benchmarks.codex import (
    PROMPT,
    ModelServer,
    acknowledgement,
    bare_turn,
    codex_env,
    native_codex,
    write_codex_home,
)
from benchmarks.figures import Effort, Figure, check, warm
from benchmarks.processes import Server, agentd, environment
from benchmarks.turns import check_log, in_turn, turn, turns_per_second

CLIENTS: Final = 8
SUBSCRIBERS: Final = 100
DELTAS: Final = 500
"""Pieces of the message that the subscribers read."""

CONFIG: Final = f"""\
[daemon]
# As many concurrent turns as clients, as the app-server alone has no limit.
max_concurrency = {CLIENTS}

[providers.codex]
runner = "codex-app-server"
command = {{command}}
# As the threads of the app-server alone.
sandbox = "danger-full-access"
approval_policy = "never"
tools = false

[routing]
default = "codex"
"""

EXEC: Final = ("exec", "--json", "--skip-git-repo-check", "-")

PLAIN: Final[Mapping[str, str]] = {"historyMode": "legacy"}
"""How threads are begun as the gateway's are: without an index of their items. The app-server's own
are those that it makes unasked; what it does with these is told beside them."""

_MAX_LINE: Final = 2**26
_INITIALIZE: Final[Mapping[str, Any]] = {
    "clientInfo": {"name": "bench", "title": None, "version": "1"},
    "capabilities": {"experimentalApi": True, "requestAttestation": False},
}


class Direct:
    """A minimal client of an app-server, which only runs turns."""

    def __init__(self, process: anyio.abc.Process, work: Path) -> None:
        assert process.stdout
        assert process.stdin
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._work = work
        self._number = 0
        self._waiting: dict[object, tuple[anyio.Event, list[Any]]] = {}

    @classmethod
    @asynccontextmanager
    async def opened(cls, codex: str, env: Mapping[str, str], work: Path) -> AsyncIterator[Self]:
        """Start an app-server and connect to it until the scope ends."""
        process = await anyio.open_process(
            [codex, "app-server"],
            env=env,
            cwd="/",
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        async with process, anyio.create_task_group() as tasks:
            direct = cls(process, work)
            tasks.start_soon(direct._read)
            await direct.call("initialize", _INITIALIZE)
            yield direct
            tasks.cancel_scope.cancel()
            process.terminate()

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:
        self._number += 1
        number = self._number
        event, answer = self._waiting[number] = (anyio.Event(), [])
        message = {"id": number, "method": method, "params": params}
        await self._stdin.send(json.dumps(message).encode() + b"\n")
        await event.wait()
        check("result" in answer[0], f"codex answered {answer[0]}")
        return answer[0]["result"]

    async def thread(self, **more: str) -> str:
        params = {"cwd": str(self._work), "sandbox": "danger-full-access"}
        answer = await self.call("thread/start", {**params, "approvalPolicy": "never", **more})
        return str(answer["thread"]["id"])

    async def turn(self, thread_id: str) -> float:
        """Return the seconds a turn took."""
        event, ended = self._waiting[thread_id] = (anyio.Event(), [])
        started = time.perf_counter()
        text = [{"type": "text", "text": PROMPT}]
        await self.call("turn/start", {"threadId": thread_id, "input": text})
        await event.wait()
        seconds = time.perf_counter() - started
        last = ended[-1]["params"]["turn"]["items"][-1]
        check(last["text"] == acknowledgement(PROMPT), f"codex answered {last}")
        return seconds

    async def _read(self) -> None:
        while True:
            said = json.loads(await self._lines.receive_until(b"\n", _MAX_LINE))
            key = said.get("id") if "method" not in said else None
            if said.get("method") == "turn/completed":
                key = said["params"]["threadId"]
            if key in self._waiting:
                event, heard = self._waiting.pop(key)
                heard.append(said)
                event.set()


def measure(effort: Effort, directory: Path) -> list[Figure]:
    codex = native_codex()
    work = directory / "work"
    work.mkdir(parents=True)
    with ModelServer() as models:
        home = write_codex_home(
            directory / "home", models.port, reads_projects=effort.name != "smoke"
        )
        env = environment(codex_env(home))
        config = CONFIG.format(command=json.dumps(codex))
        with agentd(directory / "daemon", config=config, env=codex_env(home)) as daemon:
            return anyio.run(partial(_figures, effort, daemon, codex, env, work))


async def _figures(
    effort: Effort, daemon: Server, codex: str, env: Mapping[str, str], work: Path
) -> list[Figure]:
    count = effort.of(full=41, quick=16, smoke=1)
    rounds = effort.of(full=13, quick=7, smoke=1)
    clients = effort.of(full=CLIENTS, quick=CLIENTS, smoke=2)
    readers = effort.of(full=SUBSCRIBERS, quick=SUBSCRIBERS, smoke=4)
    deltas = effort.of(full=DELTAS, quick=DELTAS, smoke=100)
    times = effort.of(full=5, quick=3, smoke=1)
    idle = effort.of(full=50, quick=50, smoke=3)
    async with connect(daemon.url) as client, Direct.opened(codex, env, work) as direct:
        turns = await _turns(client, direct, codex, env, work, count)
        many = await _many(client, direct, work, rounds, clients)
    async with connect(daemon.url) as client:
        fans = await _fans(client, codex, env, work, times, readers, deltas)
        memory = await _idle_sessions(client, daemon.pid, work, idle)
    return [*turns, many, fans, memory]


async def _turns(
    client: Client, direct: Direct, codex: str, env: Mapping[str, str], work: Path, count: int
) -> list[Figure]:
    session = await client.create_session(cwd=str(work))
    thread_id, plain_id = await direct.thread(), await direct.thread(**PLAIN)

    async def gateway() -> float:
        seconds, answer = await turn(client, session.id, PROMPT)
        check(answer == acknowledgement(PROMPT), f"codex answered {answer!r}")
        return seconds

    async def bare() -> float:
        seconds, _ = await anyio.to_thread.run_sync(bare_turn, [codex, *EXEC], env, work, None)
        return seconds

    measured: list[Callable[[], Awaitable[float]]] = [
        gateway,
        partial(direct.turn, thread_id),
        partial(direct.turn, plain_id),
        bare,
    ]
    taken: list[list[float]] = [[] for _ in measured]
    for number in range(count):
        for place in in_turn(number, len(measured)):
            taken[place].append(await measured[place]())
    await check_log(client, session.id, count)
    ours, its, plain, exec_s = map(warm, taken)
    return [
        Figure(
            name="turn on a warm app-server: gateway over HTTP / app-server directly",
            value=ours / its,
            bound=1.25,
            detail=f"{ours * 1000:.1f} ms / {its * 1000:.1f} ms; {plain * 1000:.1f} ms without index",
        ),
        Figure(
            name="turn on a warm app-server: gateway over HTTP / bare codex exec",
            value=ours / exec_s,
            bound=0.5,
            detail=f"{ours * 1000:.1f} ms / {exec_s * 1000:.1f} ms",
        ),
    ]


async def _many(client: Client, direct: Direct, work: Path, rounds: int, clients: int) -> Figure:
    """Compare the turns per second of several concurrent clients."""
    sessions = [await client.create_session(cwd=str(work)) for _ in range(clients)]
    threads = [await direct.thread() for _ in range(clients)]
    plain_threads = [await direct.thread(**PLAIN) for _ in range(clients)]

    async def ours(session_id: str) -> None:
        await turn(client, session_id, PROMPT)

    sides = [
        [partial(ours, session.id) for session in sessions],
        [partial(direct.turn, thread) for thread in threads],
        [partial(direct.turn, thread) for thread in plain_threads],
    ]
    rates: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for place in in_turn(number, len(sides)):
            rates[place].append(await turns_per_second(2, sides[place]))
    per_s, its_per_s, plain_per_s = map(warm, rates)
    return Figure(
        name=f"turns per second of {clients} clients: gateway / app-server directly",
        value=per_s / its_per_s,
        bound=0.9,
        limit="at least",
        detail=f"{per_s:.1f} / {its_per_s:.1f}; {plain_per_s:.1f} without index",
    )


# --- many readers of one stream -------------------------------------------------------------


async def _fans(
    client: Client,
    codex: str,
    env: Mapping[str, str],
    work: Path,
    times: int,
    readers: int,
    deltas: int,
) -> Figure:
    ours, its = [], []
    for _ in range(times):
        its.append(await _codex_fan(codex, env, work, readers, deltas))
        ours.append(await _fan(client, work, readers, deltas))
    gateway, alone = median(ours), median(its)
    return Figure(
        name=f"{readers} readers of {deltas} deltas: gateway / codex's WebSocket",
        value=gateway / alone,
        bound=1.5,
        detail=f"{gateway:.2f} s / {alone:.2f} s",
    )


def _stream(deltas: int) -> tuple[str, str]:
    """Return a prompt for a message of so many deltas, and the message."""
    return f"stream {deltas} 2 word", "".join(f"word{number} " for number in range(deltas))


async def _fan(client: Client, work: Path, readers: int, deltas: int) -> float:
    """Return the seconds until all readers have received a whole turn."""
    prompt, expected = _stream(deltas)
    session = await client.create_session(cwd=str(work))
    await turn(client, session.id, PROMPT)
    after = (await client.get_session(session.id)).last_seq
    ready = [anyio.Event() for _ in range(readers)]

    async def read(is_ready: anyio.Event) -> None:
        pieces, whole = "", ""
        async with client.events(session.id, cursor=after, follow=True) as events:
            is_ready.set()
            async for event in events:
                match event.event_type:
                    case "agent.message.delta":
                        pieces += event.data["text"]
                    case "agent.message":
                        whole = event.data["text"]
                    case "run.completed":
                        check(pieces == whole == expected, "a reader has not everything")
                        return

    async with anyio.create_task_group() as tasks:
        for is_ready in ready:
            tasks.start_soon(read, is_ready)
        for is_ready in ready:
            await is_ready.wait()
        started = time.perf_counter()
        await client.send_message(session.id, prompt)
    return time.perf_counter() - started


async def _codex_fan(
    codex: str, env: Mapping[str, str], work: Path, readers: int, deltas: int
) -> float:
    """Return the same for codex's own WebSocket."""
    prompt, expected = _stream(deltas)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{holder.getsockname()[1]}"
    process = await anyio.open_process(
        [codex, "app-server", "--listen", url],
        env=env,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    async with process, AsyncExitStack() as stack:
        try:
            first = await stack.enter_async_context(_socket(url))
            params = {"cwd": str(work), "sandbox": "danger-full-access", "approvalPolicy": "never"}
            answer = await _ask(first, "thread/start", params)
            thread_id = str(answer["thread"]["id"])
            await _say(first, thread_id, PROMPT)
            await _all_pieces(first)
            others = []
            for _ in range(readers - 1):
                other = await stack.enter_async_context(_socket(url))
                resume = {"threadId": thread_id, "excludeTurns": True}
                await _ask(other, "thread/resume", resume)
                others.append(other)

            async def read(one: Any) -> None:
                check(await _all_pieces(one) == expected, "a reader has not everything")

            started = time.perf_counter()
            await _say(first, thread_id, prompt)
            async with anyio.create_task_group() as tasks:
                for one in (first, *others):
                    tasks.start_soon(read, one)
            return time.perf_counter() - started
        finally:
            process.terminate()


@asynccontextmanager
async def _socket(url: str) -> AsyncIterator[Any]:
    with anyio.fail_after(120):
        while True:
            try:
                link = await websockets.connect(url, max_size=None, proxy=None)
                break
            except OSError:
                await anyio.sleep(0.02)
    try:
        await _ask(link, "initialize", _INITIALIZE)
        yield link
    finally:
        await link.close()


async def _ask(link: Any, method: str, params: Mapping[str, Any]) -> Any:
    await link.send(json.dumps({"id": method, "method": method, "params": params}))
    while True:
        said = json.loads(await link.recv())
        if said.get("id") == method:
            check("result" in said, f"codex answered {said}")
            return said["result"]


async def _say(link: Any, thread_id: str, prompt: str) -> None:
    params = {"threadId": thread_id, "input": [{"type": "text", "text": prompt}]}
    await link.send(json.dumps({"id": "turn", "method": "turn/start", "params": params}))


async def _all_pieces(link: Any) -> str:
    pieces = ""
    while True:
        said = json.loads(await link.recv())
        match said.get("method"):
            case "item/agentMessage/delta":
                pieces += said["params"]["delta"]
            case "turn/completed":
                return pieces


# --- memory ---------------------------------------------------------------------------------


async def _idle_sessions(client: Client, daemon: int, work: Path, count: int) -> Figure:
    """Count the codex processes that idle sessions keep."""

    async def one() -> None:
        session = await client.create_session(cwd=str(work))
        await turn(client, session.id, PROMPT)

    for _ in range(0, count, 10):
        async with anyio.create_task_group() as tasks:
            for _ in range(min(count, 10)):
                tasks.start_soon(one)
    found = []
    for process in psutil.Process(daemon).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a program that it starts for a moment
            if process.name() == "codex":
                found.append(process.memory_info().rss)
    weight = sum(found) / 1024**2
    return Figure(
        name=f"codex processes that {count} idle sessions keep",
        value=len(found),
        bound=1,
        places=0,
        detail=f"{weight:.0f} MiB resident",
    )

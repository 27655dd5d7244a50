"""The daemon's web app on a loopback port, in this process, over a real engine; and a real agentd."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
from attrs import define, evolve
from forking import AGENTD, Forked

from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.notifiers.webpush import WebPush
from agent_orchestrator.ports.channel import Target
from agent_orchestrator.ports.runner import Outcome, RunContext, Runner
from agent_orchestrator.runners.function import Function, FunctionRunner
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.wire import sse
from agentd.app import create_app
from agentd.auth import Guard
from agentd.descriptors import Descriptors
from agentd.lifetime import Lifetime
from agentd.metrics import Metrics
from agentd.server import FIRST_REQUEST_S, listen, serve, url_of

ADMIN = "correct-horse-battery-staple"
"""The token of people, for tests with tokens."""

PUSH_SERVICE = "http://127.0.0.1:9"
"""The push service that browsers may use."""

PATIENCE_S = 60.0
"""Timeout in seconds, for a busy machine; on an idle one it is immediate."""


async def echo(context: RunContext) -> str:
    return f"echo: {context.prompt}"


async def forever(context: RunContext) -> Outcome:
    await context.emit("agent.message", {"text": "thinking"})
    await anyio.sleep_forever()
    raise AssertionError


async def talkative(context: RunContext) -> str:
    """Emit as many messages of 1,000 characters as the prompt's number."""
    for number in range(int(context.prompt)):
        await context.emit("agent.message", {"text": f"{number:06} " + "x" * 1000})
    return "done"


@define
class Serving:
    """A server under test."""

    url: str
    engine: Orchestrator
    store: SqliteStore
    lifetime: Lifetime
    client: httpx.AsyncClient
    metrics: Metrics
    agents_url: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host, int(port)

    async def session(self, provider: str = "echo") -> str:
        answer = await self.client.post("/sessions", json={"provider": provider})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["session"]["id"])

    async def say(self, session_id: str, text: str, *, wait: bool = True) -> str:
        answer = await self.client.post(f"/sessions/{session_id}/messages", json={"text": text})
        assert answer.status_code == 201, answer.text
        run_id = str(answer.json()["run"]["id"])
        if wait:
            waited = await self.client.get(f"/runs/{run_id}/wait", params={"timeout_s": 60})
            assert waited.json()["run"]["status"] == "completed", waited.text
        return run_id

    async def events(self, session_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            cursor = found[-1]["seq"] if found else 0
            answer = await self.client.get(
                f"/sessions/{session_id}/events", params={"cursor": cursor, "limit": 1000}
            )
            found += answer.json()["events"]
            if not answer.json()["has_more"]:
                return found

    async def event_count(self) -> int:
        return await self.store.read(lambda view: view.event_count())

    @property
    def readers(self) -> int:
        """The number of topics that streams subscribe to."""
        taken = self.engine.core.notifier._waiters
        return sum(topic == "events" or topic.startswith("session:") for topic in taken)


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    tokens: tuple[str, ...] = (),
    allowed_hosts: tuple[str, ...] = (),
    allowed_origins: tuple[str, ...] = (),
    agents: Mapping[str, Function | Runner] | None = None,
    max_concurrency: int = 4,
    first_request_s: float = FIRST_REQUEST_S,
    tls: ssl.SSLContext | None = None,
    trust: ssl.SSLContext | bool = False,
    metrics: Metrics | None = None,
    descriptors: Descriptors | None = None,
    targets: Mapping[str, Target] | None = None,
    **app_options: Any,
) -> AsyncIterator[Serving]:
    """Serve on a free port until the scope is left; with TLS, on a second one for agents, too."""
    functions: dict[str, Function | Runner] = {
        "echo": echo,
        "forever": forever,
        "talkative": talkative,
        **(agents or {}),
    }
    # Nothing is sent to browsers while a test runs.
    notify = NotifyOptions(push_services=(PUSH_SERVICE,), dwell_s=3600)
    config = EngineConfig(
        providers={
            name: ProviderConfig(
                agent if isinstance(agent, Runner) else FunctionRunner(name, agent), "function"
            )
            for name, agent in functions.items()
        },
        routing=Routing("echo"),
        cwd=str(directory),
        max_concurrency=max_concurrency,
        version="0.0-test",
        observers=(metrics := metrics or Metrics(),),
        host=this_host(),
        notify=notify,
        targets=targets or {},
        push=WebPush(options=notify, key_file=None),
    )
    guard = Guard(tokens, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
    lifetime, stopped = Lifetime(), anyio.Event()
    headers = {"Authorization": f"Bearer {tokens[0]}"} if tokens else {}
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0))
        url = url_of(listener, "127.0.0.1", secured=tls is not None)
        agents_door = stack.enter_context(listen("127.0.0.1", 0)) if tls is not None else None
        agents_url = url_of(agents_door, "127.0.0.1") if agents_door else None
        async with (
            SqliteStore(directory / "data.db") as store,
            Orchestrator(store, evolve(config, url=agents_url or url)) as engine,
        ):
            app = create_app(
                engine,
                guard=guard,
                lifetime=lifetime,
                version=config.version,
                metrics=metrics,
                descriptors=descriptors,
                **app_options,
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    partial(
                        serve,
                        app,
                        listener,
                        stopped.wait,
                        tls=tls,
                        agents=agents_door,
                        first_request_s=first_request_s,
                        descriptors=descriptors,
                    )
                )
                try:
                    async with httpx.AsyncClient(
                        base_url=url,
                        headers=headers,
                        timeout=70,
                        verify=trust,
                        # The connection stays open, even if a busy machine is slow between two calls.
                        limits=httpx.Limits(keepalive_expiry=None),
                    ) as client:
                        yield Serving(url, engine, store, lifetime, client, metrics, agents_url)
                finally:
                    lifetime.close()
                    stopped.set()


@asynccontextmanager
async def sse_reader(
    client: httpx.AsyncClient, path: str, **more: Any
) -> AsyncIterator[AsyncIterator[sse.Frame]]:
    """Read a stream of events as they come."""
    async with client.stream("GET", path, **more) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"

        async def frames() -> AsyncIterator[sse.Frame]:
            decoder = sse.Decoder()
            async for chunk in response.aiter_raw():
                for frame in decoder.feed(chunk):
                    if frame.data:
                        yield frame

        yield frames()


async def until(condition: Any, what: str) -> None:
    """Let the event loop run until a condition holds."""
    try:
        with anyio.fail_after(PATIENCE_S):
            while not condition():
                await anyio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


def exchange(address: tuple[str, int], request: bytes) -> tuple[int, bytes]:
    """Send bytes on a new connection; return the status and the whole answer."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request)
        answer = bytearray()
        while chunk := connection.recv(65536):
            answer += chunk
    return int(answer[:100].split(b" ", 2)[1]), bytes(answer)


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run another HTTP server on a free port, in a thread, until the scope is left."""
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


# --- a real agentd --------------------------------------------------------------------------


@define
class Process:
    """An agentd under test."""

    process: "Forked | subprocess.Popen[bytes]"
    url: str
    stderr_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end. After SIGTERM it gives runs at work 30 seconds."""
        return self.process.wait(seconds)

    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr().splitlines()]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT")}
    return {**kept, **more}


def named(directory: Path) -> dict[str, str]:
    """Return the variable that names a test's configuration: a named file is trusted."""
    return {"AGENTD_CONFIG": "agentd.toml"} if (directory / "agentd.toml").exists() else {}


def run_agentd(
    directory: Path, *arguments: str, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run an agentd that is expected to end by itself."""
    done = AGENTD.run(
        arguments,
        stdin=b"",
        cwd=directory,
        env=environment(**named(directory), **env or {}),
        timeout=120,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@contextmanager
def agentd(
    directory: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    through: Sequence[str] = (),
) -> Iterator[Process]:
    """Run agentd on a free port until the scope is left.

    :param through: a command that starts it, given before its own.
    """
    ready, errors = directory / "ready.json", directory / f"stderr-{os.urandom(4).hex()}"
    given = ["--port", "0", "--ready-file", str(ready), *arguments]
    variables = environment(**named(directory), **env or {})
    with errors.open("w") as sink, Path(os.devnull).open() as nothing:
        process: Forked | subprocess.Popen[bytes]
        if through:
            process = subprocess.Popen(
                [*through, sys.executable, "-m", "agentd", *given],
                cwd=directory,
                env=variables,
                stdin=nothing,
                stdout=sink,
                stderr=sink,
            )
        else:
            streams = [nothing.fileno(), sink.fileno(), sink.fileno()]
            process = AGENTD.start(given, cwd=directory, env=variables, streams=streams)
        try:
            yield Process(process, _url(process, ready, errors), errors)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


def _url(process: "Forked | subprocess.Popen[bytes]", ready: Path, errors: Path) -> str:
    import time

    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"agentd ended with {process.returncode}: {errors.read_text()}")
        if ready.exists():
            answer = json.loads(ready.read_text())
            if answer["pid"] == process.pid:
                return str(answer["url"])
        time.sleep(0.01)
    raise AssertionError(f"agentd is not ready: {errors.read_text()}")

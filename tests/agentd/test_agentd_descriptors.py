"""With few file descriptors left, streams are refused before connections and runs."""

import os
import re
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from loop_cost import loop_cost
from pace import allowed_work
from serving import agentd, serving, sse_reader, until
from websockets.asyncio.client import connect

from agent_orchestrator.descriptors import RateLimitedWarning
from agentd.descriptors import Descriptors

pytestmark = pytest.mark.anyio


def scarce(open_now: int = 0, limit: int = 100) -> Descriptors:
    """Return a count of descriptors with this limit, of which ``open_now`` are used for other things than connections."""
    found = Descriptors(limit, clock=lambda: 0.0)
    found._others, found._counted_at = open_now, 0.0
    return found


async def test_stream_is_refused_if_it_would_use_the_reserved_descriptors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    descriptors = scarce()
    async with serving(tmp_path, descriptors=descriptors) as server:
        session = await server.session()
        path = f"/stream?sessionId={session}"
        async with sse_reader(server.client, path) as frames:
            await anext(frames)
            descriptors._others = 80
            for _ in range(3):
                refused = await server.client.get(path)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "unavailable"
                assert int(refused.headers["Retry-After"]) > 0
            async with connect(server.url.replace("http", "ws") + path) as reader:
                assert "unavailable" in str(await reader.recv())
            # Calls, runs and existing streams go on.
            await server.say(session, "hello")
            assert (await anext(frames)).event
            descriptors._others = 0
            async with sse_reader(server.client, path) as again:
                await anext(again)
    warnings = [one for one in caplog.records if "few file descriptors are left" in one.message]
    assert len(warnings) == 1  # the next one, in a minute, has the count


async def test_unauthenticated_and_idle_connections_are_closed_for_new_ones(tmp_path: Path) -> None:
    descriptors = scarce(limit=64)
    async with serving(tmp_path, tokens=("t" * 40,), descriptors=descriptors) as server:
        with ExitStack() as held:
            for _ in range(60):
                one = held.enter_context(socket.create_connection(server.address))
                one.sendall(b"GET /sessions HTTP/1.1\r\nHost: ")
                await anyio.lowlevel.checkpoint()
            await server.session()
            await until(lambda: descriptors.connections <= 64 // 4 + 2, "the oldest ended")
            descriptors._others = 60  # only the reserve is left
            async with httpx.AsyncClient(
                base_url=server.url, headers=server.client.headers
            ) as other:
                assert (await other.get("/sessions")).status_code == 200


def test_rate_limited_warning_is_due_once_a_minute_with_its_count() -> None:
    now = [0.0]
    warning = RateLimitedWarning(60, clock=lambda: now[0])
    assert [warning.due() for _ in range(1000)] == [1] + [0] * 999
    now[0] = 60.0
    assert warning.due() == 1000


LIMITED = ("sh", "-c", 'ulimit -Sn 100 && ulimit -Hn 256 && exec "$@"', "limited")


def test_unauthenticated_connections_cannot_use_up_the_descriptors(tmp_path: Path) -> None:
    """A real daemon with a limit of 256 files, and 300 incomplete requests."""
    config = tmp_path / "agentd.toml"
    config.write_text(
        '[providers.limit]\nrunner = "command"\noutput = "text"\nargv = ["sh", "-c", "ulimit -Sn"]\n'
        '[routing]\ndefault = "limit"\n'
    )
    with agentd(tmp_path, "--config", str(config), through=LIMITED) as daemon:
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        assert re.search(r"Max open files +256 +256 ", limits)
        address = ("127.0.0.1", int(daemon.url.rpartition(":")[2]))
        with ExitStack() as held, httpx.Client(base_url=daemon.url, timeout=60) as client:
            for _ in range(300):
                one = held.enter_context(socket.create_connection(address, timeout=60))
                one.sendall(b"GET /sessions HTTP/1.1\r\nHost: ")
            made = client.post("/sessions", json={}).json()["session"]["id"]
            sent = client.post(f"/sessions/{made}/messages", json={"text": "go"}).json()
            path = f"/runs/{sent['run']['id']}/wait"
            run = client.get(path, params={"timeout_s": 50}).json()["run"]
            # The agent has the limit from before the daemon raised its own.
            assert (run["status"], run["result"]) == ("completed", {"text": "100\n"})
        assert len(daemon.stderr().splitlines()) < 30
        assert "Traceback" not in daemon.stderr()


def test_agents_connections_cannot_use_up_the_descriptors(tmp_path: Path) -> None:
    """Neither by idle connections nor by incomplete requests, with its run's token."""
    config = tmp_path / "agentd.toml"
    config.write_text(
        '[providers.agent]\nrunner = "command"\noutput = "text"\n'
        'argv = ["sh", "-c", "echo $AGENTCTL_AUTH_TOKEN > new && mv new token; cat >/dev/null; sleep 300"]\n'
        '[routing]\ndefault = "agent"\n'
    )
    with (
        agentd(tmp_path, "--config", str(config), through=LIMITED) as daemon,
        ExitStack() as held,
        httpx.Client(base_url=daemon.url, timeout=60) as client,
    ):
        address = ("127.0.0.1", int(daemon.url.rpartition(":")[2]))
        made = client.post("/sessions", json={"cwd": str(tmp_path)}).json()["session"]["id"]
        run = client.post(f"/sessions/{made}/messages", json={"text": "go"}).json()["run"]["id"]
        while not (tmp_path / "token").exists():
            assert client.get(f"/runs/{run}").json()["run"]["status"] == "running"
        head = f"Host: x\r\nAuthorization: Bearer {(tmp_path / 'token').read_text().strip()}\r\n"
        head = head.replace("Host: x", "Host: 127.0.0.1")
        asked = [
            f"GET /runs/{run}/wait?timeout_s=300 HTTP/1.1\r\n{head}\r\n",
            "POST /mcp HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
            f"{head}\r\n" + "{",
        ]
        streaming = held.enter_context(client.stream("GET", "/stream"))
        lines = streaming.iter_lines()
        next(lines)
        for number in range(400):
            one = held.enter_context(socket.create_connection(address, timeout=60))
            one.sendall(asked[number % 2].encode())
            if number % 50 == 0:
                with httpx.Client(base_url=daemon.url, timeout=60) as other:
                    assert other.get("/sessions").status_code == 200
        # The reader of a stream still has it.
        client.post("/sessions", json={}).raise_for_status()
        while "session.created" not in next(lines):
            pass
        client.post(f"/runs/{run}/cancel", json={}).raise_for_status()
    assert "Traceback" not in daemon.stderr()


async def test_connection_without_a_free_descriptor_waits_without_a_busy_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(tmp_path) as server:
        await server.client.get("/health")
        with socket.socket() as late:
            late.setblocking(False)  # noqa: FBT003
            most_s = allowed_work(0.2)  # it opens a file
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
            try:
                with pytest.raises(BlockingIOError):
                    late.connect(server.address)
                with loop_cost() as cost:
                    await anyio.sleep(0.5)
                assert cost.total_s < most_s
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
            late.settimeout(60)
            late.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = await anyio.to_thread.run_sync(late.recv, 100)
            assert answer.startswith(b"HTTP/1.1 200")
    warnings = [one for one in caplog.records if one.name in ("agentd.server", "asyncio")]
    assert len(warnings) == 1

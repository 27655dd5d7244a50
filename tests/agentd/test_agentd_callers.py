"""Callers without a token or with a wrong one: whether it is an agent or the daemon's user."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from driving import wait_until
from serving import Process, agentd

from agent_orchestrator.hosts.linux.orphans import tag_limit
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import hide_memory
from agentd import callers
from agentd.callers import ends_of, may_be_agents

IMPOSTOR = Path(__file__).with_name("impostor.py")
REFUSED = {"401", "403"}

WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
"""A prefix that starts a program without root's rights: root could see hidden files."""

CONFIG = f"""
[providers.impostor]
runner = "command"
argv = {json.dumps([sys.executable, str(IMPOSTOR)])}
[providers.sleeper]
runner = "command"
argv = ["sh", "-c", "echo asleep; exec sleep 600"]
[routing]
default = "sleeper"
"""

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 60) as line:
    line.sendall(sys.argv[3].encode())
    print(line.recv(65536).split()[1].decode())
"""


@contextmanager
def gateway(directory: Path, through: Sequence[str] = (), **env: str) -> Iterator[Process]:
    (directory / "agentd.toml").write_text(CONFIG)
    with agentd(directory, "--config", "agentd.toml", env=env, through=through) as daemon:
        yield daemon


def send(client: httpx.Client, provider: str) -> str:
    session = client.post("/sessions", json={"provider": provider}).json()["session"]["id"]
    sent = client.post(f"/sessions/{session}/messages", json={"text": "go"}).json()
    return str(sent["run"]["id"])


def outcome(client: httpx.Client, run_id: str) -> Any:
    waited = client.get(f"/runs/{run_id}/wait", params={"timeout_s": 200}, timeout=220)
    run = waited.json()["run"]
    assert run["status"] == "completed", run
    return json.loads(run["result"]["text"])


def at_work(client: httpx.Client) -> str:
    """Start an agent; return its session."""
    run_id = send(client, "sleeper")
    session: str = client.get(f"/runs/{run_id}").json()["run"]["session_id"]
    while True:
        found = client.get(f"/sessions/{session}/events", params={"wait_s": 20, "cursor": 2}).json()
        if any(one["event_type"] == "agent.message" for one in found["events"]):
            return session


LISTING = "GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def call(
    daemon: Process,
    before: Callable[[], object] | None = None,
    *,
    request: str = LISTING,
    **env: str,
) -> str:
    """Return the status for a program of this machine, by default without a token."""
    address = daemon.url.removeprefix("http://").split(":")
    done = subprocess.run(
        [sys.executable, "-S", "-c", CLIENT, *address, request],
        env=os.environ | env,
        preexec_fn=before,
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return done.stdout.decode().strip()


@pytest.mark.parametrize("tokens", ["open", "tokens", "without rights"])
def test_agent_without_its_runs_token_is_refused(tmp_path: Path, tokens: str) -> None:
    headers, env = {}, {}
    if tokens == "tokens":
        env = {"AGENTD_AUTH_TOKEN": "t" * 40}
        headers = {"Authorization": f"Bearer {'t' * 40}"}
    through = WITHOUT_RIGHTS if tokens == "without rights" else ()
    with (
        gateway(tmp_path, through, **env) as daemon,
        httpx.Client(base_url=daemon.url, headers=headers) as client,
    ):
        outcome_of_impostor = outcome(client, send(client, "impostor"))
        found = outcome_of_impostor["found"]
        assert found.pop("a connection that is closed") == "closed"
        if tokens == "tokens":
            assert "FileNotFoundError" in found.pop("the local token")
        assert not {name: what for name, what in found.items() if what not in REFUSED}
        request = client.get(f"/requests/{outcome_of_impostor['request']}").json()["request"]
        assert request["decided_by"] is None


def test_user_without_a_token_is_accepted_while_agents_are_at_work(tmp_path: Path) -> None:
    with gateway(tmp_path) as daemon, httpx.Client(base_url=daemon.url) as client:
        at_work(client)
        assert call(daemon) == "200"
        assert call(daemon, os.setsid) == "200"
        # A process that a service such as `at` starts for an agent has its environment.
        assert call(daemon, **{TAG_VARIABLE: "run_x.1"}) == "401"
        _, most = resource.getrlimit(10)
        limit = tag_limit("run_x.1"), most
        assert call(daemon, lambda: resource.setrlimit(10, limit)) == "401"


def test_an_agent_can_neither_claim_a_code_nor_use_a_device(tmp_path: Path) -> None:
    agent = {TAG_VARIABLE: "run_x.1"}
    with gateway(tmp_path) as daemon, httpx.Client(base_url=daemon.url) as client:
        at_work(client)
        code = client.post("/devices", json={}).json()["code"]
        body = json.dumps({"code": code})
        head = "POST /devices/claim HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
        claim = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        assert call(daemon, request=claim, **agent) == "403"
        claimed = client.post("/devices/claim", json={"code": code})
        assert claimed.status_code == 201, claimed.text
        device = f"{claimed.json()['device']['id']}.{claimed.json()['secret']}"
        cookie = claimed.headers["Set-Cookie"].partition(";")[0]
        secrets = f"Agentd-Device: {device}\r\nCookie: {cookie}\r\n"
        listing = LISTING.removesuffix("\r\n") + secrets + "\r\n"
        assert call(daemon, request=listing, **agent) == "403"
        assert call(daemon, request=listing) == "200"
        assert call(daemon) == "401"


def test_daemon_started_by_an_agent_accepts_callers_with_its_own_tag(tmp_path: Path) -> None:
    # A forked daemon would show the environment of its parent process.
    with gateway(tmp_path, ["/usr/bin/env"], **{TAG_VARIABLE: "run_x.1"}) as daemon:
        assert call(daemon, **{TAG_VARIABLE: "run_x.1"}) == "200"
        assert call(daemon, **{TAG_VARIABLE: "run_y.1"}) == "401"


def hiding(url: str, *, parents_user: int) -> str:
    """Return the status of a call by a process that hides its open files, below another user's process."""
    read, write = os.pipe()
    ready, go = os.pipe()
    if (parent := os.fork()) == 0:
        try:  # nothing may go on in a copy of this process
            if os.fork() == 0:
                os.read(ready, 1)
                hide_memory()
                host, port = url.removeprefix("http://").split(":")
                with socket.create_connection((host, int(port)), 60) as line:
                    line.sendall(b"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                    os.write(write, line.recv(65536).split()[1])
            else:
                os.setresuid(parents_user, parents_user, parents_user)
                os.write(go, b"x")
                os.wait()
        except BaseException:  # noqa: BLE001 - shown, and seen by the missing status
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    status = os.read(read, 10).decode()
    os.waitpid(parent, 0)
    for fd in (read, ready, go):
        os.close(fd)
    return status


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs two users")
def test_process_hiding_its_files_is_accepted_if_it_cannot_be_an_agent(tmp_path: Path) -> None:
    """As sshd does for the connections of a tunnel, after it has changed to its user."""
    with gateway(tmp_path, WITHOUT_RIGHTS) as daemon, httpx.Client(base_url=daemon.url) as client:
        assert hiding(daemon.url, parents_user=0) == "200"
        at_work(client)
        assert hiding(daemon.url, parents_user=65534) == "200"
        assert hiding(daemon.url, parents_user=0) == "401"


@pytest.mark.skipif(not shutil.which("setpriv") and os.geteuid() == 0, reason="needs setpriv")
def test_processes_of_the_same_user_cannot_read_the_daemons_memory(tmp_path: Path) -> None:
    with gateway(tmp_path, WITHOUT_RIGHTS, AGENTD_AUTH_TOKEN="t" * 40) as daemon:
        for name in ("environ", "mem", "fd/0", "maps"):
            path = f"/proc/{daemon.pid}/{name}"
            done = subprocess.run([*WITHOUT_RIGHTS, "cat", path], capture_output=True, check=False)
            assert b"Permission denied" in done.stderr, name
        with subprocess.Popen([*WITHOUT_RIGHTS, "sleep", "60"]) as other:
            name = Path(f"/proc/{other.pid}/comm")
            wait_until(lambda: name.read_text() == "sleep\n")  # setpriv itself cannot be read
            path = f"/proc/{other.pid}/environ"
            subprocess.run([*WITHOUT_RIGHTS, "cat", path], stdout=subprocess.DEVNULL, check=True)
            other.kill()
        metrics = httpx.get(
            f"{daemon.url}/metrics", headers={"Authorization": f"Bearer {'t' * 40}"}
        ).text
        assert "process_open_fds" in metrics


# --- the connection itself ------------------------------------------------------------------


@contextmanager
def connection(
    listen: str, connect: str, family: socket.AddressFamily
) -> Iterator[tuple[socket.socket, callers.Ends]]:
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((listen, 0))
        listener.listen()
        with socket.create_connection((connect, listener.getsockname()[1])) as line:
            other, _ = listener.accept()
            with other:
                ends = ends_of(other.getpeername(), other.getsockname())
                assert ends is not None
                yield line, ends


PLACES = [
    ("127.0.0.1", "127.0.0.1", socket.AF_INET),
    ("::1", "::1", socket.AF_INET6),
    ("::", "127.0.0.1", socket.AF_INET6),
    ("0.0.0.0", "127.0.0.1", socket.AF_INET),
]


@pytest.mark.parametrize(("listen", "connect", "family"), PLACES)
def test_netlink_and_proc_find_the_same_socket(
    listen: str, connect: str, family: socket.AddressFamily
) -> None:
    with connection(listen, connect, family) as (line, ends):
        inode = os.fstat(line.fileno()).st_ino
        for way in (callers._from_netlink, callers._from_proc_net):
            found = way(*ends)
            assert found is not None
            assert (found.inode, found.uid) == (inode, os.geteuid())
        # The caller is the daemon itself here, and then a process above it.
        assert not may_be_agents(ends)
        assert may_be_agents(ends, root=os.getppid())


def test_callers_are_identified_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(callers, "_from_netlink", refused)
    with connection(*PLACES[0]) as (_, ends):
        assert not may_be_agents(ends)
        assert may_be_agents(ends, root=os.getppid())


def test_closed_connection_may_be_an_agents() -> None:
    with connection(*PLACES[0]) as (line, ends):
        line.close()
        assert may_be_agents(ends)
    assert may_be_agents((("127.0.0.1", 1), ("127.0.0.1", 2)))


def test_connection_from_another_machine_is_not_an_agents() -> None:
    assert not may_be_agents((("192.0.2.7", 40000), ("192.0.2.1", 8765)))

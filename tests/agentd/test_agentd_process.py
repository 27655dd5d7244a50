"""agentd as a process: it starts, drains, stops, and reports errors."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pids import is_gone
from serving import Process, agentd, run_agentd

from agent_orchestrator.wire import sse

AGENT = """
import os, pathlib, sys, time
prompt = sys.stdin.read()
print("begun", flush=True)
pathlib.Path("begun.new").write_text(str(os.getpid()))
pathlib.Path("begun.new").rename("begun")
end = time.monotonic() + 60
while not pathlib.Path("go").exists() and time.monotonic() < end:
    time.sleep(0.01)
print("AGENTD variables:", sorted(name for name in os.environ if name.startswith("AGENTD")))
print("answer to", prompt)
"""


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A directory whose agentd.toml declares an agent that ends once a file ``go`` is there."""
    (tmp_path / "agent.py").write_text(AGENT)
    argv = json.dumps([sys.executable, str(tmp_path / "agent.py")])
    (tmp_path / "agentd.toml").write_text(
        f'[providers.slow]\nrunner = "command"\nargv = {argv}\nstop_grace_s = 0.2\n'
    )
    return tmp_path


def call(daemon: Process, method: str, path: str, **more: Any) -> Any:
    answer = httpx.request(method, daemon.url + path, timeout=60, **more)
    assert answer.is_success, answer.text
    return answer.json()


def start_run(daemon: Process, directory: Path) -> str:
    session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
    made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})
    wait_for((directory / "begun").exists, "the agent has begun")
    return str(made["run"]["id"])


def wait_for(condition: Any, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def one_line(text: str, *parts: str) -> None:
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    for part in parts:
        assert part in text


def test_daemon_starts_answers_and_stops(tmp_path: Path) -> None:
    with agentd(tmp_path) as daemon:
        assert call(daemon, "GET", "/health")["status"] == "ok"
        status = call(daemon, "GET", "/daemon/status")
        assert status["pid"] == daemon.pid
        assert [provider["name"] for provider in status["providers"]] == ["codex", "demo"]
        database = tmp_path / ".data" / "agent-orchestrator.db"
        assert database.stat().st_mode & 0o077 == 0
        assert database.parent.stat().st_mode & 0o077 == 0
        # A forked daemon also has httpx and mcp loaded, about 5 MiB, for the tests of tools.
        assert psutil.Process(daemon.pid).memory_info().rss < 100 * 1024 * 1024
        assert (tmp_path / "ready.json").stat().st_mode & 0o077 == 0
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert not (tmp_path / "ready.json").exists()
        messages = [entry["message"] for entry in daemon.log()]
        assert messages[0] == f"listening on {daemon.url}"
        assert messages[-3:] == ["draining", "drained", "stopped"]
        assert {entry["level"] for entry in daemon.log()} == {"info"}


def test_drain_finishes_running_runs_and_refuses_new_work(configured: Path) -> None:
    with agentd(configured, "--auth-token", "secret-token-1") as daemon:
        client = httpx.Client(
            base_url=daemon.url, headers={"Authorization": "Bearer secret-token-1"}, timeout=60
        )
        session = client.post("/sessions", json={}).json()["session"]["id"]
        path = f"/sessions/{session}/messages"
        run = client.post(path, json={"text": "canary prompt"}).json()["run"]["id"]
        wait_for((configured / "begun").exists, "the agent has begun")
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: client.get("/health").json()["status"] == "draining", "it drains")
        assert client.get("/daemon/status").json()["daemon_health"] == "draining"
        refused = client.post(path, json={"text": "more"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get(f"/runs/{run}").json()["run"]["status"] == "running"
        (configured / "go").touch()
        assert daemon.wait() == 0
        client.close()
        drained = next(entry for entry in daemon.log() if entry["message"] == "drained")
        assert (drained["finished"], drained["released"]) == (1, 0)
        assert "canary prompt" not in daemon.stderr()
        assert "secret-token-1" not in daemon.stderr()
    with agentd(configured) as daemon:
        ended = call(daemon, "GET", f"/runs/{run}")["run"]
        assert (ended["status"], ended["attempt"]) == ("completed", 1)
        assert "AGENTD variables: []" in ended["result"]["text"]


def test_run_that_outlasts_the_grace_period_is_queued_again(configured: Path) -> None:
    with agentd(configured, "--grace-s", "0.1") as daemon:
        run = start_run(daemon, configured)
        agent = int((configured / "begun").read_text())
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0
        assert is_gone(agent)
    (configured / "go").touch()
    with agentd(configured) as daemon:
        ended = call(daemon, "GET", f"/runs/{run}/wait")["run"]
        assert (ended["status"], ended["attempt"]) == ("completed", 2)


def test_second_signal_stops_the_daemon_at_once(configured: Path) -> None:
    with agentd(configured, "--grace-s", "600") as daemon:
        start_run(daemon, configured)
        agent = int((configured / "begun").read_text())
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: call(daemon, "GET", "/health")["status"] == "draining", "it drains")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 1
        assert is_gone(agent)
        assert "Traceback" not in daemon.stderr(), daemon.stderr()


def test_stream_resumes_after_a_restart(configured: Path) -> None:
    (configured / "go").touch()
    with agentd(configured) as daemon:
        run = start_run(daemon, configured)
        session = call(daemon, "GET", f"/runs/{run}/wait")["run"]["session_id"]
        before = read_stream(daemon, session, None, 5)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    with agentd(configured) as daemon:
        made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "again"})
        call(daemon, "GET", f"/runs/{made['run']['id']}/wait")
        last = call(daemon, "GET", f"/sessions/{session}")["session"]["last_seq"]
        after = read_stream(daemon, session, before[-1].id, last - 5)
    assert [frame.id for frame in before + after] == [str(n + 1) for n in range(last)]


def read_stream(daemon: Process, session: str, last_id: str | None, count: int) -> list[sse.Frame]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    decoder, found = sse.Decoder(), []
    url = f"{daemon.url}/stream?sessionId={session}"
    with httpx.stream("GET", url, headers=headers, timeout=60) as response:
        for chunk in response.iter_raw():
            found += [frame for frame in decoder.feed(chunk) if frame.data]
            if len(found) >= count:
                return found[:count]
    raise AssertionError("the stream ended early")


def test_stalled_reader_does_not_delay_the_shutdown(configured: Path) -> None:
    (configured / "go").touch()
    (configured / "agent.py").write_text("for n in range(6000): print('x' * 1000)")
    with agentd(configured) as daemon:
        session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
        made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})
        call(daemon, "GET", f"/runs/{made['run']['id']}/wait")
        host, _, port = daemon.url.removeprefix("http://").rpartition(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect((host, int(port)))
            connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1000)
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert "Traceback" not in daemon.stderr(), daemon.stderr()


def test_second_daemon_on_the_same_database_is_refused(tmp_path: Path) -> None:
    with agentd(tmp_path) as daemon:
        second = run_agentd(tmp_path, "--port", "0")
        assert second.returncode == 1
        assert second.stdout == ""
        one_line(second.stderr, "agent-orchestrator.db", "in use", str(daemon.pid))
        assert call(daemon, "GET", "/health")["status"] == "ok"


def test_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run_agentd(tmp_path, "--port", str(port))
    assert ended.returncode == 1
    one_line(ended.stderr, f"127.0.0.1:{port}", "in use")
    assert not (tmp_path / ".data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_daemon_without_a_token_refuses_a_non_loopback_address(tmp_path: Path, host: str) -> None:
    ended = run_agentd(tmp_path, "--host", host, "--port", "0")
    assert ended.returncode == 1
    one_line(ended.stderr, host, "AGENTD_AUTH_TOKEN")


def test_tree_limits_of_flags_and_file_are_enforced(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text("[limits]\ndepth = 1\nchildren = 9\n")
    with agentd(tmp_path, "--max-children", "2") as daemon:
        body = {"task": "x", "provider": "manual"}
        parent = call(daemon, "POST", "/sessions", json={"provider": "manual"})["session"]["id"]

        def refused(path: str) -> Any:
            answer = httpx.post(daemon.url + path, json=body, timeout=60)
            assert answer.status_code == 409, answer.text
            return answer.json()["error"]["details"]

        for _ in range(2):
            child = call(daemon, "POST", f"/sessions/{parent}/spawn", json=body)["session"]["id"]
        assert refused(f"/sessions/{parent}/spawn") == {"limit": "children", "most": 2}
        assert refused(f"/sessions/{child}/spawn") == {"limit": "depth", "most": 1}


@pytest.mark.parametrize(
    ("arguments", "config", "status", "parts"),
    [
        (["--port", "x"], "", 2, ["--port", "integer"]),
        (["--port", "70000"], "", 2, ["--port", "65,535"]),
        (["--max-concurrency", "0"], "", 2, ["--max-concurrency"]),
        (["--log-format", "xml"], "", 2, ["--log-format"]),
        (["--no-such-thing"], "", 2, ["--no-such-thing"]),
        (["--config", "gone.toml"], "", 1, ["gone.toml"]),
        ([], "[daemon]\nprot = 1\n", 1, ["agentd.toml", "daemon.prot"]),
        ([], "[daemon]\nport = 'x'\n", 1, ["agentd.toml", "daemon.port"]),
        ([], "[limits]\nchildren = 10001\n", 1, ["agentd.toml", "limits.children", "10,000"]),
        ([], "[deamon]\n", 1, ["agentd.toml", "deamon"]),
        ([], "port = \n", 1, ["agentd.toml", "TOML"]),
        ([], "[providers.x]\nargv = ['a']\n", 1, ["agentd.toml", "providers.x.runner"]),
        ([], "[providers.x]\nrunner = 'nothing'\n", 1, ["providers.x", "nothing"]),
        ([], "[providers.x]\nrunner = 'command'\nargw = 1\n", 1, ["providers.x", "argw"]),
        ([], "[providers.manual]\nrunner = 'demo'\n", 1, ["providers.manual"]),
        ([], "[routing]\ndefault = 'nobody'\n", 1, ["routing.default", "nobody"]),
    ],
)
def test_invalid_setting_is_a_one_line_error(
    tmp_path: Path, arguments: list[str], config: str, status: int, parts: list[str]
) -> None:
    if config:
        (tmp_path / "agentd.toml").write_text(config)
    ended = run_agentd(tmp_path, *arguments)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    for part in parts:
        assert part in line
    one_line(ended.stderr, "agentd --help" if status == 2 else "agentd: ")
    assert not (tmp_path / ".data").exists()


def test_module_that_exits_on_import_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "agentd.toml").write_text(
        "[providers.x]\nrunner = 'function'\ntarget = 'leaves:run'\n"
    )
    ended = run_agentd(tmp_path, "--port", "0", env={"PYTHONPATH": str(tmp_path)})
    assert ended.returncode == 1
    one_line(ended.stderr, "agentd: providers.x", "leaves:run", "SystemExit: 3")


@pytest.mark.parametrize("name", ["", "gone/ready.json"])
def test_ready_file_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    ended = run_agentd(tmp_path, "--port", "0", "--ready-file", str(tmp_path / name))
    assert ended.returncode == 1
    one_line(ended.stderr, "agentd: --ready-file", "directory")
    assert not (tmp_path / ".data").exists()


def test_invalid_host_is_an_error(tmp_path: Path) -> None:
    ended = run_agentd(tmp_path, "--host", "256.1.1.1", "--port", "0")
    assert ended.returncode == 1
    one_line(ended.stderr, "256.1.1.1", "neither an address")


def test_log_shows_the_source_of_tokens_and_warns_of_a_short_one(tmp_path: Path) -> None:
    variables = {"AGENTD_AUTH_TOKENS": "in-the-environment"}
    with agentd(tmp_path, "--auth-token", "e", env=variables) as daemon:
        first, second = daemon.log()[:2]
        assert first["message"] == f"listening on {daemon.url}"
        assert first["auth"] == "token (--auth-token)"
        assert second["level"] == "warning"
        assert "fewer than 8 characters" in second["message"]


def test_foreign_database_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_text("not a database " * 500)
    ended = run_agentd(tmp_path, "--port", "0", "--db", "other.db")
    assert ended.returncode == 1
    one_line(ended.stderr, "other.db")
    assert (tmp_path / "other.db").read_text() == "not a database " * 500


def test_database_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_agentd(tmp_path, "--port", "0", "--db", "file/x.db")
    assert ended.returncode == 1
    one_line(ended.stderr, "file")


def test_help_and_version_are_printed(tmp_path: Path) -> None:
    output = run_agentd(tmp_path, "--help").stdout
    for name in ("--host", "--db", "--auth-token", "--codex-extra-arg", "AGENTD_AUTH_TOKENS"):
        assert name in output
    assert "Examples:" in output
    assert run_agentd(tmp_path, "--version").stdout.startswith("agentd 0.")


def test_version_is_printed_without_importing_the_web_server(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from agentd.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'quart', 'hypercorn', 'anyio', 'apsw', 'cattrs'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ),
    ).stdout  # fmt: skip
    assert output.splitlines()[-1] == "[]"

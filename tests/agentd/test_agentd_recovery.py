"""agentd after it was killed: its runs are recovered, and no old process is left."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pace import allowed
from serving import Process, agentd
from test_agentd_process import call, wait_for

AGENT = """
import json, os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
prompt = sys.stdin.read()
print(json.dumps({"type": "thread", "thread": "t-1"}), flush=True)
print(json.dumps({"type": "say", "text": "begun"}), flush=True)
if sys.argv[1:] == ["resume", "t-1"]:
    print(json.dumps({"type": "say", "text": "resumed with: " + prompt}), flush=True)
    raise SystemExit
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
pathlib.Path("begun.new").write_text(json.dumps([os.getpid(), child.pid]))
pathlib.Path("begun.new").rename("begun")
time.sleep(60)
"""


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A directory whose agent ignores signals, and answers at once when it is resumed."""
    (tmp_path / "agent.py").write_text(AGENT)
    argv = [sys.executable, str(tmp_path / "agent.py")]
    (tmp_path / "agentd.toml").write_text(
        f"""
        [providers.stubborn]
        runner = "command"
        argv = {json.dumps(argv)}
        resume_argv = {json.dumps([*argv, "resume", "{thread}"])}
        output = "jsonl"
        map = [
            {{ when = {{ type = "thread" }}, thread = "$.thread" }},
            {{ when = {{ type = "say" }}, emit = "agent.message", data = {{ text = "$.text" }} }},
        ]
        """
    )
    return tmp_path


def at_work(daemon: Process, directory: Path) -> tuple[dict[str, Any], list[int]]:
    """Start the agent on a message; return the run, and its processes."""
    session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
    made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})
    wait_for((directory / "begun").exists, "the agent has begun")
    run = made["run"]["id"]

    def said() -> bool:
        events = call(daemon, "GET", f"/sessions/{session}/events")["events"]
        return any(event["event_type"] == "agent.message" for event in events)

    wait_for(said, "the agent has said something")
    return call(daemon, "GET", f"/runs/{run}")["run"], json.loads((directory / "begun").read_text())


def events_of(daemon: Process, run: dict[str, Any], event_type: str) -> list[dict[str, Any]]:
    events = call(daemon, "GET", f"/sessions/{run['session_id']}/events")["events"]
    return [event["data"] for event in events if event["event_type"] == event_type]


def test_run_resumes_after_a_kill_and_its_old_processes_are_gone(configured: Path) -> None:
    with agentd(configured) as daemon:
        run, pids = at_work(daemon, configured)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (configured / "ready.json").unlink()
    with agentd(configured) as daemon:
        ended = call(daemon, "GET", f"/runs/{run['id']}/wait")["run"]
        assert not [pid for pid in pids if _is_alive(pid)]
        assert (ended["status"], ended["attempt"]) == ("completed", 2), ended
        assert "same conversation" in ended["result"]["text"]
        (recovered,) = events_of(daemon, run, "run.recovered")
        assert (recovered["action"], recovered["delivered"]) == ("resumed", True)
        attempts = call(daemon, "GET", f"/runs/{run['id']}/diagnose")["diagnostics"]["attempts"]
        assert [one["outcome"] for one in attempts] == ["worker_lost", "completed"]


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_drain_ends_in_time_though_the_agent_ignores_signals(configured: Path) -> None:
    with agentd(configured, "--grace-s", "0.5") as daemon:
        run, pids = at_work(daemon, configured)
        with httpx.stream("GET", f"{daemon.url}/stream?sessionId={run['session_id']}") as stream:
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            streamed = "".join(stream.iter_text())
        assert daemon.wait() == 0
        assert time.monotonic() - began < allowed(0.5 + 5)
        assert "run.queued" in streamed.split("run.started", 1)[1]
        assert not [pid for pid in pids if _is_alive(pid)]
        drained = next(entry for entry in daemon.log() if entry["message"] == "drained")
        assert drained["released"] == 1
    report = json.loads((configured / ".data" / "agent-orchestrator.db-stopped").read_text())
    assert (report["pid"], report["released"], report["parked"]) == (daemon.pid, [run["id"]], [])
    with agentd(configured) as daemon:
        run = call(daemon, "GET", f"/runs/{run['id']}/wait")["run"]
        assert (run["status"], run["attempt"]) == ("completed", 2)
        assert "was stopped" in run["result"]["text"]
        assert events_of(daemon, run, "run.recovered") == []


UNANSWERED = """
import sys, threading
from pathlib import Path
from agent_orchestrator.hosts.local import LocalHost

look = LocalHost.is_directory

def is_directory(host, path):
    if Path("unanswered").exists():
        Path("asked").touch()
        threading.Event().wait()
    return look(host, path)

LocalHost.is_directory = is_directory
sys.argv = ["agentd", *sys.argv[4:]]
from agentd.cli import main
main()
"""


def test_drain_ends_in_time_though_the_directory_of_a_session_does_not_answer(
    configured: Path,
) -> None:
    through = [sys.executable, "-c", UNANSWERED]
    with agentd(configured, "--grace-s", "0.5", through=through) as daemon:
        session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
        (configured / "unanswered").touch()
        made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})
        wait_for((configured / "asked").exists, "the run's directory is looked at")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - began < allowed(0.5 + 5)
    (configured / "unanswered").unlink()
    with agentd(configured) as daemon:
        run = call(daemon, "GET", f"/runs/{made['run']['id']}")["run"]
        assert run["status"] in ("queued", "running"), run


STUBBORN = """
import json, os, pathlib, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: pathlib.Path("asked").touch())
pathlib.Path("begun.new").write_text(json.dumps([os.getpid()]))
pathlib.Path("begun.new").rename("begun")
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def with_long_grace(tmp_path: Path) -> Path:
    """A directory whose agent notes and ignores signals, and has ten minutes after the first."""
    (tmp_path / "agent.py").write_text(STUBBORN)
    argv = [sys.executable, str(tmp_path / "agent.py")]
    (tmp_path / "agentd.toml").write_text(
        f"""
        [providers.with_long_grace]
        runner = "command"
        argv = {json.dumps(argv)}
        stop_grace_s = 600
        """
    )
    return tmp_path


@pytest.mark.parametrize("doing", ["at work", "being canceled"])
def test_drain_ends_in_time_though_stop_grace_s_is_long(with_long_grace: Path, doing: str) -> None:
    with agentd(with_long_grace, "--grace-s", "1") as daemon:
        run, pids = at_work(daemon, with_long_grace)
        if doing == "being canceled":
            call(daemon, "POST", f"/runs/{run['id']}/cancel", json={})
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - began < allowed(1 + 5)
        assert not [pid for pid in pids if _is_alive(pid)]
    report = json.loads((with_long_grace / ".data" / "agent-orchestrator.db-stopped").read_text())
    assert report["released"] == ([run["id"]] if doing == "at work" else [])


@pytest.mark.parametrize("grace_s", ["60", "0"], ids=["in the grace period", "being stopped"])
def test_second_signal_kills_agents_at_once(with_long_grace: Path, grace_s: str) -> None:
    with agentd(with_long_grace, "--grace-s", grace_s) as daemon:
        _, pids = at_work(daemon, with_long_grace)
        daemon.signal(signal.SIGTERM)
        if grace_s == "0":
            wait_for((with_long_grace / "asked").exists, "the agent is asked to stop")
        else:
            wait_for(lambda: call(daemon, "GET", "/health")["status"] == "draining", "it drains")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 1
        assert time.monotonic() - began < allowed(2)
        assert not [pid for pid in pids if _is_alive(pid)]
        assert "Traceback" not in daemon.stderr()


DEAF = """
import anyio

async def deaf(context):
    await context.emit("agent.message", {"text": "begun"})
    open("begun", "w").write("[]")
    while True:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
"""


def test_drain_ends_in_time_though_a_function_ignores_cancellation(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    (tmp_path / "agentd.toml").write_text(
        'providers.deaf = { runner = "function", target = "deaf:deaf" }'
    )
    with agentd(tmp_path, "--grace-s", "0.1", env={"PYTHONPATH": str(tmp_path)}) as daemon:
        at_work(daemon, tmp_path)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 1
        assert time.monotonic() - began < allowed(0.1 + 5)
        assert any(entry["level"] == "critical" for entry in daemon.log())


def test_request_survives_a_kill_and_is_answered_once(configured: Path) -> None:
    with agentd(configured) as daemon:
        run, pids = at_work(daemon, configured)
        asked = call(
            daemon,
            "POST",
            f"/runs/{run['id']}/reply-parent",
            json={"text": "May I?", "request_kind": "approval_request", "wait": True},
        )["request"]
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (configured / "ready.json").unlink()
    with agentd(configured) as daemon:

        def state() -> tuple[str, str | None]:
            found = call(daemon, "GET", f"/runs/{run['id']}")["run"]
            return found["status"], found["worker_id"]

        # On a busy machine the processes may not be confirmed gone at the first try.
        wait_for(lambda: state() == ("waiting", None), "the run waits without a worker")
        assert not [pid for pid in pids if _is_alive(pid)]
        path = f"/requests/{asked['id']}/resolve"
        call(daemon, "POST", path, json={"decision": "approve"})
        ended = call(daemon, "GET", f"/runs/{run['id']}/wait")["run"]
        assert ended["result"]["text"] == "resumed with: Your request was approved: May I?"


def test_parked_agent_is_stopped_and_resumed_with_the_answer(configured: Path) -> None:
    with agentd(configured, "--park-after-s", "0") as daemon:
        run, pids = at_work(daemon, configured)
        question = {"text": "May I?", "request_kind": "approval_request", "wait": True}
        path = f"/runs/{run['id']}/reply-parent"
        asked = call(daemon, "POST", path, json=question)["request"]
        wait_for(lambda: not any(_is_alive(pid) for pid in pids), "the agent is gone")

        def issue() -> str:
            found = call(daemon, "GET", f"/runs/{run['id']}/diagnose")["diagnostics"]
            return str(found["likely_issue"]["code"])

        assert issue() == "waiting_on_request"
        call(daemon, "POST", f"/requests/{asked['id']}/resolve", json={"decision": "approve"})
        ended = call(daemon, "GET", f"/runs/{run['id']}/wait")["run"]
        assert ended["result"]["text"] == "resumed with: Your request was approved: May I?"
        assert (ended["attempt"], issue()) == (2, "none")

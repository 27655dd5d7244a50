"""Many misbehaving agents in a real agentd: each run ends properly and is explained by its
diagnosis, memory stays bounded, and another session is not affected.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pace import allowed
from serving import Process, agentd
from test_agentd_process import call

AGENT = """
import os, signal, subprocess, sys, time
scene = sys.argv[1]
out = sys.stdout.buffer

def say(data):
    out.write(data)
    out.flush()

if scene != "deaf":
    sys.stdin.read()
if scene == "good":
    say(b"good\\n")
elif scene == "deaf":
    say(b"not heard\\n")
elif scene == "binary":
    say(b"caf\\xe9 \\xff\\0 " + "\\ud800".encode("utf-8", "surrogatepass") + b"\\nno newline")
elif scene == "surrogates":
    say(b'{"type": "say", "text": "half \\\\ud800"}\\n')
elif scene == "deep":
    say(b'{"type": "say", "text": ' + b"[" * 100000 + b"]" * 100000 + b"}\\n")
elif scene == "line":
    say(b"x" * 20_000_000 + b"\\n")
elif scene == "lines":
    for _ in range(100):
        say(b"tiny\\n" * 1000)
elif scene == "stderr":
    for _ in range(1000):
        os.write(2, b"e" * 99_999 + b"\\n")
elif scene == "closed":
    say(b"bye\\n")
    os.close(1)
    time.sleep(600)
elif scene == "holder":
    subprocess.Popen(["sleep", "600"], start_new_session=True)
elif scene == "storm":
    for number in range(200):
        if os.fork() == 0:
            if number % 2:
                os.setsid()
                if os.fork():
                    os._exit(0)
            time.sleep(600)
elif scene == "stubborn":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        say(b".\\n")
        time.sleep(0.1)
elif scene == "endless":
    time.sleep(600)
"""

ENDS: dict[str, tuple[str, str, str]] = {
    # scene: status of its run, code of its diagnosis, and a part of the message
    "deaf": ("completed", "none", "completed"),
    "binary": ("completed", "none", "completed"),
    "surrogates": ("completed", "none", "completed"),
    "deep": ("completed", "none", "completed"),
    "line": ("completed", "none", "completed"),
    "lines": ("completed", "none", "completed"),
    "stderr": ("completed", "none", "completed"),
    "holder": ("completed", "none", "completed"),
    "storm": ("completed", "none", "completed"),
    "closed": ("failed", "agent_silent", "silence_timeout_s"),
    "endless": ("failed", "agent_silent", "silence_timeout_s"),
    "stubborn": ("failed", "unknown", "run_timeout_s"),
}

SLOWEST_S = 5.0
"""Maximum time of a message to the good agent meanwhile, on an idle machine."""

MOST_MEMORY = 600 * 2**20
"""A line of 20 MB is in memory as bytes, text, JSON and in the database's page cache."""


def peak(pid: int) -> int:
    """Return the peak memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found) * 1024


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    text = "[daemon]\nmax_concurrency = 16\n[routing]\ndefault = 'good'\n"
    for scene in ("good", *ENDS):
        argv = json.dumps([sys.executable, "-S", str(tmp_path / "agent.py"), scene])
        text += f"[providers.{scene}]\nrunner = 'command'\nargv = {argv}\nstop_grace_s = 0.2\n"
        if scene in ("closed", "endless"):
            text += "silence_timeout_s = 4\n"
        if scene == "stubborn":
            text += "run_timeout_s = 4\n"
        if scene in ("surrogates", "deep"):
            text += (
                "output = 'jsonl'\n"
                "map = [{ when = { type = 'say' }, emit = 'agent.message',"
                " data = { text = '$.text' } }]\n"
            )
    (tmp_path / "agentd.toml").write_text(text)
    return tmp_path


def sent(daemon: Process, provider: str) -> dict[str, Any]:
    session = call(daemon, "POST", "/sessions", json={"provider": provider})["session"]["id"]
    made = call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "go"})
    return dict(made["run"])


@pytest.mark.timeout(240)
def test_misbehaving_agents_end_are_diagnosed_and_do_not_affect_others(configured: Path) -> None:
    with agentd(configured) as daemon:
        process = psutil.Process(daemon.pid)
        runs = {scene: sent(daemon, scene) for scene in ENDS}
        slowest = 0.0
        deadline = time.monotonic() + 180
        left = set(ENDS)
        while left:
            assert time.monotonic() < deadline, left
            began = time.monotonic()
            good = sent(daemon, "good")
            answer = call(daemon, "GET", f"/runs/{good['id']}/wait?timeout_s=60")["run"]
            slowest = max(slowest, time.monotonic() - began)
            assert answer["result"] == {"text": "good"}
            for scene in tuple(left):
                status = call(daemon, "GET", f"/runs/{runs[scene]['id']}")["run"]["status"]
                if status not in ("queued", "running"):
                    left.remove(scene)
        for scene, (status, code, words) in ENDS.items():
            answer = call(daemon, "GET", f"/runs/{runs[scene]['id']}/diagnose")
            issue = answer["diagnostics"]["likely_issue"]
            assert (answer["run"]["status"], issue["code"]) == (status, code), (
                scene,
                answer["run"],
            )
            assert words in issue["message"]
            assert answer["diagnostics"]["process_tree"] == []
        # None of their processes is left, only the fork server and its idle supervisors.
        names = set()
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a supervisor without an agent may be ending
                names.add(child.name())
        assert names <= {"agent-forkserv", "agent-supervise"}, names
        assert slowest < allowed(SLOWEST_S)
        print(f"slowest {slowest:.2f} s, memory {peak(daemon.pid) >> 20} MiB")
        assert peak(daemon.pid) < MOST_MEMORY
        assert "Traceback" not in daemon.stderr()

"""The umask applies to agents; the daemon's own files are always private."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import agentd, environment

CONFIG = """
[providers.agent]
runner = "command"
argv = ["sh", "-c", "umask; mkdir folder; echo > folder/file"]
[routing]
default = "agent"
"""


def modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in directory.rglob("*")
    }


def work(url: str, cwd: Path) -> str:
    with httpx.Client(base_url=url, timeout=60) as client:
        made = client.post("/sessions", json={"cwd": str(cwd)}).json()
        path = f"/sessions/{made['session']['id']}/messages"
        run_id = client.post(path, json={"text": "x"}).json()["run"]["id"]
        run = client.get(f"/runs/{run_id}/wait", params={"timeout_s": 50}).json()["run"]
        assert run["status"] == "completed", run
        backup = str(cwd.parent / "own" / "copy.db")
        assert client.post("/daemon/backup", json={"path": backup}).status_code == 200
        return str(run["result"]["text"])


@pytest.mark.parametrize("umask", ["0000", "0027", "0077"])
def test_agents_have_the_umask_that_the_daemon_was_started_with(tmp_path: Path, umask: str) -> None:
    own, cwd = tmp_path / "own", tmp_path / "cwd"
    own.mkdir()
    cwd.mkdir()
    (own / "agentd.toml").write_text(CONFIG)
    state = tmp_path / "state"
    command = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    env = {"XDG_STATE_HOME": str(state)}
    with agentd(own, env=env, through=command) as daemon:
        assert work(daemon.url, cwd) == umask
        given = int(umask, 8)
        assert modes(cwd) == {"folder": 0o777 & ~given, "folder/file": 0o666 & ~given}
        seen = modes(own) | modes(state)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    seen |= modes(own)
    ours = {
        name: mode for name, mode in seen.items() if "toml" not in name and "stderr" not in name
    }
    assert {".data/agent-orchestrator.db", ".data/agent-orchestrator.db-stopped"} <= ours.keys()
    assert {"copy.db", "ready.json"} <= ours.keys()
    assert not {name: oct(mode) for name, mode in ours.items() if mode & 0o077}


def test_log_of_a_daemon_started_by_agentctl_is_private(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentctl.main", "--format", "json", "daemon", "start"]
    done = subprocess.run(
        [*command, "--", "--port", "0"],
        cwd=tmp_path,
        env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
        preexec_fn=lambda: os.umask(0),
        capture_output=True,
        timeout=60,
        check=True,
    )
    pid = json.loads(done.stdout)["pid"]
    try:
        found = modes(tmp_path)
        assert found[".data"] == 0o700
        assert found[".data/agentd.log"] == 0o600
        assert not {name: oct(mode) for name, mode in found.items() if mode & 0o077}
    finally:
        os.kill(pid, signal.SIGKILL)

"""Agents do not inherit variables of the git hook, service or terminal that started agentd."""

import json
import subprocess
from pathlib import Path

import httpx
from serving import agentd

CONFIG = """
[providers.agent]
runner = "command"
argv = ["sh", "-c", "git rev-parse --absolute-git-dir; env"]
env = { set = { VIRTUAL_ENV = "of the provider" } }
[routing]
default = "agent"
"""


def test_agents_do_not_inherit_the_variables_of_a_git_hook(tmp_path: Path) -> None:
    for name in ("hook", "work"):
        subprocess.run(["git", "init", "-q", tmp_path / name], check=True)
    hook, work = tmp_path / "hook", tmp_path / "work"
    (hook / "agentd.toml").write_text(CONFIG)
    env = {
        "GIT_DIR": str(hook / ".git"),
        "GIT_INDEX_FILE": str(hook / ".git" / "index"),
        "PYTHONPATH": str(hook),
        "VIRTUAL_ENV": str(hook),
        "NOTIFY_SOCKET": "/run/notify",
        "TMUX": "/tmp/tmux,1,0",
        "VSCODE_IPC_HOOK_CLI": "/tmp/vscode.sock",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": str(hook),
        "GIT_OBJECT_DIRECTORY": str(hook / ".git" / "objects"),
        "INIT_CWD": str(hook),
        "SSH_AUTH_SOCK": "/tmp/agent",
    }
    with agentd(hook, env=env) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        session = client.post("/sessions", json={"cwd": str(work)}).json()["session"]["id"]
        sent = client.post(f"/sessions/{session}/messages", json={"text": "x"}).json()
        waited = client.get(f"/runs/{sent['run']['id']}/wait", params={"timeout_s": 50}).json()
        assert waited["run"]["status"] == "completed", json.dumps(waited)
        directory, *lines = waited["run"]["result"]["text"].splitlines()
        assert directory == str(work / ".git")
        seen = dict(line.partition("=")[::2] for line in lines)
        assert seen.keys() & env.keys() == {"VIRTUAL_ENV", "SSH_AUTH_SOCK"}
        assert seen["VIRTUAL_ENV"] == "of the provider"
        findings = client.get("/daemon/doctor").json()["findings"]
        (finding,) = [one for one in findings if one["about"] == "environment"]
        named = "GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0, GIT_CONFIG_VALUE_0, GIT_DIR, GIT_INDEX_FILE, GIT_OBJECT_DIRECTORY"
        assert f"{named}, INIT_CWD, PYTHONPATH, VIRTUAL_ENV" in finding["message"]

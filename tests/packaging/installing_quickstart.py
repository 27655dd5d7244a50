"""`bin/quickstart` for a new user."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from checkout import ROOT, finish, wait_for_file


def start(command: list[str], env: Mapping[str, str], cwd: Path = ROOT) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def members(group: int) -> list[psutil.Process]:
    """Return the processes that still run in the script's session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who is not logged in and has settings for another daemon."""
    (tmp_path / "home").mkdir()
    other = {"AGENTCTL_URL": "http://127.0.0.1:1", "AGENTD_AUTH_TOKEN": "another daemon's"}
    ours = {"HOME": str(tmp_path / "home"), "QUICKSTART_DIR": str(tmp_path / "quick start")}
    secrets = ("CODEX_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(secrets)}
    return {**kept, **ours, **other}


def test_quickstart_shows_a_run_and_leaves_no_process(env: dict[str, str], tmp_path: Path) -> None:
    with start(["./bin/quickstart"], env) as process:
        done = finish(process)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "The agent: demo (instead of codex: " in done.stdout
    assert re.search(r"Session ses_\w+", done.stdout)
    assert "agentctl ask" in done.stdout + done.stderr
    assert not re.search(r"(?<!/)\bagentctl [a-z]", done.stdout), (
        "commands are as one types them here"
    )
    assert members(process.pid) == []
    [data] = (tmp_path / "quick start").iterdir()
    assert list((data / "workspace").iterdir()), "the demo agent changes a file"


@pytest.mark.codex
def test_quickstart_uses_codex_if_it_is_ready(env: dict[str, str], tmp_path: Path) -> None:
    agents = ROOT / "tests/node_modules/.bin"
    if not (agents / "codex").exists():
        reason = "the real codex is not there: run bin/setup agents"
        if os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    home = tmp_path / "codex home"
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/codex/model_server.py", home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()  # it serves
        path = f"{agents}:{env['PATH']}"
        logged_in = {"CODEX_HOME": str(home), "FAKE_KEY": "fake-key-1234", "PATH": path}
        with start(["./bin/quickstart"], {**env, **logged_in}) as process:
            done = finish(process)
        server.stdin.close()  # it stops
        server.wait(60)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"The agent: codex \(codex [\d.]+ is installed and ready\)", done.stdout)
    assert re.search(r"^got \d+ characters", done.stdout, re.MULTILINE), "the model server's answer"
    assert members(process.pid) == []


def test_commands_that_quickstart_prints_work(env: dict[str, str], tmp_path: Path) -> None:
    with start([str(ROOT / "bin/quickstart"), "--provider", "demo"], env, tmp_path) as process:
        done = finish(process)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.partition("Next:")[2].splitlines()
    [daemon] = [line for line in lines if "/bin/agentd " in line]
    others = [line for line in lines if "/bin/agentctl " in line]
    assert len(others) >= 3

    # As printed, but for the port: another daemon may have the usual one.
    plain = {
        name: value for name, value in env.items() if not name.startswith(("AGENTD_", "AGENTCTL_"))
    }
    ready = tmp_path / "ready.json"
    argv = [*shlex.split(daemon, comments=True), "--port", "0", "--ready-file", str(ready)]
    with start(argv, plain, tmp_path) as running:
        try:
            wait_for_file(ready, running)
            plain["AGENTCTL_URL"] = json.loads(ready.read_text())["url"]
            outputs = []
            for line in others:
                with start(["bash", "-c", line], plain, tmp_path) as typed:
                    answer = finish(typed)
                assert answer.returncode == 0, (line, answer)
                outputs.append(answer.stdout)
        finally:
            running.terminate()
            finish(running)
    [session] = set(re.findall(r"ses_\w+", done.stdout))
    assert session in outputs[0], "`session list` knows the session of the quickstart"


def test_quickstart_stops_its_daemon_when_interrupted(env: dict[str, str]) -> None:
    with start(["./bin/quickstart", "--provider", "demo"], env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "agentd runs at" in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        done = finish(process)

    assert done.returncode == 130, done.stdout + done.stderr
    assert "Next:" not in done.stdout
    assert members(process.pid) == []


def test_quickstart_has_no_command_substitution_after_its_trap() -> None:
    """Bash 5.2 can run a trap inside a substitution; seen in 2 of 400 interrupts of a long one."""
    _, _, trapped = (ROOT / "bin/quickstart").read_text().partition("\n    trap stop_daemon EXIT\n")
    code = [line for line in trapped.splitlines() if not line.lstrip().startswith("#")]
    assert len(code) > 50
    assert not [line for line in code if re.search(r"[$<>]\((?!\()|`", line)]


def test_quickstart_with_an_unknown_provider_fails_and_cleans_up(env: dict[str, str]) -> None:
    with start(["./bin/quickstart", "--provider", "nobody"], env) as process:
        done = finish(process)

    assert done.returncode not in (0, 130)
    assert "nobody" in done.stderr
    assert members(process.pid) == []

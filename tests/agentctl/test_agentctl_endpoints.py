"""agentctl finds the daemons of its user by the files they leave."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import PATIENCE_S, Result, environment, run, wait_until


class Home:
    """A user with a state directory of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pids: list[int] = []

    def __call__(self, directory: str, *arguments: str) -> Result:
        (self.path / directory).mkdir(exist_ok=True)
        env = environment(XDG_STATE_HOME=str(self.path / "state"))
        return run(arguments, self.path / directory, env)

    def start(self, directory: str) -> dict[str, Any]:
        options = ("--", "--port", "0", "--grace-s", "0")
        done = self(directory, "--format", "json", "daemon", "start", *options)
        assert done.code == 0, done.err
        answer = done.json
        self.pids.append(answer["pid"])
        return {**answer, "stderr": done.err}

    def pid(self, directory: str) -> int | None:
        done = self(directory, "daemon", "status", "--field", "pid")
        return int(done.out) if done.code == 0 else None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    try:
        yield home
    finally:
        for pid in home.pids:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                process.kill()
                process.wait(PATIENCE_S)


def test_commands_without_a_daemon_work_beside_several(home: Home, tmp_path: Path) -> None:
    home.start("a")
    home.start("b")
    assert "several daemons are running" in home("c", "session", "list").err
    (tmp_path / "c" / "agentd.toml").write_text("")
    assert home("c", "config", "trust").code == 0
    for command in (
        ("store", "copy", "nothing.db", "postgresql://127.0.0.1:1/x"),
        ("provider", "check", "nobody"),
    ):
        refused = home("c", *command)
        assert refused.code != 0
        assert "several daemons" not in refused.err, refused.err


def test_commands_use_the_daemon_of_their_directory(home: Home, tmp_path: Path) -> None:
    first = home.start("a")
    assert first["database"] == str(tmp_path / "a" / ".data" / "agent-orchestrator.db")
    assert home.pid("a") == home.pid("elsewhere") == first["pid"]
    again = home("elsewhere", "--format", "json", "daemon", "start")
    assert again.json["already_running"], again.err
    assert again.json["database"] == first["database"]
    second = home.start("b")
    assert first["database"] in second["stderr"]  # another one was used last
    assert home.pid("a") == first["pid"]
    assert home.pid("b") == second["pid"]
    unclear = home("elsewhere", "daemon", "status")
    assert unclear.code == 2
    for url in (first["url"], second["url"]):
        assert url in unclear.err
    os.kill(first["pid"], signal.SIGKILL)
    wait_until(lambda: _is_dead(first["pid"]))
    assert home.pid("a") == home.pid("elsewhere") == second["pid"]
    stopped = home("elsewhere", "daemon", "stop", "--wait")
    assert stopped.code == 0, stopped.err
    assert list((tmp_path / "state" / "agent-orchestrator" / "daemons").iterdir()) == []


def _is_dead(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_files_of_the_daemon_stay_out_of_the_users_repository(home: Home, tmp_path: Path) -> None:
    directory = tmp_path / "a"
    subprocess.run(["git", "init", "-q", str(directory)], check=True)
    told = home.start("a")
    assert Path(told["log"]) == directory / ".data" / "agentd.log"
    git = ["git", "-C", str(directory), "status", "--porcelain", "--ignored=no"]
    assert subprocess.run(git, capture_output=True, text=True, check=True).stdout == ""
    own = home("b", "--format", "json", "daemon", "start", "--", "--port", "0", "--db", "my.db")
    answer = own.json
    home.pids.append(answer["pid"])
    assert Path(answer["log"]).parent == tmp_path / "state" / "agent-orchestrator" / "logs"
    assert not (tmp_path / "b" / "agentd.log").exists()
    for log in (told["log"], answer["log"]):
        assert Path(log).stat().st_mode & 0o777 == 0o600

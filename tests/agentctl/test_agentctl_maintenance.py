"""Backup, check and what a start finds, with a real agentd."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from driving import PATIENCE_S, Daemon, environment, wait_until

from agent_orchestrator.stores.sqlite.watermark import WatermarkFile


def problems_of(status: dict[str, Any]) -> list[str]:
    """Return the codes of the problems, without that of agents that have no sandbox: these have none."""
    return [one["code"] for one in status["problems"] if one["code"] != "agents_unconfined"]


def test_a_backup_of_a_running_daemon_can_be_restored(daemon: Daemon, tmp_path: Path) -> None:
    ctl = daemon.ctl
    before = ctl.field("session.id", "session", "create")
    told = ctl("--format", "json", "daemon", "backup", "copy.db", cwd=tmp_path).json
    assert told == {
        "path": str(tmp_path / "copy.db"),
        "size": (tmp_path / "copy.db").stat().st_size,
    }
    again = ctl("daemon", "backup", "copy.db", cwd=tmp_path)
    assert again.code == 6
    assert "already exists" in again.err
    forced = ctl("daemon", "backup", "copy.db", "--force", cwd=tmp_path)
    assert (forced.code, forced.err) == (0, "")
    assert forced.out.startswith(f"{tmp_path / 'copy.db'}: ")
    bad = ctl("daemon", "backup", "no/such/copy.db", cwd=tmp_path)
    assert bad.code == 2
    assert "No such file or directory" in bad.err
    after = ctl.field("session.id", "session", "create")
    daemon.end()
    shutil.copy(tmp_path / "copy.db", daemon.directory / "agents.db")
    daemon.start()
    assert ctl("session", "get", "--session-id", before).code == 0
    assert ctl("session", "get", "--session-id", after).code == 4
    status = ctl("--format", "json", "daemon", "status").json
    assert problems_of(status) == []
    assert ctl("daemon", "check").code == 0


def test_a_database_check_prints_its_findings(daemon: Daemon) -> None:
    ctl = daemon.ctl
    ctl("ask", "hello")
    good = ctl("daemon", "check")
    assert (good.code, good.err) == (0, "")
    assert good.out == "1 session, 1 run, " + good.out.split(", ")[-1]
    assert good.out.rstrip().endswith("no problems")
    database = daemon.directory / "agents.db"
    change = "UPDATE runs SET status = 'failed'"
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    )
    subprocess.run([sys.executable, "-c", code, str(database), change], check=True)
    bad = ctl("daemon", "check")
    assert bad.code == 1
    assert "is failed, attempt 1, but its log says" in bad.out
    assert "1 finding in the database" in bad.err
    told = json.loads(ctl("--format", "json", "daemon", "check").out)
    assert (told["ok"], len(told["findings"])) == (False, 1)


def test_lost_commits_keep_agentd_from_starting_until_that_is_accepted(daemon: Daemon) -> None:
    ctl = daemon.ctl
    ctl("ask", "hello")
    copy = WatermarkFile(daemon.directory / "agents.db")

    def count() -> int:
        found = copy.read()
        assert found is not None
        return found.commits

    before = count()
    ctl("session", "create")
    wait_until(lambda: count() > before)
    daemon.end(signal.SIGKILL)
    log = daemon.directory / "agents.db-wal"
    text = bytearray(log.read_bytes())
    text[len(text) // 2] ^= 0xFF
    log.write_bytes(text)
    command = [sys.executable, "-m", "agentd", "--port", str(daemon.port), "--db", "agents.db"]
    refused = subprocess.run(
        [*command, *daemon.options],
        cwd=daemon.directory,
        env=environment(AGENTD_CONFIG="agentd.toml"),
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == 1
    said = refused.stderr.decode()
    assert "commits lost" in said
    assert "--accept-loss" in said
    assert "Traceback" not in said
    daemon.options = (*daemon.options, "--accept-loss")
    daemon.start()
    status = ctl("--format", "json", "daemon", "status").json
    assert status["daemon_health"] == "degraded"
    assert problems_of(status) == ["commits_lost"]
    assert ctl("session", "create").code == 0

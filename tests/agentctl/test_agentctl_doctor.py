"""agentctl doctor, with and without a daemon."""

from pathlib import Path

import pytest
from driving import Ctl, Daemon
from ports import free_port

from agent_orchestrator.operations.daemon import Finding
from agentctl.console import screen_lines
from agentctl.document import plain_lines
from agentctl.views import findings_list


def test_doctor_prints_the_findings_of_a_running_daemon(daemon: Daemon) -> None:
    shown = daemon.ctl("doctor")
    assert shown.code == 0, shown.err
    assert "provider echo: ready: command" in shown.out
    assert "AGENTD_AUTH_TOKEN" in shown.out  # what to do about an open port
    told = daemon.ctl("doctor", "--format", "json").json
    assert told["ok"]
    security = daemon.ctl("--format", "json", "doctor", "--security").json
    assert all(one["security"] for one in security["findings"])
    assert 0 < len(security["findings"]) < len(told["findings"])
    (daemon.directory / "agents.db").chmod(0o644)
    wrong = daemon.ctl("doctor", "--security")
    assert wrong.code == 1
    assert wrong.out.splitlines()[0].startswith("✗ database: other users may open")
    assert "1 problem to fix" in wrong.err


def test_doctor_needs_the_admin_scope(guarded: Daemon) -> None:
    assert guarded.ctl("doctor").code == 5
    assert guarded.ctl("--auth-token", "s3cret", "doctor").code == 1  # a token of 6 characters
    made = guarded.ctl("--auth-token", "s3cret", "token", "create", "ann", "--field", "secret")
    assert guarded.ctl("--auth-token", made.out.strip(), "doctor").code == 5


def test_without_a_daemon_doctor_checks_the_configuration(tmp_path: Path) -> None:
    ctl = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    config = '[providers.sh]\nrunner = "command"\nargv = ["cat"]\n[routing]\ndefault = "sh"\n'
    (tmp_path / "agentd.toml").write_text(config)
    (tmp_path / "agentd.toml").chmod(0o600)
    told = ctl("doctor", "--format", "json").json
    assert told["ok"], told
    assert told["findings"][0]["hint"] == "agentctl daemon start"
    shown = ctl("doctor", "--", "--host", "0.0.0.0")
    assert shown.code == 1
    assert "there is no token" in shown.out
    bad = ctl("doctor", "--", "--max-concurrency", "0")
    assert bad.code == 1
    assert "--max-concurrency" in bad.out
    misspelt = ctl("doctor", "--", "--no-such")
    assert misspelt.code == 1
    assert "--no-such" in misspelt.err


def test_a_missing_program_is_one_finding(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text(
        '[providers.codex]\nrunner = "codex"\ncommand = "no-such-codex"\n'
    )
    told = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)("doctor", "--format", "json").json
    [finding] = [one for one in told["findings"] if one["about"] == "provider codex"]
    assert finding["level"] == "error"
    assert "not installed" in finding["message"]


def test_an_unreachable_remote_daemon_is_an_error(tmp_path: Path) -> None:
    ctl = Ctl("http://agents.invalid:1", tmp_path)
    assert ctl("doctor").code == 3


@pytest.mark.parametrize("columns", [40, None])
def test_findings_are_sorted_by_severity(columns: int | None) -> None:
    findings = [
        Finding("ok", "disk", "much room"),
        Finding("note", "workspaces", "anywhere", "restrict them"),
        Finding(
            "error", "data\x1b[2Jbase", "others may read it, and that is a long story", "chmod"
        ),
        Finding("warning", "address", "no TLS"),
    ]
    blocks = findings_list(findings)
    lines = (
        [*plain_lines(blocks)] if columns is None else screen_lines(blocks, columns, colour=False)
    )
    assert [line[0] for line in lines if line[0] in "✗!·✓"] == ["✗", "!", "·", "✓"]
    assert "  → restrict them" in [line.rstrip() for line in lines]
    assert not [line for line in lines if "\x1b" in line or len(line) > (columns or 1000)]
    assert [*plain_lines(findings_list([]))] == ["no findings"]

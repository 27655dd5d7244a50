"""What is longer than the terminal goes through a pager; `-` stands for standard input."""

import os
import pty
import termios
from pathlib import Path

import pytest
from driving import COMMAND, PATIENCE_S, Ctl, environment, started


@pytest.fixture
def pager(tmp_path: Path) -> Path:
    """A pager that says it was there and how many lines it was given."""
    path = tmp_path / "pager"
    path.write_text('#!/bin/sh\necho "paged $(wc -l) lines, less=$LESS"\n')
    path.chmod(0o755)
    return path


def on_terminal(ctl: Ctl, *arguments: str, rows: int, **env: str) -> str:
    """Return what a call shows on a terminal of so many lines."""
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(slave, (rows, 100))
        with started(
            [*COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(AGENTCTL_URL=ctl.url, TERM="xterm", **env),
        ) as process:
            os.close(slave)
            slave = -1
            shown = b""
            while True:
                try:
                    chunk = os.read(master, 65_536)
                except OSError:  # Linux tells so of a terminal nobody has open any more
                    break
                if not chunk:
                    break
                shown += chunk
            assert process.wait(PATIENCE_S) == 0
        return shown.decode()
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_long_answers_are_paged_and_short_ones_are_not(ctl: Ctl, pager: Path) -> None:
    for _ in range(12):
        assert ctl("session", "create").code == 0
    long = on_terminal(ctl, "session", "list", "--limit", "1000", rows=10, PAGER=str(pager))
    assert "paged " in long
    assert "less=FRX" in long
    assert "PROVIDER" not in long
    short = on_terminal(ctl, "session", "list", "--limit", "2", rows=10, PAGER=str(pager))
    assert "paged" not in short
    # Other tests share the daemon, so these may be their sessions.
    assert ["@1" in short, "@2" in short, "@3" in short] == [True, True, False]
    assert short.count("ses_") == 1  # the cursor of what comes after


def test_who_wants_no_pager_gets_none(ctl: Ctl, pager: Path) -> None:
    for _ in range(12):
        assert ctl("session", "create").code == 0
    for wish in (
        {"AGENTCTL_PAGER": ""}, {"AGENTCTL_PAGER": "cat"}, {"PAGER": "no-such-program"},
        {"AGENTCTL_PAGER": "'"},
    ):  # fmt: skip
        given = {"PAGER": str(pager)} | wish
        shown = on_terminal(ctl, "session", "list", "--limit", "1000", rows=10, **given)
        assert "paged" not in shown, wish
    # A pipe is no person.
    assert "ses_" in ctl("session", "list", PAGER=str(pager)).out
    json = on_terminal(ctl, "session", "list", "--format", "json", rows=3, PAGER=str(pager))
    assert "paged" not in json


def test_a_dash_reads_every_text(ctl: Ctl) -> None:
    made = ctl("session", "create", "--metadata", "-", stdin='{"a": 1}')
    assert made.code == 0, made.err
    session = ctl.field("session.id", "session", "create")
    for state, option, path, text in (
        ("failed", "--error", "run.error.message", "it broke"),
        ("completed", "--result", "run.result.text", "it is done"),
    ):
        run = ctl.field("run.id", "run", "create", session, "--provider", "manual")
        ctl("run", "transition", run, "--to-status", "running")
        done = ctl(
            "run", "transition", run, "--to-status", state, option, "-", "--field", path, stdin=text
        )
        assert (done.code, done.out.strip()) == (0, text), done.err
    run = ctl.field("run.id", "run", "create", session, "--provider", "manual")
    assert ctl("run", "cancel", run, "--reason", "-", stdin="not needed").code == 0
    assert "not needed" in ctl("events", "list", session).out

"""What is longer than the terminal goes through a pager; `-` stands for standard input."""

import os
from pathlib import Path

import pytest
from driving import PATIENCE_S, Ctl, environment, on_terminal


@pytest.fixture
def pager(tmp_path: Path) -> Path:
    """A pager that says it was there and how many lines it was given."""
    path = tmp_path / "pager"
    path.write_text('#!/bin/sh\necho "paged $(wc -l) lines, less=$LESS"\n')
    path.chmod(0o755)
    return path


def shown_on_terminal(ctl: Ctl, *arguments: str, rows: int, **env: str) -> str:
    """Return what a call shows on a terminal of so many lines."""
    given = environment(**{"AGENTCTL_URL": ctl.url, "TERM": "xterm", **env})
    with on_terminal(arguments, ctl.cwd, given, (rows, 100)) as (process, leader):
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 65_536)
            except OSError:  # Linux tells so of a terminal nobody has open any more
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(PATIENCE_S) == 0
    return shown.decode()


def test_long_answers_are_paged_and_short_ones_are_not(ctl: Ctl, pager: Path) -> None:
    for _ in range(12):
        assert ctl("session", "create").code == 0
    long = shown_on_terminal(ctl, "session", "list", "--limit", "1000", rows=10, PAGER=str(pager))
    assert "paged " in long
    assert "less=FRX" in long
    assert "PROVIDER" not in long
    short = shown_on_terminal(ctl, "session", "list", "--limit", "2", rows=10, PAGER=str(pager))
    assert "paged" not in short
    # Other tests share the daemon, so these may be their sessions.
    assert ["@1" in short, "@2" in short, "@3" in short] == [True, True, False]
    assert short.count("ses_") == 1  # the cursor of what comes after


def test_the_pager_can_be_switched_off(ctl: Ctl, pager: Path) -> None:
    for _ in range(12):
        assert ctl("session", "create").code == 0
    for wish in (
        {"AGENTCTL_PAGER": ""}, {"AGENTCTL_PAGER": "cat"}, {"PAGER": "no-such-program"},
        {"AGENTCTL_PAGER": "'"},
    ):  # fmt: skip
        given = {"PAGER": str(pager)} | wish
        shown = shown_on_terminal(ctl, "session", "list", "--limit", "1000", rows=10, **given)
        assert "paged" not in shown, wish
    # A pipe is no person.
    assert "ses_" in ctl("session", "list", PAGER=str(pager)).out
    json = shown_on_terminal(ctl, "session", "list", "--format", "json", rows=3, PAGER=str(pager))
    assert "paged" not in json


def test_a_dash_reads_any_text_option_from_stdin(ctl: Ctl) -> None:
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

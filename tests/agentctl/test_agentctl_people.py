"""What people type: short ids, words without quotes, and commands for sessions and runs."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from driving import COMMAND, PATIENCE_S, Ctl, Daemon, environment
from test_agentctl_pager import shown_on_terminal

# --- logs ---------------------------------------------------------------------------------------


def test_a_long_log_on_a_terminal_begins_with_the_last_events(daemon: Daemon) -> None:
    ctl = daemon.ctl
    session = ctl.field("session.id", "session", "create")
    with httpx.Client(base_url=ctl.url, trust_env=False) as client:
        for number in range(230):
            body = {"text": f"note {number}.", "role": "system"}
            client.post(f"/sessions/{session}/messages", json=body).raise_for_status()
    last = int(ctl.field("session.last_seq", "session", "get", session))
    shown = shown_on_terminal(ctl, "events", "tail", session, rows=24, NO_COLOR="1")
    assert f"{last - 200} earlier events" in shown
    assert f"agentctl events tail {session} --cursor 0" in " ".join(shown.split())
    assert [f"note {number}." in shown for number in (0, 20, 40, 229)] == [
        False, False, True, True,
    ]  # fmt: skip
    whole = shown_on_terminal(
        ctl, "events", "tail", session, "--cursor", "0", rows=24, NO_COLOR="1"
    )
    assert "note 0." in whole
    assert "earlier events" not in whole
    assert "note 0." in ctl("events", "tail", session).out


# --- ids ---------------------------------------------------------------------------------------


def test_an_id_may_be_shortened_to_a_unique_beginning_or_end(daemon: Daemon) -> None:
    ctl = daemon.ctl
    first, second = (ctl.field("session.id", "session", "create", "--title", one) for one in "ab")
    run = ctl.field("run.id", "message", "send", second, "--text", "hi", "--wait")
    for short in (first, first[-6:], first[4:]):
        assert ctl.field("session.id", "session", "get", short) == first
    assert ctl.field("run.id", "run", "get", run[-8:]) == run
    assert ctl.field("session.id", "session", "get", "@last") == second
    assert ctl.field("runs.0.id", "run", "list", "--session-id", second[-6:]) == run
    assert "hi" in ctl("events", "tail", second[-6:]).out
    several = ctl("session", "get", "ses_")
    assert (several.code, "fits several ids" in several.err) == (2, True)
    assert first in several.err
    assert ctl("session", "get", "zzz").code == 4
    assert ctl("request", "show", "@last").code == 2


def test_a_row_number_of_the_last_list_is_accepted_as_an_id(daemon: Daemon, tmp_path: Path) -> None:
    ctl = daemon.ctl
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    (tmp_path / "state").mkdir()
    first, second = (ctl.field("session.id", "session", "create", "--title", one) for one in "ab")
    assert ctl("session", "get", "@1", **state).code == 2
    shown = shown_on_terminal(ctl, "session", "list", rows=24, NO_COLOR="1", **state)
    assert "@1  b" in shown  # the newest
    assert first not in shown
    assert first[-6:] in shown
    assert first in shown_on_terminal(
        ctl, "session", "list", "--wide", rows=24, NO_COLOR="1", **state
    )
    for row, expected in (("@1", second), ("@2", first)):
        found = ctl("session", "get", row, "--field", "session.id", **state)
        assert (found.code, found.out.strip()) == (0, expected), found.err
    assert ctl("session", "get", "@3", **state).code == 2
    listed = tmp_path / "state" / "agent-orchestrator" / "last-list.json"
    assert listed.stat().st_mode & 0o777 == 0o600
    listed.write_text("{")
    assert ctl("session", "get", "@1", **state).code == 2


def test_a_list_on_a_terminal_is_one_page_with_the_newest_first(daemon: Daemon) -> None:
    ctl = daemon.ctl
    first, second, third = (
        ctl.field("session.id", "session", "create", "--title", f"number {one}00") for one in "678"
    )

    def shown(*options: str) -> list[str]:
        text = shown_on_terminal(ctl, "session", "list", *options, rows=24, NO_COLOR="1")
        return re.findall(r"number (\d)00", text)

    assert shown() == ["8", "7", "6"]
    assert shown("--limit", "2") == ["8", "7"]
    assert shown("--limit", "2", "--cursor", second) == ["6"]
    assert shown("--order", "oldest") == ["6", "7", "8"]
    assert shown("--search", "NUMBER 700") == ["7"]
    found = ctl("session", "list", "--search", third[-6:], "--format", "json").json["sessions"]
    assert [one["id"] for one in found] == [third]
    assert first not in ctl("session", "list", "--order", "newest", "--limit", "2").out


def test_lists_without_a_terminal_begin_with_the_oldest(daemon: Daemon) -> None:
    ctl = daemon.ctl
    made = [ctl.field("session.id", "session", "create") for _ in "abc"]
    listed = ctl("session", "list", "--format=json").json["sessions"]
    assert [one["id"] for one in listed] == made
    assert [line.split()[0] for line in ctl("session", "list").out.splitlines()[1:]] == made


@pytest.mark.parametrize("columns", [80, 140])
def test_lists_fit_a_terminal(daemon: Daemon, columns: int) -> None:
    ctl = daemon.ctl
    ctl("ask", "a long question with many words " * 5, "--provider", "echo")
    for command in (["session", "list"], ["run", "list"], ["session", "tree", "@last"]):
        shown = shown_on_terminal(ctl, *command, rows=24, NO_COLOR="1", COLUMNS=str(columns))
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= columns
        assert "a long question" in shown


def test_shell_completion_offers_ids_with_titles(daemon: Daemon) -> None:
    session = daemon.ctl.field("session.id", "session", "create", "--title", "Fix\x1b[2J it")
    done = subprocess.run(
        COMMAND,
        env=environment(
            AGENTCTL_URL=daemon.ctl.url,
            _AGENTCTL_COMPLETE="zsh_complete",
            COMP_WORDS=f"agentctl session get {session[:8]}",
            COMP_CWORD="3",
        ),
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert f"{session}\nFix it\n" in done.stdout
    nowhere = environment(AGENTCTL_URL="http://127.0.0.1:1", _AGENTCTL_COMPLETE="zsh_complete",
                          COMP_WORDS="agentctl session get s", COMP_CWORD="3")  # fmt: skip
    silent = subprocess.run(
        COMMAND, env=nowhere, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (silent.returncode, silent.stdout.strip(), silent.stderr) == (0, b"", b"")


# --- ask ---------------------------------------------------------------------------------------


def test_ask_accepts_unquoted_words_and_can_continue_the_last_session(
    daemon: Daemon, tmp_path: Path
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    ctl = Ctl(daemon.ctl.url, here)
    asked = ctl("ask", "fix", "the", "build", "--title", "Build", "--format=json").json
    assert asked["message"]["text"] == "fix the build"
    assert asked["session"]["title"] == "Build"
    Ctl(ctl.url, other)("ask", "elsewhere")
    again = ctl("ask", "--continue", "now", "--format=json").json
    assert again["session"]["id"] == asked["session"]["id"]
    closed = ctl("session", "close", asked["session"]["id"])
    assert closed.code == 0
    nothing = ctl("ask", "--continue", "more")
    assert (nothing.code, "no open session" in nothing.err) == (2, True)
    for wrong in (["--continue", "--session-id", "s"], ["--continue", "--title", "t"], []):
        assert ctl("ask", *wrong, *(["x"] if wrong else [])).code == 2
    assert len(ctl("session", "list", "--format=json").json["sessions"]) == 2


def test_ask_with_detach_returns_while_its_run_goes_on(daemon: Daemon) -> None:
    ctl = daemon.ctl
    left = ctl("ask", "--detach", "x", "--provider", "slow")
    session, run = left.out.split()[1::2]
    assert ctl.field("run.status", "run", "get", run) in ("queued", "running")
    assert ctl.field("session.id", "session", "get", session) == session
    assert ctl("ask", "--detach", "x", "--provider", "none").code != 0
    assert len(ctl("session", "list", "--format=json").json["sessions"]) == 1


# --- sessions and runs -------------------------------------------------------------------------


def test_a_session_is_renamed_closed_and_opened_again(ctl: Ctl) -> None:
    session = ctl.field("session.id", "session", "create", "--title", "old")
    renamed = ctl("session", "rename", session, "new\x1b[2J name")
    assert renamed.out == f"session {session} is called new name\n"
    other = ctl("session", "model", session, "opus")
    assert other.out == f"session {session} uses opus\n"
    assert ctl.field("session.model", "session", "get", session) == "opus"
    assert ctl("session", "close", session).code == 0
    assert ctl("message", "send", session, "--text", "x").code == 6
    assert ctl("session", "reopen", session).out == f"session {session} is open\n"
    assert ctl("message", "send", session, "--text", "x", "--wait").code == 0
    assert ctl("session", "rename", session).code == 2
    moved = ctl("session", "move", session, "--cwd", "/")
    assert moved.out == f"session {session} works in /\n"


def test_a_failed_run_can_be_retried(ctl: Ctl) -> None:
    failed = ctl("ask", "x", "--provider", "bad", "--format=json").json
    again = ctl("--format=json", "run", "retry", failed["run"]["id"]).json
    assert again["run"]["id"] != failed["run"]["id"]
    assert again["run"]["provider"] == "bad"
    assert again["message"]["text"] == "x"
    assert again["message"]["session_id"] == failed["session"]["id"]
    manual = ctl.field("run.id", "run", "create", failed["session"]["id"], "--provider", "manual")
    refused = ctl("run", "retry", manual)
    assert (refused.code, "the message of run" in refused.err) == (1, True)


# --- diff --------------------------------------------------------------------------------------


def git(directory: Path, *arguments: str, at: float = 1_000_000_000) -> None:
    """Run git at this time, which it knows only to the second."""
    env = {"HOME": str(directory), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1",
           "GIT_COMMITTER_DATE": f"{at:.0f} +0000"}  # fmt: skip
    names = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(directory), *names, *arguments], check=True, env=env,
                   capture_output=True, timeout=PATIENCE_S)  # fmt: skip


def age(path: Path) -> None:
    """Let a file be older than any session."""
    os.utime(path, (1_000_000_000, 1_000_000_000))


def test_session_diff_shows_the_changes_in_a_git_checkout(ctl: Ctl, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    for name in ("kept", "changed", "committed", "gone", "dirty"):
        (tmp_path / name).write_text(f"{name}\none\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    for name in ("dirty", "stray"):  # from before the session
        (tmp_path / name).write_text("mine\n")
        age(tmp_path / name)
    session = ctl.field("session.id", "session", "create", "--cwd", str(tmp_path))
    (tmp_path / "changed").write_text("changed\ntwo \x1b[2J\n")
    (tmp_path / "new é").write_text("a\nb\n")
    (tmp_path / "committed").write_text("committed\nlater\n")
    (tmp_path / "gone").unlink()
    git(tmp_path, "commit", "-qm", "second", "committed", at=time.time() + 60)
    # What the directory's configuration names is not run.
    trap = tmp_path / "trap"
    for name in ("core.fsmonitor", "diff.external", "filter.x.clean"):
        git(tmp_path, "config", name, f"touch {trap}; cat")
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "attributes").write_text("* filter=x\n")
    found = ctl("--format=json", "session", "diff", session).json
    assert not trap.exists()
    assert found["source"] == "git"
    assert {(one["path"], one["kind"]) for one in found["changes"]} == {
        ("changed", "update"), ("committed", "update"), ("gone", "delete"), ("new é", "add")
    }  # fmt: skip
    shown = ctl("session", "diff", session).out
    assert "changed changed  +1 -1" in shown
    assert "2 +two ^[[2J" in shown
    assert "added new é  +2 -0" in shown
    assert "deleted gone  +0 -2" in shown


def test_session_diff_without_a_checkout_shows_the_changes_that_agents_reported(
    daemon: Daemon, tmp_path: Path
) -> None:
    ctl = Ctl(daemon.ctl.url, tmp_path)
    asked: Any = json.loads(ctl("ask", "x", "--provider", "demo", "--format=json").out)
    found = ctl("--format=json", "session", "diff", asked["session"]["id"]).json
    assert (found["source"], found["base"]) == ("events", None)
    assert [one["kind"] for one in found["changes"]] == ["add"]
    unchanged = ctl("session", "diff", ctl.field("session.id", "session", "create"))
    assert unchanged.out.endswith("no changes\n")

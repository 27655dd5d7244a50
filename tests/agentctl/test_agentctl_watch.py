"""``agentctl request watch``: what people are to answer, told once, over a restart too."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from driving import FORKS, PATIENCE_S, Ctl, Daemon, environment

APPROVAL = ("--request-kind", "approval_request")


def asker(ctl: Ctl, *more: str) -> str:
    """Return a run, held by hand, that may ask."""
    session_id = ctl.field("session.id", "session", "create", *more)
    return ctl.field("run.id", "run", "create", session_id, "--provider", "manual")


def ask(ctl: Ctl, run_id: str, text: str, *more: str) -> Any:
    said = ctl("tool", "session-reply-parent", "--run-id", run_id, "--text", text,
               *(more or APPROVAL))  # fmt: skip
    assert said.code == 0, said.err
    return said.json["request"]


def document(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "nothing was told"
    return json.loads(process.stdout.readline())


def test_each_request_is_printed_once_also_over_a_daemon_restart(daemon: Daemon) -> None:
    ctl = daemon.ctl
    run_id = asker(ctl)
    first = ask(ctl, run_id, "first")
    with ctl.going("request", "watch", "--format", "json") as watch:
        assert document(watch) == first
        second = ask(ctl, run_id, "second")
        assert document(watch) == second
        ctl("request", "approve", first["id"])
        daemon.end(signal.SIGKILL)
        daemon.start()
        third = ask(ctl, run_id, "third")
        assert document(watch) == third
        watch.send_signal(signal.SIGINT)
        rest, errors = watch.communicate(timeout=PATIENCE_S)
        assert (watch.returncode, rest) == (130, "")
        assert "connected again" in errors


def test_requests_that_the_caller_cannot_answer_are_not_printed(guarded: Daemon) -> None:
    ctl = guarded.ctl
    admin = ("--auth-token", "s3cret")
    bob = ("--auth-token", ctl.field("secret", *admin, "token", "create", "bob"))
    runs = {}
    for role in ("reader", "writer"):
        session_id = ctl.field("session.id", *admin, "session", "create")
        assert ctl(*admin, "session", "share", session_id, f"--{role}", "bob").code == 0
        runs[role] = ctl.field(
            "run.id", *admin, "run", "create", session_id, "--provider", "manual"
        )

    def asked(role: str) -> Any:
        said = ctl(*admin, "tool", "session-reply-parent", "--run-id", runs[role], "--text", role,
                   *APPROVAL)  # fmt: skip
        return said.json["request"]

    asked("reader")
    first = asked("writer")
    with ctl.going(*bob, "request", "watch", "--format", "json") as watch:
        assert document(watch) == first
        seen = asked("reader")
        second = asked("writer")
        assert document(watch) == second
    assert ctl.field("requests.0.id", *bob, "request", "list") == first["id"]
    named = ctl(*bob, "request", "list", "--session-id", seen["session_id"], "--format", "json")
    assert len(named.json["requests"]) == 2


def test_a_request_to_a_parent_is_printed_when_it_reaches_humans(daemon: Daemon) -> None:
    ctl = daemon.ctl
    parent_run = asker(ctl)
    spawned = ctl("tool", "session-spawn", "--parent-run-id", parent_run, "--task", "x").json
    run_id = spawned["run"]["id"]
    with (
        ctl.going("request", "watch", "--field", "text") as watch,
        ctl.going("request", "watch", "--all", "--field", "text") as both,
    ):
        # Decided by a policy: nobody is called on.
        ask(ctl, asker(ctl, "--approvals", "deny"), "in vain")
        first = ask(ctl, run_id, "to the parent")
        second = ask(ctl, run_id, "to the parent too")
        assert both.stdout is not None
        assert [both.stdout.readline() for _ in range(2)] == [
            "to the parent\n",
            "to the parent too\n",
        ]
        ctl("request", "approve", first["id"])
        ctl("run", "cancel", parent_run, "--no-cascade")
        ask(ctl, asker(ctl), "alone")
        assert watch.stdout is not None
        assert [watch.stdout.readline() for _ in range(2)] == ["to the parent too\n", "alone\n"]
        assert both.stdout.readline() == "alone\n"
        assert second["audience"] == "parent"


def test_the_program_is_run_once_for_each_request_without_a_shell(daemon: Daemon) -> None:
    ctl, cwd = daemon.ctl, daemon.directory
    hook = cwd / "hook with blank.py"
    hook.write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys
request = json.load(sys.stdin)
named = {{name: value for name, value in os.environ.items() if name.startswith("AGENTCTL_")}}
told = {{"argv": sys.argv[1:], "request": request, "named": named}}
pathlib.Path(request["id"]).write_text(json.dumps(told))
print("a word of the hook")
sys.exit(3)
"""
    )
    hook.chmod(0o700)
    request = ask(ctl, asker(ctl), "$(touch pwned); `touch pwned` ' \" ; touch pwned")
    command = f"'{hook}' '$(touch pwned)' -- ';'"
    done = ctl("request", "watch", "--once", "--exec", command, "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == request
    assert done.err.split("\n")[0] == "a word of the hook"
    assert f"ended with 3 for {request['id']}" in done.err
    told = json.loads((cwd / request["id"]).read_text())
    assert told["argv"] == ["$(touch pwned)", "--", ";"]
    assert told["request"] == request
    assert told["named"] == {
        "AGENTCTL_URL": ctl.url,
        "AGENTCTL_REQUEST_ID": request["id"],
        "AGENTCTL_REQUEST_KIND": "approval_request",
        "AGENTCTL_REQUEST_SESSION_ID": request["session_id"],
        "AGENTCTL_REQUEST_RUN_ID": request["run_id"],
    }
    assert not (cwd / "pwned").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("'unended", "No closing quotation"),
        ("", "--exec"),
        ("no-such-program-here --x", "there is no program no-such-program-here"),
    ],
)
def test_an_invalid_program_is_a_usage_error(ctl: Ctl, line: str, told: str) -> None:
    result = ctl("request", "watch", "--exec", line)
    assert result.code == 2
    assert told in result.err


def test_a_terminal_rings_its_bell_for_a_request(daemon: Daemon, tmp_path: Path) -> None:
    ctl = daemon.ctl
    request = ask(ctl, asker(ctl), "May I?\x1b[2J\x07")
    master, slave = pty.openpty()
    written = b""
    try:
        with (
            Path(os.devnull).open("r+b") as nothing,
            FORKS.started(
                ["request", "watch", "--once"],
                cwd=tmp_path,
                env=environment(AGENTCTL_URL=ctl.url),
                streams=[nothing.fileno(), slave, nothing.fileno()],
            ) as watch,
        ):
            os.close(slave)
            assert watch.wait(PATIENCE_S) == 0
        with suppress(OSError):  # the other end is closed
            while part := os.read(master, 65_536):
                written += part
    finally:
        os.close(master)
    shown = written.decode()
    assert shown.count("\a") == 1
    assert shown.endswith("\a")
    assert f"agentctl request approve {request['id']}" in shown
    assert "\x1b[2J" not in shown
    piped = ctl("request", "watch", "--once")
    assert "\a" not in piped.out + piped.err


def test_following_a_session_shows_when_a_request_reaches_a_human(daemon: Daemon) -> None:
    ctl = daemon.ctl
    parent_run = asker(ctl)
    spawned = ctl("tool", "session-spawn", "--parent-run-id", parent_run, "--task", "x",
                  "--title", "Scout").json  # fmt: skip
    parent_id = spawned["session"]["parent_session_id"]
    ctl("run", "wait", spawned["run"]["id"])  # what a run at work asks ends with it
    request = ask(ctl, spawned["run"]["id"], "May I?")
    ctl("run", "cancel", parent_run, "--no-cascade")
    end = time.monotonic() + PATIENCE_S
    while "a person is asked" not in (transcript := ctl("events", "tail", parent_id).out):
        assert time.monotonic() < end, transcript
    assert "Scout" in transcript
    assert "asks its parent for approval: May I?" in transcript
    assert "its parent has not answered, so a person is asked: May I?" in transcript
    assert transcript.count(f"answer: agentctl request approve {request['id']}  (or deny)\n") == 2

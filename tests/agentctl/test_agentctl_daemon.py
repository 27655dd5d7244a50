"""agentctl against a real agentd."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from driving import (
    COMMAND,
    PATIENCE_S,
    Ctl,
    Daemon,
    environment,
    on_terminal,
    wait_until,
)
from ports import free_port

from agentctl.daemon_process import _log_tail, await_end


@pytest.fixture
def session(ctl: Ctl) -> str:
    return ctl.field("session.id", "session", "create")


def test_ask_writes_only_the_answer_to_a_pipe(ctl: Ctl, tmp_path: Path) -> None:
    result = ctl("ask", "What is here?", "--provider", "demo", cwd=tmp_path)
    assert result.code == 0
    assert result.out.startswith("You wrote 13 characters")
    assert len(result.out.splitlines()) == 1
    for told in ("list_directory", "added", "plan", "completed after", "I am the built-in demo"):
        assert told in result.err
    assert list(tmp_path.iterdir())  # it worked where the caller is


def test_ask_can_print_json_and_continue_a_session(ctl: Ctl, session: str) -> None:
    told = ctl("ask", "-", "--session-id", session, "--format", "json", stdin="one\ntwo").json
    assert told["session"]["id"] == session
    assert told["message"]["text"] == "one\ntwo"
    assert told["run"]["status"] == "completed"
    assert told["run"]["result"]["text"].split() == ["one", "two"]
    assert ctl.field("run.result.text", "ask", "x", "--session-id", session) == "x"


def test_ask_reports_a_failed_run(ctl: Ctl) -> None:
    result = ctl("ask", "x", "--provider", "bad")
    assert (result.code, result.out) == (1, "")
    assert "cannot go on" in result.err


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sandbox", ["--provider", "echo", "--sandbox", "read-only"]),
        ("approval_policy", ["--approval-policy", "never"]),
        ("provider", ["--provider", "nobody"]),
        ("cwd", ["--cwd", "/no/such/directory"]),
    ],
)
def test_a_refused_ask_creates_no_session(ctl: Ctl, name: str, more: list[str]) -> None:
    before = ctl("session", "list", "--format", "json").json
    refused = ctl("ask", "x", *more)
    assert (refused.code, refused.out) == (2, "")
    assert name in refused.err
    assert ctl("session", "list", "--format", "json").json == before


def test_ask_names_its_session_after_the_question(ctl: Ctl) -> None:
    told = ctl("--format", "json", "ask", "Why does the build\nfail?").json
    assert told["session"]["title"] == "Why does the build fail?"


def test_ask_again_with_the_same_key_runs_once(ctl: Ctl, tmp_path: Path) -> None:
    calls = [ctl("ask", "x", "--idempotency-key", str(tmp_path), "--format=json") for _ in "ab"]
    assert calls[0].json["run"]["id"] == calls[1].json["run"]["id"]
    again = ctl("ask", "x", "--idempotency-key", str(tmp_path))
    assert (again.code, again.out.strip()) == (0, "x")


@pytest.mark.parametrize(
    "place", ["{} run get {}", "run {} get {}", "run get {} {}", "run get --run-id {1} {0}"]
)
def test_global_options_are_accepted_before_and_after_the_command(
    ctl: Ctl, session: str, place: str
) -> None:
    run_id = ctl.field("run.id", "run", "create", session, "--provider", "manual")
    for options, check in (
        ("--format json", lambda out: json.loads(out)["run"]["id"]),
        ("--field run.id", str.strip),
        (f"--url {ctl.url} --format=json", lambda out: json.loads(out)["run"]["id"]),
    ):
        env = {"AGENTCTL_URL": "http://127.0.0.1:1"} if "--url" in options else {}
        result = (
            ctl(*place.format(options, run_id).split(), **env)
            if not env
            else Ctl("http://127.0.0.1:1", ctl.cwd)(*place.format(options, run_id).split())
        )
        assert check(result.out) == run_id, result.err


def test_message_send_prints_ids_and_with_wait_the_result(ctl: Ctl, session: str) -> None:
    sent = ctl("message", "send", "--session-id", "-", "--text", "hello", stdin=f" {session} \n")
    assert re.fullmatch(
        r"message msg_\w+, run run_\w+ (queued|running|completed) for echo\n", sent.out
    )
    waited = ctl("message", "send", session, "--text", "hello", "--wait")
    assert waited.out.splitlines()[-1] == "hello"
    told = ctl("message", "send", session, "--text", "a", "--wait", "--format", "json").json
    assert told.keys() == {"message", "run"}
    note = ctl("message", "send", session, "--text", "n", "--role", "system", "--format=json").json
    assert note["run"] is None


def test_an_id_and_a_text_can_both_come_from_stdin(ctl: Ctl, session: str) -> None:
    text = "first\nsecond \u2028 line\n"
    told = ctl(
        "message", "send", "--session-id", "-", "--text", "-", "--format=json",
        stdin=f"{session}\n{text}",
    ).json  # fmt: skip
    assert told["message"]["text"] == text


def test_message_send_with_follow_prints_the_events_of_its_run(ctl: Ctl, session: str) -> None:
    ctl("message", "send", session, "--text", "earlier", "--wait")
    told = ctl("message", "send", session, "--text", "now", "--follow").out
    assert "now" in told
    assert "earlier" not in told
    assert "completed" in told.splitlines()[-1]
    key = ["--idempotency-key", session]
    lines = ctl("message", "send", session, "--text", "k", "--follow", "--format=json", *key).out
    kinds = [json.loads(line)["event_type"] for line in lines.splitlines()]
    assert kinds[-1] == "run.completed"
    again = ctl("message", "send", session, "--text", "k", "--follow", "--format=json", *key)
    assert again.out == lines
    failed = ctl("message", "send", session, "--text", "k", "--follow", "--provider", "bad")
    assert failed.code == 1


def test_answers_have_the_shape_of_the_api(ctl: Ctl, session: str) -> None:
    run = ctl("run", "create", session, "--provider", "manual", "--format=json").json["run"]
    shapes = {
        ("session", "get", session): {"session", "activity"},
        ("session", "list"): {"sessions", "next_cursor", "activity"},
        ("message", "list", session): {"messages", "next_cursor"},
        ("run", "get", run["id"]): {"run"},
        ("run", "list"): {"runs", "next_cursor"},
        ("run", "wait", run["id"], "--timeout-s", "0"): {"run", "timed_out", "request"},
        ("run", "diagnose", run["id"]): {"run", "diagnostics"},
        ("events", "list", session): {"events", "next_cursor", "has_more", "epoch"},
        ("run", "cancel", run["id"]): {"run", "canceled", "pending"},
        ("session", "close", session): {"session", "canceled", "closed_count", "at_work_count"},
    }
    for arguments, keys in shapes.items():
        result = ctl(*arguments, "--format", "json")
        assert result.json.keys() == keys, arguments
        assert len(result.out.splitlines()) == 1
        assert ctl(*arguments).out.strip()
    status = ctl("daemon", "status", "--format=json").json
    assert {"daemon_health", "queue_counts", "providers", "store", "problems"} <= status.keys()


def test_the_field_option_prints_one_value(ctl: Ctl, session: str) -> None:
    assert ctl.field("queue_counts.queued_count", "daemon", "status").isdigit()
    assert ctl.field("session.title", "session", "get", session) == "null"
    assert json.loads(ctl.field("session.metadata", "session", "get", session)) == {}
    run_id = ctl.field("run.id", "run", "create", session, "--text", "x", "--provider", "manual")
    assert json.loads(ctl.field("diagnostics.likely_issue", "run", "diagnose", run_id))["code"]
    missing = ctl("run", "get", run_id, "--field", "run.result.text")
    assert (missing.code, missing.out) == (4, "")
    seqs = ctl.field("seq", "events", "tail", session).split()
    assert seqs == [str(n) for n in range(1, len(seqs) + 1)]
    texts = ctl("events", "tail", session, "--field", "data.text")
    assert (texts.code, texts.out) == (0, "x\n")
    assert ctl("events", "tail", session, "--field", "data.nothing").code == 4


def test_a_manual_run_is_driven_by_transitions(ctl: Ctl, session: str) -> None:
    run_id = ctl.field("run.id", "run", "create", session, "--provider", "manual", "--text", "x")
    go = ["run", "transition", "--run-id", run_id, "--to-status"]
    assert ctl(*go, "running").out == f"run {run_id} is running\n"
    late = ctl("run", "wait", "--run-id", run_id, "--timeout-s", "0.2")
    assert late.code == 7
    assert "not ended after 0.2 s" in late.err
    assert ctl(*go, "completed", "--result", "-", stdin="by\nhand").code == 0
    assert ctl.field("run.result.text", "run", "get", run_id) == "by\nhand"
    assert ctl("run", "wait", run_id).code == 0
    refused = ctl(*go, "running")
    assert refused.code == 6
    other = ctl.field("run.id", "run", "create", session, "--provider", "manual")
    go[3] = other
    assert ctl(*go, "running").code == 0
    assert ctl(*go, "failed", "--error", "no", "--error-code", "denied").code == 0
    assert ctl("run", "wait", other).code == 1
    assert ctl.field("run.error.code", "run", "get", other) == "denied"


def test_a_canceled_run_is_reported_as_canceled(ctl: Ctl, session: str) -> None:
    run_id = ctl.field("run.id", "run", "create", session, "--provider", "slow", "--text", "x")
    assert ctl("run", "cancel", run_id, "--reason", "enough").code == 0
    waited = ctl("run", "wait", run_id)
    assert waited.code == 1
    assert "canceled" in waited.out
    assert "had ended before" in ctl("run", "cancel", run_id).out


def test_errors_have_documented_exit_codes(ctl: Ctl, session: str) -> None:
    assert ctl("run", "get", "run_nope").code == 4
    assert ctl("events", "tail", "ses_nope", "--follow").code == 4
    assert ctl("message", "send", session, "--text", "x", "--provider", "nope").code == 2
    assert ctl("events", "list", session, "--cursor", "999").code == 6
    ctl("session", "close", session)
    closed = ctl("message", "send", session, "--text", "x", "--format=json")
    assert closed.code == 6
    assert json.loads(closed.err)["error"]["code"] == "session_closed"


def test_a_daemon_with_tokens_refuses_calls_without_one(guarded: Daemon) -> None:
    ctl = guarded.ctl
    refused = ctl("session", "list")
    assert refused.code == 5
    assert "AGENTCTL_AUTH_TOKEN" in refused.err
    assert ctl("session", "list", "--auth-token", "wrong").code == 5
    assert ctl("session", "list", "--auth-token", "s3cret").code == 0
    assert ctl("session", "list", AGENTCTL_AUTH_TOKEN="s3cret").code == 0
    assert ctl("ask", "hi", AGENTCTL_AUTH_TOKEN="s3cret").out == "hi\n"


def test_a_list_with_more_pages_prints_the_next_cursor(ctl: Ctl, session: str) -> None:
    for _ in range(3):
        ctl("run", "create", session, "--provider", "manual")
    page = ctl("run", "list", "--session-id", session, "--limit", "2", "--format=json").json
    assert len(page["runs"]) == 2
    more = ctl("run", "list", "--session-id", session, "--limit", "2")
    assert f"--cursor {page['next_cursor']}" in more.err
    rest = ctl("run", "list", "--session-id", "-", "--cursor", page["next_cursor"], "--format=json",
               stdin=session).json  # fmt: skip
    assert len(rest["runs"]) == 1
    whole = ctl("run", "list", "--session-id", session, "--format=json").json
    assert (len(whole["runs"]), whole["next_cursor"]) == (3, None)


def test_session_create_uses_the_callers_working_directory(ctl: Ctl, tmp_path: Path) -> None:
    assert ctl("session", "create", "--format=json", cwd=tmp_path).json["session"]["cwd"] == str(
        tmp_path
    )
    (tmp_path / "sub").mkdir()
    made = ctl(
        "session", "create", "--cwd", "sub", "--metadata", '{"a":1}', "--format=json", cwd=tmp_path
    )
    assert made.json["session"]["cwd"] == str(tmp_path / "sub")
    assert made.json["session"]["metadata"] == {"a": 1}


def test_tail_shows_the_last_events(ctl: Ctl, session: str) -> None:
    ctl("message", "send", session, "--text", "x", "--wait")
    whole = ctl("events", "tail", session, "--format=json").out.splitlines()
    assert ctl("events", "tail", session, "-n", "2", "--format=json").out.splitlines() == whole[-2:]
    after = ctl("events", "tail", session, "--cursor", "3", "--format=json").out.splitlines()
    assert after == whole[3:]
    page = ctl("events", "list", session, "--cursor", "1", "--limit", "2", "--format=json").json
    assert page["events"] == [json.loads(line) for line in whole[1:3]]


def test_a_closed_pipe_is_not_an_error(ctl: Ctl, session: str) -> None:
    for _ in range(3):
        ctl("message", "send", session, "--text", "-", "--wait", stdin="y\n" * 20_000)
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -c 10; exit 0', "sh", *COMMAND, "events", "tail", session],
        env=environment(AGENTCTL_URL=ctl.url),
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stderr == b""


# --- on a terminal ----------------------------------------------------------------------------


def shown_on_terminal(
    ctl: Ctl, *arguments: str, columns: int = 100, **more: str
) -> tuple[int, str]:
    """Run agentctl on a pseudo-terminal; return its exit code and all it wrote."""
    env = environment(AGENTCTL_URL=ctl.url, TERM="xterm", COLUMNS=str(columns), **more)
    with on_terminal(arguments, ctl.cwd, env) as (process, leader):
        written = b""
        with contextlib.suppress(OSError):  # EIO: the last holder of the terminal has ended
            while select.select([leader], [], [], PATIENCE_S)[0]:
                written += os.read(leader, 65536)
        return process.wait(PATIENCE_S), written.decode()


def left_on_screen(written: str) -> str:
    """Return what is on a long terminal in the end, after all that was drawn over."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece.endswith("A") and piece.startswith("\x1b"):
            row = max(row - int(piece[2:-1] or 1), 0)
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith(("\x1b", "\r")):
            lines[row] += piece
    return "\n".join(lines)


def test_ask_on_a_terminal_uses_colour_and_says_how_to_continue(ctl: Ctl, tmp_path: Path) -> None:
    code, shown = shown_on_terminal(Ctl(ctl.url, tmp_path), "ask", "hi", "--provider", "demo")
    assert code == 0
    assert "\x1b[" in shown
    assert left_on_screen(shown).count("With a real agent") == 1
    assert "continue with: agentctl ask --session-id ses_" in shown


def test_terminal_controls_in_agent_output_are_shown_as_text(ctl: Ctl) -> None:
    code, shown = shown_on_terminal(ctl, "ask", "hi", "--provider", "rude", NO_COLOR="1")
    assert code == 0
    assert "safe and ound" in shown  # the C1 sequence takes its final byte along
    # What hides the cursor, and wipes the lines that show progress.
    rest = re.sub(r"\x1b\[(\?25[lh]|2?K|1A)", "", shown)
    assert not re.search("[\x1b\x07\x9b]", rest), repr(rest)
    assert "stolen" not in shown
    code, shown = shown_on_terminal(
        ctl, "session", "create", "--title", "a\x1b[2Jb\x9bc", NO_COLOR="1"
    )
    assert code == 0
    assert not re.search("[\x1b\x9b]", shown)


def test_no_colour_is_used_with_no_color_or_without_a_terminal(ctl: Ctl, session: str) -> None:
    assert "\x1b" in shown_on_terminal(ctl, "session", "get", session)[1]
    assert "\x1b" not in shown_on_terminal(ctl, "session", "get", session, NO_COLOR="1")[1]
    assert "\x1b" not in ctl("session", "get", session).out


# --- interruptions ----------------------------------------------------------------------------


def test_interrupting_ask_cancels_its_run(ctl: Ctl) -> None:
    with ctl.going("ask", "x", "--provider", "slow") as process:
        assert process.stderr is not None
        head = process.stderr.readline()
        while "at work" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "interrupted; run" in told
    run_id = head.split()[-1]
    assert ctl("run", "wait", run_id).code == 1
    assert ctl.field("run.status", "run", "get", run_id) == "canceled"


def test_interrupting_a_wait_leaves_the_run(ctl: Ctl, session: str) -> None:
    key = ["--idempotency-key", session]
    # The run exists beforehand, so that its id tells when the wait has begun.
    sent = ctl(
        "message", "send", session, "--text", "x", "--provider", "slow", *key, "--format=json"
    )
    run_id = sent.json["run"]["id"]
    again = ["message", "send", session, "--text", "x", "--provider", "slow", *key, "--follow"]
    with ctl.going(*again) as process:
        assert process.stdout is not None
        while "at work" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert told == f"agentctl: the run continues; end it with `agentctl run cancel {run_id}`\n"
    assert ctl.field("run.status", "run", "get", run_id) == "running"
    assert ctl("run", "cancel", run_id).code == 0


# --- lost connections -------------------------------------------------------------------------


def whole(stream: socket.socket) -> bytes:
    """Read one HTTP message; nothing when the other side has closed."""
    text = b""
    while b"\r\n\r\n" not in text:
        if not (more := stream.recv(65536)):
            return b""
        text += more
    head, _, body = text.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        body += stream.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def losing_answers(port: int, lost: int) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that passes requests on and breaks the connection in place of the first answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    posts: list[bytes] = []

    def serve_one(near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            while request := whole(near):
                far.sendall(request)
                answer = whole(far)
                if request.startswith(b"POST"):
                    posts.append(request)
                    if len(posts) <= lost:
                        return
                near.sendall(answer)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                thread = threading.Thread(target=serve_one, args=(near,))
                thread.start()
                threads.append(thread)

    threads: list[threading.Thread] = []
    accepting = threading.Thread(target=serve)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", posts
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [accepting, *threads]:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_a_call_whose_answer_was_lost_is_retried_and_takes_effect_once(shared: Daemon) -> None:
    ctl = shared.ctl
    session = ctl.field("session.id", "session", "create")
    with losing_answers(shared.port, 2) as (url, posts):
        sent = Ctl(url, shared.directory)(
            "message", "send", session, "--text", "once", "--format=json",
            "--url", url,
        )  # fmt: skip
    assert sent.code == 0, sent.err
    assert len(posts) == 3
    assert (
        len({json.loads(post.partition(b"\r\n\r\n")[2])["idempotency_key"] for post in posts}) == 1
    )
    assert len(ctl("message", "list", session, "--format=json").json["messages"]) == 1


def end_agents(session: str) -> None:
    """End what the agents of a session left when their daemon was killed."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AGENTCTL_SESSION_ID") == session:
                process.kill()


def test_following_goes_on_after_the_daemon_was_killed(daemon: Daemon) -> None:
    ctl = daemon.ctl
    session = ctl.field("session.id", "session", "create")
    lines: list[str] = []
    notes: list[str] = []

    def told(kind: str) -> int:
        return [json.loads(line)["event_type"] for line in lines].count(kind)

    with ctl.going("events", "tail", "--session-id", session, "--follow", "--format=json") as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        threads = [
            threading.Thread(target=lines.extend, args=(tail.stdout,)),
            threading.Thread(target=notes.extend, args=(tail.stderr,)),
        ]
        for thread in threads:
            thread.start()
        try:
            assert ctl("message", "send", session, "--text", "before", "--wait").code == 0
            ctl("message", "send", session, "--text", "x", "--provider", "slow")
            wait_until(lambda: told("run.started") == 2)
            daemon.end(signal.SIGKILL)
            wait_until(lambda: any("connection lost" in note for note in notes))
            daemon.start()
            ctl("message", "send", session, "--text", "after", "--when-busy", "interrupt")
            wait_until(lambda: told("run.completed") == 2)
            # Another thread reads what is told of it.
            wait_until(lambda: any("connected again" in note for note in notes))
        finally:
            tail.send_signal(signal.SIGINT)
            for thread in threads:
                thread.join(PATIENCE_S)
            end_agents(session)
        assert tail.wait(PATIENCE_S) == 130
    log = ctl("events", "list", session, "--limit", "1000", "--format=json").json["events"]
    seen = [json.loads(line) for line in lines]
    assert seen == log[: len(seen)]
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))


# --- the daemon from the command line ---------------------------------------------------------


def test_a_daemon_can_be_started_shown_and_stopped(tmp_path: Path) -> None:
    ctl = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    (tmp_path / "agentd.toml").write_text(
        '[providers.demo]\nrunner="demo"\n[routing]\ndefault="demo"\n'
    )
    started = ctl("daemon", "start", "--format=json").json
    process = psutil.Process(started["pid"])
    try:
        assert started["url"] == ctl.url
        assert started["already_running"] is False
        assert Path(started["log"]) == tmp_path / ".data" / "agentd.log"
        assert "listening" in Path(started["log"]).read_text()
        assert os.getsid(started["pid"]) == started["pid"]
        again = ctl("daemon", "start")
        assert again.code == 0
        assert f"runs already at {ctl.url}, pid {started['pid']}" in again.out
        overview = ctl("daemon", "status").out
        assert f"at {ctl.url}: ok" in overview
        assert "demo" in overview
        second = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)("daemon", "start")
        assert second.code == 1
        assert "agentd ended with 1" in second.err
        assert f"is in use by process {started['pid']}" in second.err
        stopped = ctl("daemon", "stop", "--wait")
        assert (stopped.code, stopped.out) == (0, f"agentd, pid {started['pid']}, has stopped\n")
        process.wait(PATIENCE_S)  # whoever started it takes its exit status
        assert ctl("daemon", "stop").code == 3
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_daemon_stop_prints_what_happens_to_the_runs(tmp_path: Path) -> None:
    ctl = Ctl("http://127.0.0.1:8765", tmp_path)
    (tmp_path / "agentd.toml").write_text(
        '[providers.slow]\nrunner = "command"\nargv = ["sh", "-c", "echo on; exec sleep 600"]\n'
    )
    started = ctl("daemon", "start", "--format=json", "--", "--port", "0", "--grace-s", "0").json
    process = psutil.Process(started["pid"])
    try:
        own = Ctl(started["url"], tmp_path)
        session = own.field("session.id", "session", "create")
        run = own.field("run.id", "message", "send", "--session-id", session, "--text", "x")
        with own.going("events", "tail", "--session-id", session, "--follow") as tail:
            assert tail.stdout is not None
            assert any("on" in line for line in tail.stdout)
        stopped = own("daemon", "stop", "--wait", "--format=json", cwd=Path("/")).json
        assert stopped["drain"] == {"finished": 0, "released": [run], "parked": []}
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_daemon_start_passes_options_and_token_to_agentd(tmp_path: Path) -> None:
    ctl = Ctl("http://127.0.0.1:8765", tmp_path)
    started = ctl(
        "--auth-token", "s3cret", "daemon", "start", "--format=json",
        "--", "--port", "0", "--db", "sub/a.db", "--max-concurrency", "2",
    ).json  # fmt: skip
    process = psutil.Process(started["pid"])
    try:
        assert Path(started["log"]).parent == tmp_path / "sub"
        assert "s3cret" not in " ".join(process.cmdline())
        own = Ctl(started["url"], tmp_path)
        assert own("daemon", "status").code == 5
        status = own("daemon", "status", "--auth-token", "s3cret", "--format=json").json
        assert status["max_concurrency"] == 2
        stopped = own(
            "daemon", "stop", "--now", "--wait", "--auth-token", "s3cret", "--format=json"
        )
        assert stopped.json["stopped"] is True
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_daemon_start_prints_why_agentd_did_not_start(tmp_path: Path) -> None:
    ctl = Ctl("http://127.0.0.1:8765", tmp_path)
    result = ctl("daemon", "start", "--", "--port", "0", "--max-concurrency", "0")
    assert result.code == 1
    assert "max-concurrency" in result.err
    assert len(result.err.splitlines()) == 1


def test_the_error_of_agentd_is_found_in_a_log_that_others_write_to(tmp_path: Path) -> None:
    log = tmp_path / "agentd.log"
    log.write_text("agentd: old\n{}\nagentd: one\nagentd: two\nagentd: two\n\n{}\n")
    assert _log_tail(log, len("agentd: old\n")) == "one; two"
    log.write_text("Traceback\nValueError: no\n")
    assert _log_tail(log, 0) == "ValueError: no"
    trace = "Traceback (most recent call last):\n  File x\nMemoryError\n"
    log.write_text(
        f'agentd: port in use\n{{"message": "of another one"}}\n{trace}{{"message": "more"}}\n'
    )
    assert _log_tail(log, 0) == "MemoryError"


def test_the_end_of_a_daemon_is_seen_though_nobody_takes_its_exit_status() -> None:
    """In some containers no process reads the exit status of a daemon, which then stays as a zombie."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; exec sleep 600"], stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        process = psutil.Process(int(keeper.stdout.readline()))
        try:
            assert not await_end(process, 0.1)
            process.kill()
            assert await_end(process, PATIENCE_S)
            assert process.status() == psutil.STATUS_ZOMBIE
        finally:
            keeper.kill()
            process.kill()

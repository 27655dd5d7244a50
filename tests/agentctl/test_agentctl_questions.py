"""What agents ask and how it is answered, by agentctl against a real agentd."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from driving import PATIENCE_S, Ctl, Daemon, Result, wait_until

from agent_orchestrator.domain.model import Option, Request
from agentctl.document import plain_lines
from agentctl.questions import request_card, request_table

APPROVAL = ("--request-kind", "approval_request")
INPUT = ("--request-kind", "input_request")


@pytest.fixture
def parent(ctl: Ctl) -> str:
    return ctl.field("session.id", "session", "create", "--title", "Parent")


@pytest.fixture
def child(ctl: Ctl, parent: str) -> Any:
    """A child whose run is in this test's hands, and is running."""
    spawned = ctl("tool", "session-spawn", "--parent-session-id", parent, "--task", "x",
                  "--provider", "manual", "--title", "Scout")  # fmt: skip
    made = spawned.json
    start(ctl, made["run"]["id"])
    return made


def start(ctl: Ctl, run_id: str) -> None:
    started = ctl("run", "transition", "--run-id", run_id, "--to-status", "running")
    assert started.code == 0, started.err


def say(ctl: Ctl, run_id: str, text: str, *more: str, **given: Any) -> Result:
    return ctl("tool", "session-reply-parent", "--run-id", run_id, "--text", text, *more, **given)


def pending(ctl: Ctl, session_id: str) -> list[Any]:
    found: list[Any] = ctl("request", "list", "--session-id", session_id, "--format=json").json[
        "requests"
    ]
    return found


@contextmanager
def asking(ctl: Ctl, child: Any, *more: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Ask and wait for the answer in this scope; gives the request's id."""
    with ctl.going(
        "tool", "session-reply-parent", "--run-id", child["run"]["id"], "--text", "May I?",
        "--wait", *more,
    ) as process:  # fmt: skip
        session_id = child["session"]["id"]
        wait_until(lambda: pending(ctl, session_id) or process.poll() is not None)
        (request,) = pending(ctl, session_id)
        yield request["id"], process


def test_a_script_can_ask_its_parent_and_get_the_decision(ctl: Ctl) -> None:
    """Spawn from a run that has ended; the child asks without knowing whom; it is told."""
    parent_session_id = ctl.field("session.id", "session", "create")
    parent_run_id = ctl.field(
        "run.id", "message", "send", parent_session_id, "--text", "p", "--wait"
    )
    done = ctl.script(f"""
        set -e
        SPAWN=$(agentctl tool session-spawn --parent-run-id {parent_run_id} --task "Ask for approval before risky actions")
        CHILD_SESSION_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["session"]["id"])')
        CHILD_RUN_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["run"]["id"])')
        agentctl tool session-reply-parent --run-id "$CHILD_RUN_ID" --request-kind approval_request --text "Need approval to run: rm -rf ./tmp-cache"
        agentctl tool session-reply-parent --run-id "$CHILD_RUN_ID" --request-kind approval_request --text "And ./tmp-logs" --idempotency-key once-$CHILD_RUN_ID
        agentctl tool session-reply-parent --run-id "$CHILD_RUN_ID" --request-kind approval_request --text "And ./tmp-logs" --idempotency-key once-$CHILD_RUN_ID
        agentctl --format json events list --session-id {parent_session_id}
        agentctl tool session-send --session-id "$CHILD_SESSION_ID" --text "Approved. Proceed with cleanup only in ./tmp-cache." > sent.json
        agentctl tool session-wait --run-id "$(python3 -c 'import json; print(json.load(open("sent.json"))["run"]["id"])')"
        agentctl events list --session-id {parent_session_id}
    """)
    assert done.code == 0, done.err
    *documents, transcript = done.out.split("\n", 5)
    asked, keyed, again, log, ended = map(json.loads, documents)
    assert asked.keys() == {"message", "parent_session_id", "request"}
    assert asked["parent_session_id"] == parent_session_id
    assert asked["message"]["session_id"] == parent_session_id
    assert asked["request"]["text"] == "Need approval to run: rm -rf ./tmp-cache"
    assert keyed == again
    assert keyed["request"]["id"] != asked["request"]["id"]
    created = [e["data"]["id"] for e in log["events"] if e["event_type"] == "request.created"]
    assert created == [asked["request"]["id"], keyed["request"]["id"]]
    assert ended["run"]["result"]["text"].startswith("Approved. Proceed with cleanup")
    assert f"agentctl request approve {created[0]}  (or deny)\n" in transcript


def test_a_request_can_be_extended_and_answered_with_text(ctl: Ctl, child: Any) -> None:
    kind = ("--request-kind", "input_request", "--expires-in-s", "100")
    asked = say(ctl, child["run"]["id"], "Which port?", *kind).json["request"]
    extended = ctl("request", "extend", asked["id"], "--expires-in-s", "9000")
    assert (extended.code, "expires at" in extended.out) == (0, True)
    (found,) = pending(ctl, child["session"]["id"])
    assert found["expires_at"] > asked["expires_at"]
    bare = ctl("request", "approve", asked["id"])
    assert (bare.code, "text: is required" in bare.err) == (2, True)
    assert ctl("request", "answer", asked["id"], "--text", "80").code == 0
    late = ctl("request", "extend", asked["id"], "--expires-in-s", "9000")
    assert (late.code, "already answered" in late.err) == (6, True)


def test_a_wait_for_an_answer_can_time_out_before_the_request_expires(ctl: Ctl, child: Any) -> None:
    kind = ("--request-kind", "input_request", "--expires-in-s", "1000")
    told = say(ctl, child["run"]["id"], "Which?", *kind, "--wait", "--timeout-s", "0.2")
    assert (told.code, told.json["timed_out"]) == (7, True)
    assert [one["id"] for one in pending(ctl, child["session"]["id"])] == [
        told.json["request"]["id"]
    ]
    for wrong in (["--timeout-s", "1", *kind], ["--expires-in-s", "1"]):
        assert say(ctl, child["run"]["id"], "Which?", *wrong).code == 2


def test_a_reply_without_a_request_kind_opens_no_request(ctl: Ctl, parent: str, child: Any) -> None:
    run_id = child["run"]["id"]
    told = ctl("tool", "session-reply-parent", "--text", "-", stdin="half\nway",
               AGENTCTL_RUN_ID=run_id).json  # fmt: skip
    assert (told["message"]["text"], told["parent_session_id"]) == ("half\nway", parent)
    assert told["request"] is None
    text = say(ctl, run_id, "x", "--format=text").out
    assert text.startswith("message msg_")
    assert text.endswith(f" to {parent}\n")
    lonely = ctl.field("run.id", "run", "create", parent, "--provider", "manual")
    assert say(ctl, lonely, "anyone?").code == 6


def test_an_option_is_chosen_by_its_id_or_label(ctl: Ctl, child: Any) -> None:
    run_id = child["run"]["id"]

    def ask() -> str:
        asked = say(ctl, run_id, "?", "--request-kind", "approval_request", "--option", "80",
                    "--option", "81")  # fmt: skip
        return str(asked.json["request"]["id"])

    chosen = ctl("--format=json", "request", "answer", ask(), "--option", "81").json["request"]
    assert (chosen["status"], chosen["option"], chosen["answer"]) == ("answered", "81", "81")
    asked = ask()
    for command, problem in (
        (("approve", asked, "--option", "80"), "must be answer"),
        (("deny", asked, "--option", "82"), "must be one of 80, 81"),
        (("answer", asked), "--text or --option"),
    ):
        refused = ctl("request", *command)
        assert refused.code == 2
        assert problem in refused.err
    assert ctl.field("request.status", "request", "show", asked) == "pending"
    shown = ctl("request", "show", chosen["id"]).out
    assert "options  80 · 81\n" in shown
    assert "option   81\n" in shown


def test_a_request_has_the_detail_options_and_expiry_that_were_given(ctl: Ctl, child: Any) -> None:
    asked = say(
        ctl, child["run"]["id"], "?", "--request-kind", "permission_request", "--expires-in-s", "90",
        "--detail", '{"path": "/etc"}', "--option", "read", "--option", "write",
    ).json["request"]  # fmt: skip
    assert (asked["kind"], asked["detail"]) == ("permission_request", {"path": "/etc"})
    assert [one["id"] for one in asked["options"]] == ["read", "write"]
    span = datetime.fromisoformat(asked["expires_at"]) - datetime.fromisoformat(asked["created_at"])
    assert span == timedelta(seconds=90)
    shown = ctl("request", "show", asked["id"]).out
    assert "read · write" in shown
    assert '"path": "/etc"' in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--run-id", "run_1", "--wait"],
        ["--run-id", "run_1", "--option", "a"],
        ["--run-id", "run_1", "--detail", "{}"],
        ["--run-id", "run_1", *APPROVAL, "--detail", "[]"],
        ["--run-id", "run_1", *APPROVAL, "--detail", "{"],
        ["--run-id", "run_1", *APPROVAL, "--timeout-s", "0"],
        ["--request-kind", "other"],
        [],
    ],
)
def test_invalid_request_options_are_a_usage_error(ctl: Ctl, arguments: list[str]) -> None:
    wrong = ctl("tool", "session-reply-parent", "--text", "x", *arguments)
    assert (wrong.code, wrong.out) == (2, "")
    assert len(wrong.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "decision", "status", "code"),
    [
        (APPROVAL, ["approve", "--text", "Only here", "--scope", "session"], "approved", 0),
        (APPROVAL, ["deny", "--text", "No"], "denied", 1),
        (INPUT, ["answer", "--text", "8080"], "answered", 0),
    ],
)
def test_an_ask_that_waits_exits_with_the_decision(
    ctl: Ctl, child: Any, kind: tuple[str, str], decision: list[str], status: str, code: int
) -> None:
    run_id = child["run"]["id"]
    with asking(ctl, child, *kind) as (request_id, process):
        assert ctl.field("run.status", "run", "get", run_id) == "waiting"
        resolved = ctl("request", decision[0], request_id, *decision[1:])
        assert (resolved.code, resolved.out) == (0, f"request {request_id} is {status}\n")
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (code, "")
    request = json.loads(out)["request"]
    assert (request["id"], request["status"], request["answer"]) == (
        request_id, status, decision[2]
    )  # fmt: skip
    assert ctl.field("run.status", "run", "get", run_id) == "running"


def test_an_ask_that_waits_ends_when_the_request_expires(ctl: Ctl, child: Any) -> None:
    late = say(ctl, child["run"]["id"], "Quick?", *INPUT, "--wait", "--expires-in-s", "0.05")
    assert (late.code, late.json["request"]["status"]) == (1, "expired")


def test_an_ask_that_waits_ends_when_its_run_is_canceled(ctl: Ctl, child: Any) -> None:
    with asking(ctl, child, *APPROVAL, "--field", "request.status") as (_, process):
        ctl("run", "cancel", child["run"]["id"])
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "canceled\n")


def test_a_wait_for_an_answer_goes_on_after_a_daemon_restart(daemon: Daemon) -> None:
    ctl = daemon.ctl
    run_id = ctl.field("run.id", "run", "create", ctl.field("session.id", "session", "create"),
                       "--provider", "manual")  # fmt: skip
    start(ctl, run_id)
    run = ctl("run", "get", run_id, "--format=json").json["run"]
    with asking(ctl, {"run": run, "session": {"id": run["session_id"]}}, *INPUT) as (id_, process):
        daemon.end()
        daemon.start()
        assert ctl("request", "answer", "--request-id", id_, "--text", "-", stdin="42").code == 0
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert json.loads(out)["request"]["answer"] == "42"


def test_a_different_second_answer_is_a_conflict(ctl: Ctl, child: Any) -> None:
    request_id = say(ctl, child["run"]["id"], "May I?", *APPROVAL).json["request"]["id"]
    for _ in "ab":
        assert ctl("request", "approve", request_id).code == 0
    late = ctl("request", "deny", request_id)
    assert late.code == 6
    assert "agentctl request show" in late.err
    missing = ctl("request", "approve", "req_none")
    assert missing.code == 4
    assert "agentctl request list" in missing.err
    assert ctl("request", "answer", request_id).code == 2


def test_request_list_shows_the_open_requests_of_a_tree(ctl: Ctl, parent: str, child: Any) -> None:
    run_id = child["run"]["id"]
    first = say(ctl, run_id, "First\nline", *APPROVAL).json["request"]["id"]
    second = say(ctl, run_id, "Second", *INPUT).json["request"]["id"]
    assert ctl("request", "deny", "-", stdin=first).code == 0
    tree = ("request", "list", "--root-session-id", parent)
    assert ctl.field("requests.0.id", *tree) == second
    lines = ctl(*tree).out.splitlines()
    assert lines[0].split() == ["REQUEST", "KIND", "ASKED", "EXPIRES", "SESSION", "TEXT"]
    assert lines[1].split()[:2] == [second, "input"]
    assert len(lines) == 2
    every = ctl(*tree, "--all").out.splitlines()
    assert [line.split()[0] for line in every[1:]] == [first, second]
    assert every[1].split()[2] == "denied"
    assert every[1].endswith("First line")
    assert ctl(*tree, "--status", "denied", "--field", "requests.0.id").out == first + "\n"
    assert ctl(*tree, "--status", "expired").out == "no requests\n"
    assert ctl(*tree, "--status", "denied", "--all").code == 2
    page = ctl(*tree, "--all", "--limit", "1", "--format=json").json
    assert [one["id"] for one in page["requests"]] == [first]
    rest = ctl(*tree, "--all", "--cursor", page["next_cursor"], "--format=json").json
    assert [one["id"] for one in rest["requests"]] == [second]
    assert ctl("request", "list", "--session-id", "ses_none").code == 4


def test_following_the_parent_session_shows_requests_of_its_children(
    ctl: Ctl, parent: str, child: Any
) -> None:
    with ctl.going("events", "tail", parent, "--follow") as tail:
        assert tail.stdout is not None
        asked = say(ctl, child["run"]["id"], "May I?", *APPROVAL).json["request"]["id"]
        seen = [next(tail.stdout)]
        while "answer: " not in seen[-1]:
            seen.append(next(tail.stdout))
    assert seen[-2].endswith("  Scout      ? asks for approval: May I?\n")
    assert seen[-1].strip() == f"answer: agentctl request approve {asked}  (or deny)"


# --- views ------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)
REQUEST = Request(
    id="req_1", session_id="ses_2", run_id="run_2", attempt=1, root_session_id="ses_1",
    parent_session_id="ses_1", kind="approval_request", text="May I?\n\x1b[2Jrm \x07x",
    detail={"command": "rm \x9b2Jx", "why": "\x1b]0;t\x07"}, options=(Option.named("once"), Option("a", "al\x1b[1mways", "allow_always", "all\x07")),
    status="pending", decision=None, answer=None, scope=None, decided_by=None,
    created_at=NOW - timedelta(minutes=5), expires_at=NOW + timedelta(minutes=55), resolved_at=None,
)  # fmt: skip
CLOSED = evolve(
    REQUEST, status="denied", answer="No\x1b[8m way", decided_by="ann", resolved_at=NOW,
    detail=None, options=None, parent_session_id=None,
)  # fmt: skip


def test_the_request_table_shows_kind_age_and_expiry() -> None:
    assert [*plain_lines(request_table([REQUEST], NOW))] == [
        "REQUEST  KIND          ASKED         EXPIRES  SESSION  TEXT",
        "req_1    approval  5 min ago  in 55 min 00 s  ses_2    May I? ^[[2Jrm ^Gx",
    ]
    assert "denied" in [*plain_lines(request_table([REQUEST, CLOSED], NOW))][2]
    assert "in 55" not in [*plain_lines(request_table([CLOSED], NOW))][1]
    late = evolve(REQUEST, expires_at=NOW - timedelta(seconds=1))
    assert "  now  " in [*plain_lines(request_table([late], NOW))][1]


@pytest.mark.usefixtures("in_utc")
def test_the_request_card_shows_detail_options_and_decision() -> None:
    assert [*plain_lines(request_card(REQUEST, NOW))] == [
        "request req_1",
        "  status   pending",
        "  kind     approval",
        "  session  ses_2",
        "  run      run_2",
        "  asks     human",
        "  policy   ask-parent",
        "  asked    5 min ago",
        "  expires  in 55 min 00 s  (2026-03-04 10:25:00)",
        "  options  once · al^[[1mways (a)",
        "",
        "May I?",
        "^[[2Jrm ^Gx",
        "",
        "al^[[1mways allows all^G",
        "",
        "DETAIL",
        "{",
        '  "command": "rm �2Jx",',
        '  "why": "\\u001b]0;t\\u0007"',
        "}",
    ]
    assert [*plain_lines(request_card(CLOSED, NOW))][1:] == [
        "  status   denied",
        "  kind     approval",
        "  session  ses_2",
        "  run      run_2",
        "  asks     human",
        "  policy   ask-parent",
        "  asked    5 min ago",
        "  closed   now",
        "  by       ann",
        "",
        "May I?",
        "^[[2Jrm ^Gx",
        "",
        "ANSWER",
        "No way",
    ]


def test_the_request_card_says_whether_the_parent_or_a_human_is_asked() -> None:
    def asks(**changes: Any) -> str:
        lines = [*plain_lines(request_card(evolve(REQUEST, **changes), NOW))]
        return next(line for line in lines if line.startswith("  asks"))

    soon = NOW + timedelta(seconds=90)
    assert asks(audience="parent", human_at=soon) == (
        "  asks     its parent ses_1, then a person in 1 min 30 s"
    )
    assert asks(audience="parent", status="approved") == "  asks     its parent ses_1"
    assert asks(audience=None, status="denied") == "  asks     none: the policy decides"


def test_an_approval_policy_can_be_set_and_is_shown(ctl: Ctl) -> None:
    session_id = ctl.field("session.id", "session", "create", "--approvals", "ask-human")
    assert "  approvals  ask-human\n" in ctl("session", "get", session_id).out
    spawn = ["tool", "session-spawn", "--parent-session-id", session_id, "--task", "x"]
    child = ctl(*spawn, "--approvals", "deny").json
    assert child["session"]["approvals"] == "deny"
    run_id = child["run"]["id"]
    asked = say(ctl, run_id, "May I?", *APPROVAL, "--wait")
    assert asked.code == 1
    assert asked.json["request"]["decided_by"] == "policy"
    refused = ctl(*spawn, "--approvals", "allow")
    assert refused.code == 2
    assert "approvals: must not be looser than its parent's, ask-human" in refused.err
    transcript = ctl("events", "list", session_id).out
    assert "asks for approval: May I?\n" in transcript
    assert "denied by policy" in transcript
    assert "agentctl request approve" not in transcript

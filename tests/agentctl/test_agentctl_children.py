"""Agents that work together, by agentctl against a real agentd."""

import json
from pathlib import Path

import pytest
from driving import PATIENCE_S, Ctl, Result


@pytest.fixture
def session(ctl: Ctl) -> str:
    return ctl.field("session.id", "session", "create", "--title", "Parent")


@pytest.fixture
def parent(ctl: Ctl, session: str) -> str:
    """A run that has ended."""
    return ctl.field("run.id", "message", "send", session, "--text", "plan", "--wait")


def spawn(ctl: Ctl, parent: str, *more: str, task: str = "hello") -> Result:
    return ctl("tool", "session-spawn", "--parent-run-id", parent, "--task", task, *more)


def test_a_script_can_spawn_wait_send_and_reply(ctl: Ctl, session: str, parent: str) -> None:
    """Spawn from a run that has ended, take the ids from the JSON, go on with the child."""
    done = ctl.script(f"""
        set -e
        SPAWN=$(agentctl tool session-spawn --parent-run-id {parent} --task "Ask before risks")
        CHILD_SESSION_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["session"]["id"])')
        CHILD_RUN_ID=$(printf '%s' "$SPAWN" | python3 -c 'import json,sys; print(json.load(sys.stdin)["run"]["id"])')
        agentctl tool session-wait --run-id "$CHILD_RUN_ID"
        agentctl events list --session-id {session} --format json
        SENT=$(agentctl tool session-send --session-id "$CHILD_SESSION_ID" --text "Approved. Proceed.")
        agentctl tool session-wait --run-id "$(printf '%s' "$SENT" | python3 -c 'import json,sys; print(json.load(sys.stdin)["run"]["id"])')"
    """)
    assert done.code == 0, done.err
    first, log, second = (json.loads(line) for line in done.out.splitlines())
    assert first.keys() == second.keys() == {"run", "timed_out", "request"}
    assert first["run"]["result"]["text"] == "Ask before risks"
    assert second["run"]["result"]["text"] == "Approved. Proceed."
    assert second["run"]["session_id"] == first["run"]["session_id"] != session
    kinds = [event["event_type"] for event in log["events"]]
    assert kinds[-3:] == ["child.spawned", "message.created", "child.finished"]


def test_spawn_sends_all_its_options_and_prints_the_child(
    ctl: Ctl, session: str, parent: str, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "schema.json").write_text("{}")
    told = ctl(
        "tool", "session-spawn", "--parent-run-id", parent, "--task", "-", "--title", "Child",
        "--provider", "manual", "--cwd", "sub", "--notify-parent", "wake",
        "--model", "m", "--effort", "low", "--output-schema", "schema.json",
        stdin="two\nlines", cwd=tmp_path,
    ).json  # fmt: skip
    assert told.keys() == {"session", "message", "run"}
    child = told["session"]
    assert (child["parent_session_id"], child["parent_run_id"]) == (session, parent)
    assert (child["title"], child["notify_parent"]) == ("Child", "wake")
    assert child["cwd"] == str(tmp_path / "sub")
    assert told["message"]["text"] == "two\nlines"
    assert (told["run"]["status"], told["run"]["provider"]) == ("queued", "manual")
    options = [told["run"][name] for name in ("model", "effort", "output_schema")]
    assert options == ["m", "low", {}]
    sent = ctl("tool", "session-send", child["id"], "--text", "x", "--effort", "high").json
    assert sent["run"]["effort"] == "high"


def test_spawn_from_a_session_has_no_parent_run(ctl: Ctl, session: str) -> None:
    told = ctl("tool", "session-spawn", "--parent-session-id", "-", "--task", "x", stdin=session,
               AGENTCTL_RUN_ID="run_of_another").json  # fmt: skip
    assert told["session"]["parent_session_id"] == session
    assert told["session"]["parent_run_id"] is None
    assert spawn(ctl, "run_nope").code == 4


def test_spawn_with_wait_prints_the_result_of_the_child(ctl: Ctl, parent: str) -> None:
    told = spawn(ctl, parent, "--wait").json
    assert told.keys() == {"session", "message", "run"}
    assert told["run"]["result"]["text"] == "hello"
    assert spawn(ctl, parent, "--wait", "--field", "run.result.text").out == "hello\n"
    failed = spawn(ctl, parent, "--wait", "--provider", "bad")
    assert (failed.code, failed.json["run"]["status"]) == (1, "failed")


def test_tool_commands_print_text_if_asked_to(ctl: Ctl, parent: str) -> None:
    made = spawn(ctl, parent, "--provider", "manual", "--format", "text").out
    assert made.startswith("session ses_")
    assert made.endswith(" queued for manual\n")
    assert len(made.splitlines()) == 1
    waited = spawn(ctl, parent, "--wait", "--format=text").out.splitlines()
    assert "completed" in waited[0]
    assert waited[-1] == "hello"


def test_limits_are_given_and_shown(ctl: Ctl, parent: str) -> None:
    made = ctl.field("session.id", "session", "create", "--max-depth", "2", "--max-descendants=9")
    shown = ctl("session", "get", made).out
    assert "at most 2 generations, 9 in all" in shown
    below = ctl("tool", "session-spawn", "--parent-session-id", made, "--task", "x",
                "--max-children", "0", "--provider", "manual").json["session"]  # fmt: skip
    limits = ("max_depth", "max_children", "max_descendants")
    assert [below[name] for name in limits] == [1, 0, 9]
    more = ctl("tool", "session-spawn", "--parent-session-id", below["id"], "--task", "x")
    assert (more.code, "no further child: at most 0 active children" in more.err) == (6, True)
    larger = spawn(ctl, parent, "--max-depth", "5")
    assert (larger.code, "max_depth" in larger.err) == (2, True)


def test_a_wait_for_attention_ends_at_a_request_that_is_not_ignored(ctl: Ctl, parent: str) -> None:
    run_id = spawn(ctl, parent, "--provider", "manual").json["run"]["id"]
    ask = ("tool", "session-reply-parent", "--run-id", run_id, "--request-kind", "input_request")
    first, second = (ctl.field("request.id", *ask, "--text", text) for text in ("1?", "2?"))
    wait = ("tool", "session-wait", "--run-id", run_id, "--until", "attention", "--timeout-s", "1")
    told = ctl(*wait)
    assert (told.code, told.json["request"]["id"], told.json["timed_out"]) == (0, first, False)
    assert ctl.field("request.id", *wait, "--ignore", first) == second
    text = ctl("run", "wait", run_id, "--until", "attention", "--ignore", first)
    assert (text.code, second in text.out, "2?" in text.out) == (0, True, True)
    assert ctl(*wait, "--ignore", first, "--ignore", second, "--timeout-s", "0.1").code == 7


def test_spawn_and_send_with_the_same_key_take_effect_once(ctl: Ctl, parent: str) -> None:
    key = ["--idempotency-key", parent]
    children = [spawn(ctl, parent, *key).json["session"]["id"] for _ in "ab"]
    assert len(set(children)) == 1
    other = spawn(ctl, parent, *key, task="other")
    assert other.code == 6
    send = ["tool", "session-send", "--session-id", children[0], "--text", "more", *key]
    assert len({ctl.field("message.id", *send) for _ in "ab"}) == 1


def test_send_records_whether_a_parent_a_child_or_a_client_sent_it(
    ctl: Ctl, session: str, parent: str
) -> None:
    child = spawn(ctl, parent, "--wait").json["session"]["id"]
    send = ["tool", "session-send", "--text", "x", "--session-id"]
    down = ctl(*send, child, "--from-run-id", parent).json
    assert down.keys() == {"message", "run"}
    assert down["message"]["source"]["kind"] == "parent"
    up = ctl(*send, session, AGENTCTL_RUN_ID=down["run"]["id"]).json["message"]["source"]
    assert (up["kind"], up["session_id"]) == ("child", child)
    assert ctl(*send, child).json["message"]["source"]["kind"] == "client"
    manual = spawn(ctl, parent, "--provider", "manual").json
    ctl("run", "transition", "--run-id", manual["run"]["id"], "--to-status", "running")
    busy = ctl(*send, manual["session"]["id"], "--when-busy", "reject")
    assert busy.code == 6
    assert "session_busy" not in busy.out
    assert busy.err.startswith("agentctl: ")


def test_a_wait_that_times_out_exits_with_7(ctl: Ctl, parent: str) -> None:
    run_id = spawn(ctl, parent, "--provider", "manual").json["run"]["id"]
    late = ctl("tool", "session-wait", "--run-id", run_id, "--timeout-s", "0.1")
    assert (late.code, late.json["timed_out"], late.json["run"]["id"]) == (7, True, run_id)
    with ctl.going("tool", "session-wait", "--run-id", run_id) as waiting:
        for status in ("running", "failed"):
            go = ctl("run", "transition", "--run-id", run_id, "--to-status", status)
            assert go.code == 0, go.err
        out, _ = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 1
    assert json.loads(out)["run"]["status"] == "failed"


def test_spawn_can_wake_the_parent_when_the_child_ends(ctl: Ctl, session: str, parent: str) -> None:
    spawn(ctl, parent, "--notify-parent", "wake", "--title", "Scout", "--wait", task="found it")
    run_id = ctl.field("runs.1.id", "run", "list", "--session-id", session)
    woken = ctl("tool", "session-wait", run_id).json["run"]
    assert "found it" in woken["result"]["text"]
    told = ctl("events", "tail", session).out
    assert "↳ spawned Scout (ses_" in told
    assert "  Scout      › Child session Scout (ses_" in told
    assert "  Scout      ✓ completed after " in told
    messages = ctl("message", "list", session).out.splitlines()
    assert messages[-1].split()[1:3] == ["user", "child"]


def test_inside_a_run_ids_come_from_the_environment(ctl: Ctl, session: str) -> None:
    sent = ctl("message", "send", session, "--provider", "delegate", "--text", ctl.url,
               "--wait", "--format=json").json["run"]  # fmt: skip
    assert sent["status"] == "completed", sent["error"]
    told = json.loads(sent["result"]["text"])
    assert told["run"]["result"]["text"] == "deep down"
    assert told["session"]["parent_run_id"] == sent["id"]
    children = ctl("tool", "session-list", AGENTCTL_SESSION_ID=session).json
    assert children.keys() == {"sessions", "next_cursor", "activity"}
    assert [child["id"] for child in children["sessions"]] == [told["session"]["id"]]
    assert "Helper" in ctl("tool", "session-list", "--parent-session-id", session,
                           "--format=text").out  # fmt: skip


def test_ask_shows_the_children_of_its_run(ctl: Ctl) -> None:
    asked = ctl("ask", ctl.url, "--provider", "delegate")
    assert asked.code == 0, asked.err
    assert "delegate   ↳ spawned Helper (ses_" in asked.err
    assert "  Helper     ✓ completed after " in asked.err
    assert asked.err.count("deep down\n") == 2  # its task and its result


def test_a_refused_spawn_names_the_limit(ctl: Ctl, parent: str) -> None:
    for _ in range(5):
        told = spawn(ctl, parent, "--provider", "manual")
        assert told.code == 0, told.err
        parent = told.json["run"]["id"]
    deeper = spawn(ctl, parent)
    assert (deeper.code, deeper.out) == (6, "")
    assert "generations" in deeper.err
    error = json.loads(spawn(ctl, parent, "--format=json").err)["error"]
    assert error["details"]["limit"] == "depth"


def test_session_tree_prints_all_descendants(ctl: Ctl, session: str, parent: str) -> None:
    docs = spawn(ctl, parent, "--title", "Docs", "--wait").json
    below = spawn(ctl, docs["run"]["id"], "--title", "Links", "--provider", "manual").json
    failed = spawn(ctl, parent, "--provider", "bad", "--wait").json
    document = ctl("session", "tree", "--session-id", session, "--format=json").json
    assert document.keys() >= {"session", "runs", "children"}
    assert [child["session"]["id"] for child in document["children"]] == [
        docs["session"]["id"], failed["session"]["id"]
    ]  # fmt: skip
    assert document["children"][0]["children"][0]["runs"][0]["id"] == below["run"]["id"]
    lines = ctl("session", "tree", session).out.splitlines()[1:]
    assert [line.split("  ")[0].rsplit(" ", 1)[0] for line in lines] == [
        session, "├─", "│", "└─"
    ]  # fmt: skip
    assert "✓ completed" in lines[1]
    assert lines[1].endswith("Docs")
    assert "· queued" in lines[2]
    assert lines[2].endswith("Links")
    assert "✗ failed: agent_crashed" in lines[3]
    # What a run left at work ends with it also after its own end.
    canceled = ctl("run", "cancel", parent).out
    assert canceled == f"run {parent} had ended before: completed; ended now: 1 descendant\n"
    assert "■ canceled" in ctl("session", "tree", session).out.splitlines()[3]


def test_cancel_prints_the_number_of_canceled_descendants(ctl: Ctl, session: str) -> None:
    top = ctl.field("run.id", "run", "create", session, "--provider", "manual")
    spawn(ctl, top, "--provider", "manual")
    assert ctl("run", "cancel", top).out == f"run {top} is canceled, with 1 descendant\n"
    assert ctl("session", "tree", session).out.count("■ canceled") == 2
    assert spawn(ctl, top).code == 6


def test_closing_a_session_prints_how_many_descendants_are_active(
    ctl: Ctl, session: str, parent: str
) -> None:
    child = spawn(ctl, parent, "--provider", "manual").json
    alone = ctl("session", "close", session).out.splitlines()
    assert alone[0] == f"session {session} is closed"
    assert alone[1].startswith("1 session below")
    assert alone[2].split() == ["agentctl", "session", "close", session, "--cascade"]
    told = ctl("session", "close", session, "--cascade", "--format", "json").json
    assert (told["canceled"], told["at_work_count"]) == ([child["run"]["id"]], 0)
    assert ctl.field("session.status", "session", "get", child["session"]["id"]) == "closed"
    assert len(ctl("session", "close", session, "--cascade").out.splitlines()) == 1

"""Events told as a story: golden texts."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event
from agentctl.console import screen_lines
from agentctl.document import plain_lines
from agentctl.event_text import bare_command, concerns_run, ends_run, tool_text
from agentctl.transcript import Transcript

START = datetime(2026, 3, 4, 9, 30, 0, tzinfo=UTC)
TOOL = {"tool_id": "t1", "kind": "command", "name": "shell"}
SHELL = {**TOOL, "input": {"command": "/bin/bash -lc 'pytest -q'"}}


def events(
    *told: tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], str | None],
) -> list[Event]:
    made = []
    for number, (kind, data, *run) in enumerate(told, 1):
        run_id = run[0] if run else "run_1"
        at = START + timedelta(seconds=number)
        made.append(Event(number, "ses_1", run_id, 1, kind, data, at))
    return made


def tell(*told: Any, columns: int | None = None, **settings: Any) -> str:
    """Return what is shown: to a pipe, or on a terminal of this width."""
    transcript = Transcript(**({"zone": UTC, "today": START.date()} | settings))
    blocks = [block for event in events(*told) for block in transcript.entries(event)]
    lines = plain_lines(blocks) if columns is None else screen_lines(blocks, columns, colour=False)
    return "".join(f"{line.rstrip()}\n" for line in lines)


RUN = [
    ("session.created", {"title": "Build"}, None),
    ("message.created", {"role": "user", "source": {"kind": "client"}, "text": "Fix it\nplease"}),
    ("run.queued", {"provider": "codex", "attempt": 1}),
    ("run.started", {"provider": "codex", "worker_id": "dmn_1/worker-2", "attempt": 1}),
    ("thread.started", {"provider": "codex", "thread_id": "th-9"}),
    ("agent.reasoning", {"text": "Look first"}),
    ("plan.updated", {"steps": [
        {"text": "Test", "status": "in_progress"}, {"text": "Fix", "status": "pending"}
    ]}),
    ("tool.started", SHELL),
    ("tool.output", {"tool_id": "t1", "text": "1 failed"}),
    ("tool.completed", {**SHELL, "status": "failed", "output": "E  boom\n1 failed\n", "exit_code": 1}),
    ("plan.updated", {"steps": [
        {"text": "Test", "status": "completed"}, {"text": "Fix", "status": "in_progress"}
    ]}),
    ("file.changed", {"tool_id": "t2", "status": "completed", "changes": [
        {"path": "a.py", "kind": "update"}, {"path": "b.py", "kind": "add"}
    ]}),
    ("run.error", {"message": "slow network"}),
    ("backend.event", {"kind": "todo", "payload": {"a": 1}}),
    ("usage.updated", {"input_tokens": 1}),
    ("agent.message", {"text": "Done:\n- fixed", "item_id": "i1"}),
    ("run.completed", {
        "result": {"text": "Done:\n- fixed"},
        "usage": {"input_tokens": 1200, "cached_input_tokens": 1000, "output_tokens": 34},
    }),
]  # fmt: skip

TOLD = """\
09:30:01             · session created: Build
09:30:02  you        › Fix it
                       please
09:30:03  codex      · queued run_1
09:30:04  codex      · started by worker-2
09:30:05  codex      · thread th-9
09:30:06  codex      … Look first
09:30:07  codex      ☰ plan
                       [>] Test
                       [ ] Fix
09:30:08  codex      ▸ $ pytest -q
09:30:10  codex      ✗ failed, exit 1
                       E  boom
                       1 failed
09:30:11  codex      ☰ plan: 1 of 2 done, now: Fix
09:30:12  codex      ✎ changed a.py
                       added b.py
09:30:13  codex      ! slow network
09:30:14  codex      · todo {"a": 1}
09:30:16  codex        Done:
                       - fixed
09:30:17  codex      ✎ 2 files: 1 added, 1 changed
09:30:17  codex      ✓ completed after 13.0 s · 1,200 tokens in (1,000 cached), 34 out
"""


SPAWNED = {"session_id": "ses_2", "run_id": "run_2", "parent_run_id": "run_1", "title": "Docs",
           "task": "Write the docs\nof all"}  # fmt: skip
FINISHED = {"session_id": "ses_2", "run_id": "run_2", "parent_run_id": "run_1",
            "status": "completed", "result": {"text": "All\nwritten"}, "error": None,
            "message_id": "msg_1"}  # fmt: skip
FAILED = {"session_id": "ses_3", "run_id": "run_3", "parent_run_id": None, "status": "failed",
          "result": None, "error": {"code": "timeout", "message": "too late"},
          "message_id": "msg_2"}  # fmt: skip


def said(kind: str, session: str | None, text: str, message: str, role: str = "user") -> Any:
    source = {"kind": kind, "session_id": session, "run_id": None, "principal": None}
    data = {"message_id": message, "role": role, "source": source, "text": text}
    return ("message.created", data, None)


FAMILY = [
    ("run.started", {"provider": "codex", "worker_id": "d/worker-1", "attempt": 1}),
    ("child.spawned", SPAWNED, None),
    ("child.spawned", {"session_id": "ses_3", "run_id": "run_3", "task": "Try it"}, None),
    said(
        "child", "ses_2", "Child session Docs (ses_2) completed:\n\nAll written", "msg_1", "system"
    ),
    ("child.finished", FINISHED, None),
    said("child", "ses_3", "Child session ses_3 failed: timeout: too late", "msg_2"),
    ("run.queued", {"provider": "codex", "attempt": 1}, "run_9"),
    ("child.finished", FAILED, None),
    ("child.finished", {**FINISHED, "status": "canceled", "result": None, "message_id": "m"}, None),
    said("parent", "ses_0", "Approved", "msg_3"),
    said("session", "ses_8", "Hello", "msg_4"),
]

FAMILY_TOLD = """\
09:30:01  codex      · started by worker-1
09:30:02  codex      ↳ spawned Docs (ses_2): Write the docs of all
09:30:03             ↳ spawned ses_3: Try it
09:30:04  Docs       › Child session Docs (ses_2) completed:

                       All written
09:30:05  Docs       ✓ completed after 3.0 s
09:30:06  child      › Child session ses_3 failed: timeout: too late
09:30:07  codex      · queued run_9
09:30:08  child      ✗ ses_3 failed after 5.0 s: timeout
09:30:09  Docs       ■ canceled
09:30:10  parent     › Approved
                       from ses_0
09:30:11  session    › Hello
                       from ses_8
"""


def test_a_tree_of_sessions_is_one_transcript() -> None:
    assert tell(*FAMILY) == FAMILY_TOLD


@pytest.mark.parametrize(
    ("source", "decided"),
    [
        ({"kind": "client", "principal": "local"}, "decision of req_1 by you"),
        ({"kind": "client", "principal": "ann\nx"}, "decision of req_1 by ann x"),
        ({"kind": "parent", "session_id": "ses_0", "principal": "run_0"}, "decision of req_1 by ses_0"),
        ({"kind": "client", "principal": None}, "decision of req_1"),
    ],
    ids=["you", "another", "agent", "nobody"],
)  # fmt: skip
def test_a_decision_passed_to_an_agent_names_who_decided(source: Any, decided: str) -> None:
    data = {"role": "system", "source": source, "text": "Your request was …", "request_id": "req_1"}
    assert tell(("message.created", data)) == (
        f"09:30:01  system     › Your request was …\n                       {decided}\n"
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"model": "opus"}, "session changed: model opus"),
        (
            {"title": "Roof", "approval_policy": "never", "sandbox": "read-only"},
            "session changed: title Roof, sandbox read-only, approval policy never",
        ),
        ({"cwd": "/b", "previous_cwd": "/a"}, "session moved from /a to /b"),
        ({"cwd": "/b", "previous_cwd": "/a", "model": 7}, "session moved from /a to /b, model 7"),
        ({"metadata": {"k": 1}}, "session changed"),
    ],
)
def test_a_changed_session_says_what_was_changed(data: Any, told: str) -> None:
    (line,) = tell(("session.updated", data, None)).splitlines()
    assert line.endswith(f"· {told}")


@pytest.mark.parametrize(
    ("images", "said"),
    [([{}], "1 image"), ([{}, {}], "2 images"), ([], None), (7, None)],
)
def test_a_message_says_how_many_images_it_has(images: Any, said: str | None) -> None:
    data = {"role": "user", "source": {"kind": "client"}, "text": "x", "images": images}
    _, *more = tell(("message.created", data)).splitlines()
    assert [line.strip() for line in more] == ([said] if said else [])


def test_the_result_of_a_child_is_shown_if_its_message_was_not() -> None:
    assert tell(("child.finished", FINISHED, None), ("child.finished", FAILED, None)) == (
        "09:30:01  child      ✓ ses_2 completed\n"
        "                       All\n"
        "                       written\n"
        "09:30:02  child      ✗ ses_3 failed: timeout\n"
        "                       too late\n"
    )


ASKED = {"id": "req_1", "session_id": "ses_2", "run_id": "run_2", "kind": "approval_request",
         "text": "May I?\nrm -rf x", "options": ["once", "never"], "status": "pending",
         "answer": None, "decided_by": None}  # fmt: skip
OWN = {**ASKED, "id": "req_2", "session_id": "ses_1", "run_id": "run_1", "kind": "input_request",
       "text": "Which port?", "options": None}  # fmt: skip

QUESTIONS = [
    ("run.started", {"provider": "codex", "worker_id": "d/worker-1", "attempt": 1}),
    ("child.spawned", SPAWNED, None),
    ("request.created", ASKED, None),
    ("request.resolved", {**ASKED, "status": "approved", "decided_by": "ann", "answer": "Go"}, None),
    ("run.waiting", {"request_id": "req_2"}),
    ("request.created", OWN, None),
    ("request.resolved", {**OWN, "status": "answered", "decided_by": "local", "answer": "80"}, None),
    ("run.resumed", {"request_id": "req_2"}),
    ("request.resolved", {**ASKED, "status": "denied", "decided_by": "local"}, None),
    ("request.resolved", {**OWN, "status": "expired"}, None),
    ("request.resolved", {**ASKED, "session_id": "ses_9", "status": "canceled"}, None),
    ("request.expiring", {**OWN, "expires_at": "2026-03-01T10:00:00.000000Z"}, None),
    ("request.extended", {**OWN, "expires_at": "2026-03-01T11:00:00.000000Z"}, None),
]  # fmt: skip

QUESTIONS_TOLD = """\
09:30:01  codex      · started by worker-1
09:30:02  codex      ↳ spawned Docs (ses_2): Write the docs of all
09:30:03  Docs       ? asks for approval: May I?
                       rm -rf x
                       options: once, never
                       answer: agentctl request approve req_1  (or deny)
09:30:04  Docs       ✓ request req_1 approved by ann: Go
09:30:05  codex      · waiting for an answer to req_2
09:30:06  codex      ? asks for input: Which port?
                       answer: agentctl request answer req_2 --text TEXT
09:30:07  codex      ✓ request req_2 answered: 80
09:30:08  codex      · goes on
09:30:09  Docs       ✗ request req_1 denied
09:30:10  codex      ✗ request req_2 expired without an answer
09:30:11  child      ✗ request req_1 withdrawn: its run ended
09:30:12  codex      ? not answered yet, expires at 2026-03-01 10:00:00: Which port?
                       answer: agentctl request answer req_2 --text TEXT
                       more time: agentctl request extend req_2 --expires-in-s 3600
09:30:13  codex        request req_2 now expires at 2026-03-01 11:00:00
"""


def test_requests_and_their_decisions_are_shown() -> None:
    assert tell(*QUESTIONS) == QUESTIONS_TOLD


def test_terminal_controls_in_a_request_are_shown_as_text() -> None:
    told = tell(("request.created", {**ASKED, "text": "ls\x1b]0;; rm -rf /\x07"}, None))
    assert told.splitlines()[0].endswith("asks for approval: ls^[]0;; rm -rf /^G")


def test_requests_are_shown_to_followers_of_any_run() -> None:
    told = [event.event_type for event in events(*QUESTIONS) if concerns_run(event, "run_other")]
    assert told == [
        "request.created", "request.resolved", "request.created", *["request.resolved"] * 4,
        "request.expiring", "request.extended",
    ]  # fmt: skip


def test_events_of_the_children_of_a_run_belong_to_it() -> None:
    told = [event.event_type for event in events(*FAMILY) if concerns_run(event, "run_1")]
    assert told == ["run.started", "child.spawned", "child.finished", "child.finished"]


def test_a_long_task_does_not_fill_the_screen() -> None:
    told = tell(("child.spawned", {**SPAWNED, "task": "x " * 5000}, None), columns=80)
    assert len(told) <= 2 * 81
    assert len(tell(("child.spawned", {**SPAWNED, "task": "x" * 5000}, None))) < 700


def test_messages_of_a_sub_agent_are_marked() -> None:
    told = tell(
        ("run.started", {"provider": "claude", "worker_id": "d/worker-1", "attempt": 1}),
        ("subagent.message", {"text": "Found it", "parent_tool_id": "t1", "item_id": "m1"}),
        ("agent.message", {"text": "Done", "item_id": "m2"}),
        ("run.completed", {"result": {"text": "Done"}}),
    )
    assert "claude     » Found it\n" in told
    assert told.count("Done") == 1


def test_the_events_of_a_run_are_shown() -> None:
    assert tell(*RUN) == TOLD


def test_every_event_type_is_shown_except_three() -> None:
    untold = {"tool.output", "usage.updated", "agent.message.delta"}
    for kind in [*EventType, "some.future.event"]:
        assert bool(tell((kind, {"text": "x", "message": "x"}))) is (kind not in untold), kind


@pytest.mark.parametrize("kind", [*EventType, "some.future.event"])
@pytest.mark.parametrize("columns", [None, 60])
def test_events_with_unexpected_data_are_shown(kind: str, columns: int | None) -> None:
    for data in (
        {},
        {"text": None, "changes": [1], "steps": ["x"], "error": None, "result": None},
        {"text": "\x1b[2J", "title": "\x1b]0;x\x07", "message": "\x9b1m", "input": "x"},
        {"error": "text", "provider": "\x1b[1m", "source": None, "usage": {}, "payload": "\x1b"},
    ):
        told = tell((kind, data), columns=columns)
        assert "\x1b" not in told
        assert "\x9b" not in told


def test_wrapped_lines_are_indented_under_the_first() -> None:
    told = tell(("agent.message", {"text": "one two three four five"}), columns=40)
    assert told == "09:30:01  agent         one two three\n                        four five\n"


def test_only_the_last_lines_of_long_output_are_shown() -> None:
    output = "".join(f"line {number}\n" for number in range(20))
    told = tell(("tool.completed", {**SHELL, "status": "completed", "output": output}))
    assert told.splitlines()[0] == "09:30:01  agent      ✓ $ pytest -q  done"
    assert [line.strip() for line in told.splitlines()[1:]] == [
        "… 14 lines before", *(f"line {number}" for number in range(14, 20))
    ]  # fmt: skip


def test_failed_and_canceled_runs_show_their_reason() -> None:
    assert tell(("run.failed", {"error": {"code": "auth_failed", "message": "log in"}})) == (
        "09:30:01  agent      ✗ failed: auth_failed: log in\n"
    )
    assert tell(("run.canceled", {"reason": "not needed"})) == (
        "09:30:01  agent      ■ canceled: not needed\n"
    )


def test_a_result_without_a_message_is_shown() -> None:
    told = tell(("run.completed", {"result": {"text": "42"}}))
    assert told.splitlines() == ["09:30:01  agent        42", "09:30:01  agent      ✓ completed"]


def test_a_result_made_of_all_messages_is_not_repeated() -> None:
    said = [("agent.message", {"text": text}) for text in ("a", "b")]
    told = tell(*said, ("run.completed", {"result": {"text": "a\nb"}}))
    assert len(told.splitlines()) == 3


def test_a_new_day_is_shown_with_its_date() -> None:
    assert tell(("run.resumed", {}), today=date(2026, 3, 3)) == (
        "── Wednesday 04 March 2026 ──\n09:30:01  agent      · goes on\n"
    )


PIECES = [
    ("agent.message.delta", {"item_id": "i", "text": "Hel"}),
    ("agent.message.delta", {"item_id": "i", "text": "lo wor"}),
]


def test_a_message_in_pieces_is_shown_once_when_complete() -> None:
    whole = ("agent.message", {"item_id": "i", "text": "Hello world"})
    assert tell(*PIECES, whole) == "09:30:03  agent        Hello world\n"


def test_the_pieces_of_an_incomplete_message_are_available() -> None:
    transcript = Transcript()
    for event in events(*PIECES):
        assert transcript.entries(event) == []
    assert transcript.partial("run_1") == "Hello wor"
    transcript.entries(events(("agent.message", {"item_id": "i", "text": "Hello world"}))[0])
    assert transcript.partial("run_1") == ""


def test_pieces_whose_message_never_came_are_not_lost() -> None:
    failed = ("run.failed", {"error": {"code": "timeout", "message": "late"}})
    assert "Hello wor\n" in tell(*PIECES, failed)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("/bin/bash -lc 'ls -la'", "ls -la"),
        ("bash -c ls", "ls"),
        ("bash script.sh x", "bash script.sh x"),
        ("echo 'unclosed", "echo 'unclosed"),
    ],
)
def test_the_shell_that_wraps_a_command_is_not_shown(command: str, shown: str) -> None:
    assert bare_command(command) == shown


def test_tool_calls_have_a_short_text() -> None:
    assert tool_text({"kind": "web_search", "input": {"query": "rust"}}) == "web search: rust"
    assert tool_text({"kind": "mcp", "name": "db.query", "input": {"q": 1}}) == 'db.query {"q": 1}'
    assert tool_text({}) == "tool"


def test_the_last_event_of_a_run_is_recognised() -> None:
    (event,) = events(("run.failed", {}))
    assert ends_run(event, "run_1")
    assert not ends_run(event, "run_2")


STARTED = ("run.started", {"provider": "codex", "worker_id": "d/worker-1", "attempt": 1})
UPDATE = (
    "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,4 @@ def f():\n one\n--- two\n+2\n+two and a half\n three\n"
    "@@ -9 +10 @@\n-nine\n\\ No newline at end of file\n+9\n\nMoved to: b.py\n"
)


def changed(*changes: tuple[str, str, str | None], status: str = "completed") -> Any:
    made = [
        {"path": path, "kind": kind} | ({} if diff is None else {"diff": diff})
        for path, kind, diff in changes
    ]
    return ("file.changed", {"tool_id": "t", "status": status, "changes": made})


def test_changed_lines_are_counted_for_each_change_and_the_run() -> None:
    told = tell(
        STARTED,
        changed(("a.py", "update", UPDATE), ("new.md", "add", "- x\n@@\nno line end")),
        changed(("old.md", "delete", "+gone\n"), ("empty", "add", "")),
        ("run.failed", {"error": {"code": "backend_failed", "message": "lost"}}),
    )
    assert told == (
        "09:30:01  codex      · started by worker-1\n"
        "09:30:02  codex      ✎ changed a.py  +3 -2\n"
        "                       added new.md  +3 -0\n"
        "09:30:03  codex      ✎ deleted old.md  +0 -1\n"
        "                       added empty  +0 -0\n"
        "09:30:04  codex      ✎ 4 files: 2 added, 1 changed, 1 deleted, +6 -3\n"
        "09:30:04  codex      ✗ failed after 3.0 s: backend_failed: lost\n"
    )


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        ([("a", "add", "1\n"), ("a", "update", "@@ -1 +1 @@\n-1\n+2\n")], "1 file added, +2 -1"),
        ([("a", "add", "1\n"), ("a", "delete", "1\n")], None),
        ([("a", "delete", "1\n"), ("a", "add", "2\n")], "1 file changed, +1 -1"),
        ([("a", "add", None), ("a", "delete", None), ("a", "add", None)], "1 file added"),
        # Part of the lines would pass for all of them.
        ([("a", "update", None), ("b", "update", UPDATE)], "2 files changed"),
        ([("a", "update", "nothing that is a diff")], "1 file changed"),
        ([("a", "strange", None)], "1 file changed"),
    ],
)
def test_a_file_changed_twice_counts_once(
    changes: list[tuple[str, str, str | None]], summary: str | None
) -> None:
    told = tell(STARTED, *(changed(change) for change in changes), ("run.canceled", {}))
    before_end = told.splitlines()[-2]
    if summary is None:
        assert "deleted a" in before_end
    else:
        assert before_end.endswith(f"✎ {summary}")


def test_failed_and_unseen_changes_are_not_counted() -> None:
    refused = tell(
        STARTED, changed(("a", "add", "1\n"), status="failed"), ("run.completed", {"result": {}})
    )
    assert "added a  +1 -0  (failed)" in refused
    assert "1 file" not in refused
    # Where the log is told from its middle, the changes before it are not known.
    assert "1 file" not in tell(changed(("a", "add", "1\n")), ("run.completed", {"result": {}}))

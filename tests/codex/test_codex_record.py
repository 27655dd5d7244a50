"""Codex's own record of a thread as events. The entries are those of codex 0.169, without what is not read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners.codex.record import RolloutReader, find, rollout_of
from agent_orchestrator.runners.events import UnexpectedShape
from agent_orchestrator.runners.record import PLACE
from agent_orchestrator.testing.stores.samples import a_session

THREAD = "01a229d5-a1ba-7f52-b37f-898070526d7a"


def event(kind: str, **payload: Any) -> dict[str, Any]:
    return {"type": "event_msg", "payload": {"type": kind, **payload}}


def item(kind: str, **payload: Any) -> dict[str, Any]:
    return {"type": "response_item", "payload": {"type": kind, **payload}}


def message(role: str, text: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return item("message", id="m1", role=role, content=[{"type": kind, "text": text}])


def read(*entries: dict[str, Any], before: dict[str, int] | None = None) -> Any:
    reader = RolloutReader(before or {}, "/work")
    events = [one for entry in entries for one in reader.feed(entry)]
    return reader, [(one.event_type, dict(one.data)) for one in [*events, *reader.finish()]]


SAID = event("user_message", message="fix it", images=[])
SAID_WITH_INDEX = event(
    "item_completed",
    item={"type": "UserMessage", "id": "u1", "content": [{"type": "text", "text": "fix it"}]},
)


@pytest.mark.parametrize("said", [SAID, SAID_WITH_INDEX], ids=["without-index", "with-index"])
def test_messages_are_read_once_in_both_formats_of_records(said: dict[str, Any]) -> None:
    reader, events = read(
        message("developer", "instructions"),
        message("user", "<environment_context>"),
        message("user", "fix it"),
        said,
        item("reasoning", id="r1", summary=[{"type": "summary_text", "text": "thinking"}]),
        item("reasoning", id="r2", summary=[]),
        event("item_completed", item={"type": "AgentMessage", "content": [{"text": "done"}]}),
        message("assistant", "done"),
        event("task_complete", last_agent_message="done"),
        {"type": "world_state", "payload": {}},
    )
    assert events == [
        ("user.message", {"text": "fix it"}),
        ("agent.reasoning", {"text": "thinking", "item_id": "r1"}),
        ("agent.message", {"text": "done", "item_id": "m1"}),
    ]
    assert reader.answer == "done"


def test_a_command_has_its_output_and_exit_code() -> None:
    call = {"name": "exec_command", "arguments": '{"cmd": "exit 3"}', "call_id": "c1"}
    output = "Chunk ID: d4\nWall time: 0.0 seconds\nProcess exited with code 3\nOutput:\nsaid\n"
    _, events = read(
        item("function_call", id="fc", **call),
        item("function_call_output", call_id="c1", output=output),
        item("local_shell_call", call_id="c2", action={"type": "exec", "command": ["ls", "-l"]}),
    )
    run = {"tool_id": "c1", "kind": "command", "name": "shell", "input": {"command": "exit 3"}}
    ended = {"status": "failed", "output": "said\n", "exit_code": 3}
    other = {"tool_id": "c2", "kind": "command", "name": "shell", "input": {"command": "ls -l"}}
    [started, completed, begun, unfinished] = events
    assert started == ("tool.started", run)
    assert completed == ("tool.completed", run | ended)
    assert begun == ("tool.started", other)
    assert unfinished[1]["status"] == "failed"


def test_a_patch_is_read_as_file_changes() -> None:
    patch = (
        "*** Begin Patch\n*** Add File: a.txt\n+one\n+two\n*** Update File: /x/b.txt\n@@\n-old\n+new\n"
        "*** Delete File: c.txt\n*** End Patch\n"
    )
    _, events = read(
        item("custom_tool_call", call_id="c1", name="apply_patch", input=patch),
        item("custom_tool_call_output", call_id="c1", output="Exit code: 0\nOutput:\nSuccess"),
    )
    [(kind, data)] = events
    assert (kind, data["status"]) == ("file.changed", "completed")
    assert data["changes"] == [
        {"path": "/work/a.txt", "kind": "add", "diff": "one\ntwo"},
        {"path": "/x/b.txt", "kind": "update", "diff": "@@\n-old\n+new"},
        {"path": "/work/c.txt", "kind": "delete"},
    ]


def test_other_tools_searches_and_plans_are_read() -> None:
    plan = json.dumps({"plan": [{"step": "A", "status": "completed"}]})
    _, events = read(
        item("web_search_call", id="ws1", status="completed", action={"query": "cats"}),
        item("function_call", call_id="p", name="update_plan", arguments=plan),
        item("function_call_output", call_id="p", output="Plan updated"),
        item("function_call", call_id="m", name="ask", namespace="mcp__us", arguments='{"a": 1}'),
        item("function_call_output", call_id="m", output=[{"type": "text", "text": "answer"}]),
        item("custom_tool_call", call_id="x", name="exec", input="code()"),
        item("custom_tool_call_output", call_id="x", output="ok"),
    )
    found = [(kind, data.get("name"), data.get("output")) for kind, data in events]
    assert found == [
        ("tool.completed", "web_search", ""),
        ("plan.updated", None, None),
        ("tool.started", "us.ask", None),
        ("tool.completed", "us.ask", "answer"),
        ("tool.started", "exec", None),
        ("tool.completed", "exec", "ok"),
    ]
    assert events[1][1]["steps"] == [{"text": "A", "status": "completed"}]
    assert events[5][1]["input"] == {"input": "code()"}


def test_problems_and_the_end_of_an_interrupted_turn_are_read() -> None:
    _, events = read(
        item("function_call", call_id="c1", name="exec_command", arguments="{}"),
        event("error", message="the model is busy"),
        event("turn_aborted", reason="interrupted"),
    )
    assert [kind for kind, _ in events] == [
        "tool.started", "run.error", "tool.completed", "run.error",
    ]  # fmt: skip
    assert "interrupted" in events[-1][1]["message"]


def test_usage_comes_from_the_entries_and_the_next_run_continues_from_there() -> None:
    totals = [
        {"input_tokens": n, "cached_input_tokens": 5, "output_tokens": n // 10} for n in (300, 500)
    ]
    counted = [event("token_count", info={"total_token_usage": one}) for one in totals]
    before = {"input_tokens": 100, "cached_input_tokens": 5, "output_tokens": 10}
    reader, _ = read(*counted, event("token_count", info=None), before=before)
    assert reader.usage == Usage(400, 0, 40)
    assert reader.state == {"usage": totals[-1]}
    assert read(SAID)[0].usage is None


ODD = (None, 7, "text", [], [7], {"a": 1}, {"type": 7}, [{"text": 7}])


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_shapes_are_refused_or_read_without_a_crash(odd: Any) -> None:
    kinds = [
        {"type": odd, "payload": odd},
        {"type": "event_msg", "payload": odd},
        event("user_message", message=odd),
        event("item_completed", item=odd),
        event("token_count", info=odd),
        event("token_count", info={"total_token_usage": odd}),
        item("message", role="assistant", content=odd),
        item("reasoning", summary=odd),
        item("web_search_call", action=odd),
        item("function_call", call_id=odd, name=odd, arguments=odd, namespace=odd),
        item("function_call", call_id="c", name="update_plan", arguments=json.dumps(odd)),
        item(
            "function_call", call_id="c", name="apply_patch", arguments=json.dumps({"input": odd})
        ),
        item("function_call_output", call_id="c", output=odd),
        item("function_call", call_id="d", name="exec_command", arguments=json.dumps({"cmd": odd})),
        item("function_call_output", call_id="d", output=odd),
    ]
    reader = RolloutReader({}, "/work")
    for entry in kinds:
        try:
            events = [*reader.feed(entry)]
        except UnexpectedShape:
            continue
        for one in events:
            json.dumps(dict(one.data))


# --- where it is


@pytest.fixture
def codex_home(tmp_path: Path) -> Path:
    home = (tmp_path / "home").resolve()
    (home / "sessions/2026/11/30").mkdir(parents=True)
    return home


def put(home: Path, thread_id: str, *, age: int, cwd: str, **meta: Any) -> None:
    path = home / f"sessions/2026/11/30/rollout-2026-11-30T00-00-00-{thread_id}.jsonl"
    first = {"id": thread_id, "cwd": cwd, "source": "cli", **meta}
    turn = {"cwd": cwd, "model": "gpt-5.5"}
    lines = [{"type": "session_meta", "payload": first}, {"type": "turn_context", "payload": turn}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_latest_thread_of_a_directory_is_found(codex_home: Path, tmp_path: Path) -> None:
    put(codex_home, "of-a-sub-agent", age=1, cwd=str(tmp_path), source={"subagent": "review"})
    put(codex_home, "elsewhere", age=2, cwd="/")
    put(codex_home, "wanted", age=3, cwd=str(tmp_path))
    put(codex_home, "older", age=4, cwd=str(tmp_path))
    found = find(codex_home, None, str(tmp_path))
    assert found.thread == Thread("wanted", {PLACE: 0})
    assert (found.cwd, found.model) == (str(tmp_path), "gpt-5.5")
    assert find(codex_home, "elsewhere", str(tmp_path)).cwd == "/"
    for home in ("none", "x" * 300):
        with pytest.raises(AgentFailed, match="has no thread"):
            find(tmp_path / home, None, str(tmp_path))


@pytest.mark.parametrize("thread_id", ["unknown", "", "*", "../../../x", "-rf", "a/b", "[a-z]*"])
def test_a_thread_id_that_is_not_a_valid_id_is_refused(codex_home: Path, thread_id: str) -> None:
    put(codex_home, THREAD, age=1, cwd="/")
    with pytest.raises(AgentFailed) as caught:
        rollout_of(codex_home, thread_id)
    assert caught.value.code == "thread_missing"


def test_a_record_of_another_thread_is_refused(codex_home: Path) -> None:
    put(codex_home, THREAD, age=1, cwd="/", id="another")
    with pytest.raises(AgentFailed, match="not a record"):
        find(codex_home, THREAD, a_session().cwd)

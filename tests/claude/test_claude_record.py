"""Claude Code's own record of a conversation as events. The entries are those of 2.1.332, without what is not read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.domain.model import Thread, Usage
from agent_orchestrator.runners.claude.record import RecordReader, find, record_of
from agent_orchestrator.runners.events import UnexpectedShape
from agent_orchestrator.runners.record import PLACE

FIRST = "cfa3c55a-5052-4919-a976-e21dcd977795"
SECOND = "7fbd8183-9860-408d-be86-182d894370c8"


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": content}, **more}


def answered(*blocks: dict[str, Any], id_: str = "msg_1", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 100, "cache_read_input_tokens": 7, "output_tokens": 10}
    message = {"id": id_, "role": "assistant", "content": [*blocks], "usage": usage}
    return {"type": "assistant", "message": message, **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def read(*entries: dict[str, Any]) -> Any:
    reader = RecordReader()
    events = [one for entry in entries for one in reader.feed(entry)]
    return reader, [(one.event_type, dict(one.data)) for one in [*events, *reader.finish()]]


def test_a_turn_with_a_tool_is_read_and_its_usage_counted_once_an_answer() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "date"}}
    result = [{"type": "tool_result", "tool_use_id": "t1", "content": "today", "is_error": False}]
    reader, events = read(
        {"type": "queue-operation", "content": "fix it"},
        said("fix it", origin={"kind": "human"}),
        answered(text("I look"), id_="msg_1"),
        answered(call, id_="msg_1"),
        said(result, toolUseResult={"stdout": "today"}),
        answered(text("done"), id_="msg_2"),
        {"type": "system", "subtype": "turn_duration"},
    )
    run = {"tool_id": "t1", "kind": "command", "name": "shell", "input": {"command": "date"}}
    ended = {"status": "completed", "output": "today", "exit_code": 0}
    assert events == [
        ("user.message", {"text": "fix it"}),
        ("agent.message", {"text": "I look", "item_id": "msg_1.0"}),
        ("tool.started", run),
        ("tool.completed", run | ended),
        ("agent.message", {"text": "done", "item_id": "msg_2.0"}),
    ]
    assert reader.answer == "done"
    assert reader.usage == Usage(214, 14, 20)


def test_a_change_of_a_file_has_its_diff() -> None:
    call = {
        "type": "tool_use",
        "id": "t1",
        "name": "Write",
        "input": {"file_path": "/w/a", "content": "x"},
    }
    result = [{"type": "tool_result", "tool_use_id": "t1", "content": "created"}]
    written = {"type": "create", "filePath": "/w/a", "content": "x"}
    _, events = read(answered(call), said(result, toolUseResult=written))
    [(kind, data)] = events
    assert (kind, data["changes"]) == (
        "file.changed",
        [{"path": "/w/a", "kind": "add", "diff": "x"}],
    )


@pytest.mark.parametrize(
    "entry",
    [
        said("of a sub-agent", isSidechain=True),
        answered(text("of a sub-agent"), isSidechain=True),
        said("caveat", isMeta=True),
        said("summary", isCompactSummary=True),
        said("<command-name>/clear</command-name>"),
        said("<local-command-stdout>x</local-command-stdout>"),
        {"type": "attachment", "attachment": {}},
        {"type": "api-request-blob", "message": {"role": "user", "content": [text("again")]}},
    ],
    ids=range(8),
)
def test_internal_entries_of_the_program_are_ignored(entry: dict[str, Any]) -> None:
    assert read(entry)[1] == []


def test_an_error_of_the_model_is_not_an_answer() -> None:
    reader, events = read(said("x"), answered(text("Not logged in"), isApiErrorMessage=True))
    assert events[1:] == [("run.error", {"message": "Not logged in"})]
    assert (reader.answer, reader.usage) == ("", None)


def test_each_turn_has_its_own_answer() -> None:
    assert (
        read(said("1"), answered(text("one")), said("2"), answered(text("two")))[0].answer == "two"
    )
    parts = [text("look"), {"type": "image", "source": {}}, text("at it")]
    assert read(said(parts))[1] == [("user.message", {"text": "look\n\nat it"})]


ODD = (None, 7, "text", [], [7], {"a": 1}, [{"type": 7, "text": 7}], [{"type": "tool_use"}])


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_shapes_are_refused_or_read_without_a_crash(odd: Any) -> None:
    reader = RecordReader()
    for entry in (
        {"type": odd, "message": odd},
        {"type": "user", "message": odd},
        {"type": "assistant", "message": odd},
        said(odd),
        said([{"type": "tool_result", "tool_use_id": odd, "content": odd}], toolUseResult=odd),
        {"type": "assistant", "message": {"id": odd, "content": odd, "usage": odd}},
        answered(text(odd)),
        answered({"type": "tool_use", "id": odd, "name": odd, "input": odd}),
        answered(id_="m", usage={"input_tokens": odd}),
    ):
        try:
            events = [*reader.feed(entry)]
        except UnexpectedShape:
            continue
        for one in events:
            json.dumps(dict(one.data))


def put(home: Path, thread_id: str, *, age: int, cwd: str, directory: str = "-work") -> None:
    path = home / "projects" / directory / f"{thread_id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said("hello", cwd=cwd)) + "\n")
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_latest_conversation_of_a_directory_is_found(tmp_path: Path) -> None:
    home = (tmp_path / "home").resolve()
    put(home, "agent-of-an-older-version", age=0, cwd=str(tmp_path))
    put(home, FIRST, age=1, cwd="/")
    put(home, SECOND, age=2, cwd=str(tmp_path))
    found = find(home, None, str(tmp_path))
    assert found.thread == Thread(SECOND, {"has_begun": True, PLACE: 0})
    assert found.cwd == str(tmp_path)
    assert find(home, FIRST, str(tmp_path)).cwd == "/"
    with pytest.raises(AgentFailed, match="no conversation"):
        find(home, None, "/nowhere")


@pytest.mark.parametrize("thread_id", [SECOND, "", "*", f"../{FIRST}", FIRST.upper()])
def test_a_conversation_id_that_is_not_a_valid_id_is_refused(
    tmp_path: Path, thread_id: str
) -> None:
    put(tmp_path, FIRST, age=1, cwd="/")
    with pytest.raises(AgentFailed) as caught:
        record_of(tmp_path, thread_id)
    assert caught.value.code == "thread_missing"

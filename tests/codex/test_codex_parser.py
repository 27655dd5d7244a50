"""What the parser makes of lines that no recording holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.domain.events import AGENT_EVENTS
from agent_orchestrator.runners.codex.items import ITEM_MAPPINGS
from agent_orchestrator.runners.codex.parser import ExecParser
from agent_orchestrator.runners.lines import Line, Truncation


def fed(*values):
    parser = ExecParser()
    lines = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return [
        (event.event_type, event.data) for line in lines for event in parser.feed(Line(line))
    ] + [(event.event_type, event.data) for event in parser.finish()]


def item(phase, **fields):
    return {"type": f"item.{phase}", "item": {"id": "item_0", **fields}}


def test_an_unknown_event_is_kept_whole():
    said = {"type": "thread.renamed", "name": "x"}
    assert fed(said) == [("backend.event", {"kind": "thread.renamed", "payload": said})]


def test_an_unknown_item_is_kept_whole():
    said = item("completed", type="hologram", depth=3)
    assert fed(said) == [("backend.event", {"kind": "item.completed", "payload": said})]


def test_a_known_item_in_an_unknown_phase_is_kept_whole():
    said = item("updated", type="command_execution", aggregated_output="so far")
    assert fed(said) == [("backend.event", {"kind": "item.updated", "payload": said})]


def test_a_known_item_of_another_shape_is_kept_whole():
    said = item("completed", type="file_change", changes="all of them", status="completed")
    assert fed(said) == [("backend.event", {"kind": "item.completed", "payload": said})]


def test_a_new_field_of_a_known_item_is_kept():
    said = item("completed", type="agent_message", text="hi", mood="good")
    assert fed(said) == [
        ("agent.message", {"text": "hi", "item_id": "item_0", "extra": {"mood": "good"}})
    ]


def test_a_new_field_of_a_control_line_is_kept():
    said = {"type": "turn.started", "turn_id": "t"}
    assert fed(said) == [("backend.event", {"kind": "turn.started", "payload": said})]


def test_a_new_status_is_a_failure_and_kept():
    said = item("completed", type="command_execution", command="x", status="evaporated")
    [(_, data)] = fed(said)
    assert data["status"] == "failed"
    assert data["extra"] == {"status": "evaporated"}


@pytest.mark.parametrize("text", ["panic!", "[1]", '"text"', "{", "\x00", "null", "{'a': 1}"])
def test_a_line_that_is_not_a_json_object_is_recorded_as_stdout(text):
    [(kind, data)] = fed(text.encode())
    assert (kind, data) == ("backend.event", {"kind": "stdout", "payload": {"text": text}})


def test_invalid_utf8_is_shown_as_replacement_characters():
    [(_, data)] = fed(b"\xff\xfe")
    assert data["payload"] == {"text": "\ufffd\ufffd"}


def test_an_empty_line_makes_no_event():
    assert fed(b"", b"  ", b"\r") == []


def test_half_a_surrogate_pair_becomes_a_replacement():
    [(_, data)] = fed(
        b'{"type":"item.completed","item":{"id":"i","type":"reasoning","text":"\\ud83d"}}'
    )
    assert data["text"] == "\ufffd"


def test_a_nul_character_is_kept():
    [(_, data)] = fed(item("completed", type="agent_message", text="a\0b"))
    assert data["text"] == "a\0b"


@pytest.mark.parametrize("depth", [40, 400, 930, 100_000])
def test_deep_json_is_kept_as_text(depth):
    deep = "[" * depth + "]" * depth
    call = '{"type":"item.completed","item":{"id":"i","type":"mcp_tool_call","arguments":'
    [(_, data)] = fed(f"{call}{deep}}}}}".encode())
    assert json.dumps(data).count("[") == depth


def test_a_line_over_the_limit_keeps_its_beginning_size_and_digest():
    line = Line(b'{"type":"item.comp', Truncation(99, "ab" * 32))
    [event] = ExecParser().feed(line)
    assert event.event_type == "backend.event"
    assert event.data["payload"] == {
        "text": '{"type":"item.comp',
        "truncated": True,
        "size": 99,
        "sha256": "ab" * 32,
    }


def test_items_that_never_ended_are_closed_as_failed():
    command = {"type": "command_execution", "command": "sleep 9", "status": "in_progress"}
    changes = [{"path": "/a", "kind": "add"}]
    change = {"type": "file_change", "changes": changes, "status": "in_progress"}
    events = fed(
        {"type": "item.started", "item": {"id": "item_0", **command}},
        {"type": "item.started", "item": {"id": "item_1", **change}},
    )
    assert events[1] == (
        "tool.completed",
        {
            "tool_id": "item_0",
            "kind": "command",
            "name": "shell",
            "input": {"command": "sleep 9"},
            "status": "failed",
            "output": "",
            "error": "unfinished when the turn ended",
        },
    )
    assert events[2][0] == "file.changed"
    assert events[2][1]["status"] == "failed"
    assert events[2][1]["changes"] == changes


def test_the_answer_of_an_mcp_tool_beyond_its_text_is_kept():
    result = {"content": [{"type": "image", "data": "…"}], "structured_content": {"a": 1}}
    call = {"server": "s", "tool": "t", "arguments": None, "result": result, "error": None}
    [(_, data)] = fed(item("completed", type="mcp_tool_call", status="completed", **call))
    assert data["name"] == "s.t"
    assert data["output"] == ""
    assert data["result"] == result


def test_an_mcp_tool_that_reports_an_error_has_failed():
    result = {"content": [{"type": "text", "text": "no"}], "structured_content": None}
    call = {"server": "s", "tool": "t", "arguments": {}, "result": result, "error": None}
    [(_, data)] = fed(item("completed", type="mcp_tool_call", status="failed", **call))
    assert (data["status"], data["output"]) == ("failed", "no")
    assert "error" not in data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["id", "text", "message", "command", "status", "changes", "items", "result", "error", "server"]
)
items = st.dictionaries(names, json_values, max_size=5).flatmap(
    lambda fields: st.sampled_from(
        [*ITEM_MAPPINGS, "agent_message", "reasoning", "error", "todo_list", "file_change", "?"]
    ).map(lambda kind: {**fields, "type": kind})
)
CONTROLS = ("thread.started", "turn.started", "turn.completed", "turn.failed", "error", "?", 7)
kinds = st.sampled_from(["item.started", "item.updated", "item.completed", *CONTROLS])
lines = st.builds(
    lambda kind, inner, more: {**more, "type": kind, "item": inner},
    kinds,
    items | json_values,
    st.dictionaries(st.sampled_from(["thread_id", "usage", "error", "message"]), json_values),
).map(lambda value: json.dumps(value).encode())


@given(st.lists(lines | st.binary().map(lambda data: data.replace(b"\n", b"")), max_size=6))
def test_any_line_becomes_events_that_can_be_stored(said):
    for event_type, data in fed(*said):
        assert event_type in AGENT_EVENTS
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode()

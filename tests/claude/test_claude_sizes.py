"""Every line that Claude Code can say, of every kind that our readers know, in the worst shapes."""

import ast
import json

import pytest
from agent_lines import SHAPES, Raw, check_storable, everywhere, fields_in, texts_in, trees_of

from agent_orchestrator.fields import MAX_METADATA, MAX_QUESTION
from agent_orchestrator.runners.bulk import read_object
from agent_orchestrator.runners.claude import (
    approvals,
    failures,
    file_changes,
    items,
    plan,
    protocol,
    turns,
    usage,
)
from agent_orchestrator.runners.claude.file_changes import FILE_TOOLS, proposed
from agent_orchestrator.runners.claude.protocol import StreamJson
from agent_orchestrator.runners.claude.turns import RunReader
from agent_orchestrator.runners.events import text
from agent_orchestrator.runners.lines import Line
from agent_orchestrator.runners.live.messages import AgentRequest, Notification
from agent_orchestrator.runners.present_files import PresentFile
from agent_orchestrator.runners.tool_items import ToolItems
from agent_orchestrator.wire import strict_json

TREES = trees_of(approvals, failures, file_changes, items, plan, protocol, turns, usage)
FIELDS = fields_in(TREES)
TURNS = trees_of(turns)
METHODS = sorted({*texts_in(TURNS, ast.match_case), *turns.IGNORED})
BLOCKS = ["text", "thinking", "tool_use", "redacted_thinking", "invented"]
TOOLS = [*sorted(FILE_TOOLS), *sorted(plan.TOOLS), "Bash", "Task", "WebSearch", "mcp__a__b", "x"]
SMALL = 80


def test_the_fields_and_messages_are_found_in_the_readers():
    assert {"message", "content", "tool_use_result", "structuredPatch", "todos"} <= {*FIELDS}
    assert {"assistant", "user", "stream_event/message_start", "system/api_retry"} <= {*METHODS}


def message(value, **known):
    return everywhere(value, FIELDS, **known)


def lines(value):
    """Yield a line of each kind that has the value in every field."""
    for method in METHODS:
        kind, _, subtype = method.partition("/")
        if kind == "stream_event":
            delta = Raw(message(value, type=subtype))
            inner = message(value, type=subtype, message=Raw(message(value)), delta=delta)
            yield message(value, type=kind, event=Raw(inner))
            delta_event = message(value, type="content_block_delta", delta=delta)
            yield message(value, type=kind, event=Raw(delta_event))
        else:
            yield message(value, type=kind, subtype=subtype)
    for kind in BLOCKS:
        for tool in TOOLS if kind == "tool_use" else ("",):
            block = message(value, type=kind, id=f"{kind} {tool}", name=tool, input=Raw(value))
            full = message(value, type=kind, id=f"b{tool}", name=tool, input=Raw(message(value)))
            yield message(
                value,
                type="assistant",
                message=Raw(message(value, content=Raw(f"[{block},{full}]"))),
            )
    for tool in TOOLS:
        for tool_id in (f"tool_use {tool}", f"b{tool}"):
            block = message(value, type="tool_result", tool_use_id=tool_id)
            inner = Raw(message(value, content=Raw(f"[{block}]")))
            result = Raw(message(value, tasks=Raw(f"[{message(value)}]"), task=Raw(message(value))))
            meta = Raw(f"[{message(value, id=tool_id)}]")
            yield message(
                value,
                type="user",
                message=inner,
                isSynthetic=None,
                tool_result_meta=meta,
                tool_use_result=result,
            )
    for tool in (*TOOLS, approvals.QUESTION_TOOL, approvals.PLAN_TOOL):
        asked = message(value, subtype="can_use_tool", tool_name=tool, input=Raw(message(value)))
        yield message(value, type="control_request", request_id="r", request=Raw(asked))
    yield message(value, type="control_response", response=Raw(message(value, request_id="7")))
    yield message(value)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_message_becomes_storable_events(shape):
    reader, said, events = RunReader(), 0, []
    for line in lines(SHAPES[shape](SMALL)):
        said += len(line)
        found = read_object(Line(line.encode()))
        assert isinstance(found, dict)
        match StreamJson().read(found, len(line)):
            case Notification() as one:
                events += reader.feed(one)
                check_storable(events, said)
            case AgentRequest() as asked:
                check_question(asked)
    check_storable([*events, *reader.finish()], said)


def check_question(asked):
    made = approvals.question_for(asked.params, None)
    assert len(made.text) <= MAX_QUESTION
    assert len(strict_json.dumps(made.detail).encode()) < MAX_METADATA
    strict_json.dumps(made.answer(None))


# --- several things in one message, and what one message leaves for others

LONG = "i" * 20_000
MANY = 200


def told(reader, *messages):
    """Return how much becomes of messages, and how much they are."""
    events, said = [], 0
    for one in messages:
        line = json.dumps(one)
        said += len(line)
        found = StreamJson().read(json.loads(line), len(line))
        assert isinstance(found, Notification)
        events += reader.feed(found)
    events += reader.finish()
    return sum(len(strict_json.dumps(event.data)) for event in events), said


def of_model(*content, **more):
    return {"type": "assistant", "message": {"id": LONG, "content": [*content]}, **more}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "text": "a"},
        {"type": "thinking", "thinking": "a"},
        {"type": "invented", "a": 1},
        {"type": "tool_use", "name": "Bash", "input": {}},
        {"type": "tool_use", "name": "Edit", "input": {}},
    ],
    ids=str,
)
def test_many_parts_of_one_message_do_not_repeat_it(block):
    blocks = [{**block, "id": f"{n}"} for n in range(MANY)]
    for more in ({}, {"parent_tool_use_id": LONG}):
        size, said = told(RunReader(), of_model(*blocks, **more))
        assert size < 4 * said + 500 * MANY


def test_pieces_do_not_repeat_the_long_id_of_their_message():
    start = {"type": "stream_event", "event": {"type": "message_start", "message": {"id": LONG}}}
    delta = {"type": "text_delta", "text": "a"}
    piece = {"type": "stream_event", "event": {"type": "content_block_delta", "delta": delta}}
    size, said = told(RunReader(), start, *[piece] * MANY)
    assert size < 4 * said + 500 * MANY


def test_results_of_many_calls_in_one_message_do_not_share_its_details():
    calls = [{"type": "tool_use", "id": f"{n}", "name": "Edit", "input": {}} for n in range(MANY)]
    results = [{"type": "tool_result", "tool_use_id": f"{n}"} for n in range(MANY)]
    patch = [{"lines": [LONG]}]
    answer = {
        "type": "user",
        "message": {"content": results},
        "tool_use_result": {"structuredPatch": patch},
    }
    size, said = told(RunReader(), of_model(*calls), answer)
    assert size < 4 * said + 1_000 * MANY


def test_a_change_that_would_multiply_a_file_is_shown_as_its_pieces():
    present = PresentFile(exists=True, text="a" * 2**16)
    once = {"file_path": "/f", "old_string": "a", "new_string": "b" * 20_000, "replace_all": True}
    change = proposed("Edit", once, present)
    assert change["diff"] == f"@@ -1,1 +1,1 @@\n-a\n+{'b' * 20_000}\n"
    doubling = [{"old_string": "a", "new_string": "aa", "replace_all": True}] * 100
    change = proposed("MultiEdit", {"file_path": "/f", "edits": doubling}, present)
    assert len(change["diff"]) < 10_000


def test_many_edits_of_a_long_file_take_bounded_work():
    text_of_file = Counted("b" * 2**20 + "a")
    edits = [{"old_string": "a", "new_string": "a"}] * 10_000
    present = PresentFile(exists=True, text=text_of_file)
    proposed("MultiEdit", {"file_path": "/f", "edits": edits}, present)
    assert text_of_file.searched < 200


class Counted(str):  # noqa: SLOT000
    """A text that counts how often it is searched."""

    searched = 0

    def __contains__(self, part):
        self.searched += 1
        return super().__contains__(part)

    def count(self, *part):
        self.searched += 1
        return super().count(*part)

    def replace(self, *parts):
        return self


def test_open_calls_are_ended_when_all_are_too_large(monkeypatch):
    monkeypatch.setattr("agent_orchestrator.runners.tool_items._MAX_SIZE", 1_000)
    reader = RunReader()
    ended = []
    for number in range(10):
        call = {"type": "tool_use", "id": f"{number}", "name": "Bash", "input": {"a": "x" * 300}}
        line = {"type": "assistant", "message": {"id": "m", "content": [call]}}
        found = StreamJson().read(line, 400)
        assert isinstance(found, Notification)
        events = reader.feed(found)
        ended += [one.data["tool_id"] for one in events if one.event_type == "tool.completed"]
    assert ended == ["0", "1", "2", "3", "4", "5", "6"]
    assert [number for number in range(10) if reader.call_of(f"{number}")] == [7, 8, 9]


def test_a_merged_field_counts_once(monkeypatch):
    monkeypatch.setattr("agent_orchestrator.runners.tool_items._MAX_SIZE", 1_000)
    one = ToolItems()
    assert [one.merge("a", {"changes": ["x" * 900]}) for _ in range(5)] == [[]] * 5
    [ended] = one.merge("b", {"changes": ["x" * 900]})
    assert ended.data["tool_id"] == "a"
    assert text(ended.data["status"]) == "failed"


def test_the_oldest_item_can_become_the_largest(monkeypatch):
    monkeypatch.setattr("agent_orchestrator.runners.tool_items._MAX_SIZE", 1_000)
    one = ToolItems()
    known = {"kind": "function", "name": "x", "input": {}}
    one.start("a", known)
    one.start("b", known)
    ended, started = one.start("a", {**known, "input": {"a": "x" * 2_000}})
    assert (ended.data["tool_id"], started.data["tool_id"]) == ("b", "a")


def test_an_answer_is_kept_up_to_its_limit(monkeypatch):
    monkeypatch.setattr(turns, "_MAX_ANSWER", 1_000)
    reader = RunReader()
    said = {"type": "text", "text": "x" * 300}
    for _ in range(10):
        line = {"type": "assistant", "message": {"id": "m", "content": [said]}}
        found = StreamJson().read(line, 400)
        assert isinstance(found, Notification)
        reader.feed(found)
    assert len(reader.answer) == 1_000
    assert len(reader._answer) < 12

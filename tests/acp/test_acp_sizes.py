"""Every update that an agent can send by ACP, of every kind that our readers know, in the worst shapes."""

import ast
import json

import pytest
from agent_lines import SHAPES, Raw, check_storable, everywhere, fields_in, texts_in, trees_of
from pace import is_linear

from agent_orchestrator.fields import MAX_METADATA, MAX_QUESTION
from agent_orchestrator.runners.acp import permissions, settings, tool_calls, updates, usage
from agent_orchestrator.runners.acp.agents import AGENTS
from agent_orchestrator.runners.acp.tool_calls import ToolCall
from agent_orchestrator.runners.acp.updates import UpdateReader
from agent_orchestrator.runners.acp.usage import UsageMeter
from agent_orchestrator.runners.bulk import read_object
from agent_orchestrator.runners.lines import MAX_JSON_DEPTH, Line
from agent_orchestrator.wire import strict_json

TREES = trees_of(permissions, settings, tool_calls, updates, usage)
PATHS = [
    one.value
    for tree in TREES
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "value_at"
    for one in ast.walk(node)
    if isinstance(one, ast.Constant) and isinstance(one.value, str)
]
FIELDS = sorted({*fields_in(TREES), *PATHS, *tool_calls._MERGED, *tool_calls._MERGED_META})
KINDS = [*texts_in(trees_of(updates), ast.match_case), *sorted(updates.IGNORED), "invented"]
TOOL_KINDS = ["execute", "edit", "delete", "move", "read", "switch_mode", "other", "invented"]
SMALL = 40
DEEP = 3 * MAX_JSON_DEPTH


def test_the_fields_and_kinds_are_found_in_the_readers():
    assert {"toolCallId", "rawInput", "_meta", "terminal_output_delta", "entries"} <= {*FIELDS}
    assert {"agent_message_chunk", "tool_call_update", "plan", "usage_update"} <= {*KINDS}


def message(value, **known):
    return everywhere(value, FIELDS, **known)


def updates_of(value):
    """Yield an update of each kind that has the value in every field, plain and in lists and objects."""
    inner = Raw(message(value, type="diff", oldText="a", newText=Raw(value), content=Raw(value)))
    listed = Raw(f"[{inner.text}]")
    meta = Raw(message(value, terminal_output_delta=inner, terminal_exit=inner, usage=inner))
    for kind in KINDS:
        for known in (
            {},
            {"content": inner, "_meta": meta, "entries": listed, "cost": inner},
            {"content": listed, "messageId": Raw(value)},
        ):
            yield message(value, sessionUpdate=kind, **known)
    for kind in TOOL_KINDS:
        for status in ("pending", "in_progress", "completed", "failed"):
            for given in (Raw(value), inner):
                yield message(
                    value,
                    sessionUpdate="tool_call_update",
                    toolCallId=f"{kind} {given.text[:9]}",
                    kind=kind,
                    status=status,
                    rawInput=given,
                    rawOutput=given,
                    content=listed,
                    locations=listed,
                    _meta=meta,
                )
    yield value


@pytest.mark.parametrize("name", ["opencode", "claude-acp", "copilot"])  # whose rows differ
def test_any_update_becomes_storable_events(name):
    agent = AGENTS[name]
    for shape, make in SHAPES.items():
        reader, said, events = UpdateReader(agent, UsageMeter(agent.usage)), 0, []
        for update in updates_of(make(DEEP if shape == "deep" else SMALL)):
            line = f'{{"update":{update}}}'
            said += len(line)
            found = read_object(Line(line.encode()))
            assert isinstance(found, dict)
            events += reader.feed(found)
            asked = f'{{"toolCall":{update}}}'
            said += len(asked)
            found = read_object(Line(asked.encode()))
            assert isinstance(found, dict)
            call, more = reader.asked(found)
            events += more
            check_question(call, found)
        check_storable([*events, *reader.finish()], said)


def check_question(call, params):
    made = permissions.question_for(call, params)
    assert len(made.text) <= MAX_QUESTION
    assert len(strict_json.dumps(made.detail).encode()) < MAX_METADATA
    strict_json.dumps(made.answer(None))


@pytest.mark.parametrize("unit", ["_", "a", "__a", "mcp__", "("])
@pytest.mark.parametrize("name", ["opencode", "gemini", "claude-acp", "qwen", "copilot", "kimi"])
def test_a_name_of_any_length_is_read_in_linear_time(name, unit):
    def work(size):
        said = f"mcp__{unit * (size // len(unit))}\n"
        update = {"name": said, "title": said, "kind": "other", "_meta": {"toolName": said}}

        def read():
            call = ToolCall("one", AGENTS[name])
            call.merge(update)
            call.tool()

        return read

    assert is_linear(work, 5_000)


@pytest.mark.parametrize("kind", ["agent_message_chunk", "tool_call_update"])
def test_a_text_in_small_pieces_takes_linear_time(kind):
    piece = {
        "sessionUpdate": kind,
        "messageId": "m",
        "toolCallId": "t",
        "content": {"type": "text", "text": "12345678"},
        "_meta": {"terminal_output_delta": {"data": "12345678"}},
    }

    def work(count):
        def read():
            reader = UpdateReader(AGENTS["opencode"], UsageMeter("none"))
            for _ in range(count):
                reader.feed({"update": piece})
            reader.finish()

        return read

    assert is_linear(work, 20_000)


def test_a_tool_of_an_mcp_server_is_named_by_both():
    def named(name):
        call = ToolCall("one", AGENTS["kimi"])
        call.merge({"name": name, "kind": "other"})
        return call.tool()["kind"], call.tool()["name"]

    assert named("mcp__a__b") == ("mcp", "a.b")
    assert named("mcp__a_b__c__d") == ("mcp", "a_b.c__d")
    assert named("mcp____b") == ("function", "mcp____b")
    assert named("mcp__a__") == ("function", "mcp__a__")


def test_many_pieces_do_not_repeat_the_long_id_of_their_message_or_call():
    many, long = 200, "i" * 20_000
    reader = UpdateReader(AGENTS["opencode"], UsageMeter("none"))
    piece = {
        "sessionUpdate": "agent_message_chunk",
        "messageId": long,
        "content": {"type": "text", "text": "a"},
    }
    output = {
        "sessionUpdate": "tool_call_update",
        "toolCallId": long,
        "_meta": {"terminal_output_delta": {"data": "a"}},
    }
    for update in (piece, output):
        events = [event for _ in range(many) for event in reader.feed({"update": update})]
        assert sum(len(json.dumps(event.data)) for event in events) < 500 * many

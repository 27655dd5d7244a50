"""Tool calls and file changes that an agent reports in parts: one start, one end, and nothing left open."""

import pytest

from agent_orchestrator.runners import tool_items
from agent_orchestrator.runners.lines import MAX_JSON_DEPTH
from agent_orchestrator.runners.tool_items import ToolItems

CALL = {"kind": "command", "name": "shell", "input": {"command": "ls"}}


def told(*events):
    return [(event.event_type, event.data) for event in events]


def test_the_end_of_a_call_keeps_the_fields_of_its_start():
    items = ToolItems()
    assert told(*items.start("a", CALL)) == [("tool.started", {"tool_id": "a", **CALL})]
    assert items.get("a") == CALL
    end = {"status": "completed", "output": "x"}
    assert told(items.complete("a", end)) == [("tool.completed", {"tool_id": "a", **CALL, **end})]
    assert items.get("a") is None
    assert items.finish() == []


def test_a_call_can_be_updated_with_its_changed_fields_only():
    """Its first name may be a placeholder: the start is told when the rest is known."""
    items = ToolItems()
    assert items.merge("a", {"kind": "command", "name": "Terminal", "input": {}}) == []
    assert items.merge("a", {"name": "shell"}) == []
    [(kind, data)] = told(*items.start("a", {"input": {"command": "ls"}}))
    assert (kind, data) == ("tool.started", {"tool_id": "a", **CALL})
    items.merge("a", {"output": "early"})
    assert items.complete("a", {"status": "failed"}).data == {
        "tool_id": "a",
        **CALL,
        "output": "early",
        "status": "failed",
    }


def test_an_end_without_a_start_is_recorded():
    changes = {"status": "completed", "changes": []}
    event = ToolItems().complete("f", changes, "file.changed")
    assert told(event) == [("file.changed", {"tool_id": "f", **changes})]


@pytest.mark.parametrize("kind", ["tool.completed", "file.changed"])
def test_calls_that_are_open_at_the_end_of_a_turn_have_failed(kind):
    items = ToolItems()
    items.merge("a", {"x": 1}, kind)
    [event] = items.finish()
    assert (event.event_type, event.data["status"], event.data["x"]) == (kind, "failed", 1)
    assert event.data["error"] == "unfinished when the turn ended"
    assert ("output" in event.data) == (kind == "tool.completed")
    assert items.finish() == []


def test_too_many_open_items_end_the_oldest(monkeypatch):
    monkeypatch.setattr(tool_items, "_MAX_OPEN", 2)
    items = ToolItems()
    items.start("a", CALL)
    items.start("b", CALL)
    assert items.merge("b", {"name": "sh"}) == []
    closed, started = items.start("c", CALL)
    assert (closed.event_type, closed.data["tool_id"]) == ("tool.completed", "a")
    assert closed.data["error"] == "unfinished when too many others were open"
    assert (started.event_type, started.data["tool_id"]) == ("tool.started", "c")


def test_values_that_are_nested_too_deeply_become_text():
    deep = []
    for _ in range(2 * MAX_JSON_DEPTH):
        deep = [deep]
    items = ToolItems()
    [started] = items.start("a", {**CALL, "input": {"deep": deep}})
    assert "[[[" in str(items.complete("a", {"status": "completed"}).data)
    found, depth = started.data["input"]["deep"], 2
    while isinstance(found, list):
        found, depth = found[0], depth + 1
    assert isinstance(found, str)
    assert depth <= MAX_JSON_DEPTH

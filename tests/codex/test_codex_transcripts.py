"""Recordings of codex 0.169 give the events written beside them, and every line is accounted for.

``UPDATE_GOLDEN=1`` writes the goldens anew.
"""

import json
import os
from pathlib import Path

import pytest

from agent_orchestrator.domain.events import AGENT_EVENTS
from agent_orchestrator.runners.codex.parser import ExecParser
from agent_orchestrator.runners.lines import Line

RECORDINGS = sorted(Path(__file__).parent.joinpath("transcripts").glob("*.jsonl"))

STATE_ONLY = {"thread.started", "turn.started", "turn.completed", "turn.failed"}


def test_all_recordings_are_found():
    assert len(RECORDINGS) > 30


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_becomes_the_expected_events(recording):
    parser = ExecParser()
    events = []
    plan = None
    for raw in recording.read_bytes().strip().split(b"\n"):
        said = json.loads(raw)
        made = parser.feed(Line(raw))
        events += made
        item = said.get("item", {})
        folded = (
            said["type"] in STATE_ONLY
            or (said["type"] == "item.started" and item["type"] == "file_change")
            or (item.get("type") == "todo_list" and item["items"] == plan)
        )
        assert bool(made) != folded, raw
        plan = item.get("items", plan)
    events += parser.finish()
    assert {event.event_type for event in events} <= AGENT_EVENTS - {"backend.event"}
    told = {
        "thread_id": parser.thread_id,
        "last_message": parser.last_message,
        "completed": parser.completed,
        "failure": parser.failure,
        "totals": parser.totals,
        "events": [{"event_type": event.event_type, "data": event.data} for event in events],
    }
    golden = recording.with_suffix(".golden.json")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(golden.read_text()) == told


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_every_started_tool_is_completed(recording):
    parser = ExecParser()
    lines = recording.read_bytes().split(b"\n")
    events = [event for raw in lines for event in parser.feed(Line(raw))] + parser.finish()
    started = [event.data["tool_id"] for event in events if event.event_type == "tool.started"]
    ended = [event.data["tool_id"] for event in events if event.event_type == "tool.completed"]
    assert sorted(started) == sorted(ended)

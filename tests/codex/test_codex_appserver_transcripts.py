"""Recordings of codex 0.169's app-server give the events written beside them.

``UPDATE_GOLDEN=1`` writes the goldens anew.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from agent_orchestrator.domain.approvals import RESOLUTIONS, decide
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.events import AGENT_EVENTS
from agent_orchestrator.domain.model import Option, Request
from agent_orchestrator.runners.codex.appserver import approvals
from agent_orchestrator.runners.codex.appserver.failures import failure_of
from agent_orchestrator.runners.codex.appserver.turns import TurnReader
from agent_orchestrator.runners.live.messages import AgentRequest, Notification
from agent_orchestrator.wire.codec import to_plain

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FOLDER = Path(__file__).parent / "transcripts" / "appserver"
RECORDINGS = sorted(FOLDER.glob("*.jsonl"))


def messages(recording):
    for line in recording.read_bytes().strip().split(b"\n"):
        record = json.loads(line)
        if record["dir"] == "server" and isinstance(record["msg"], dict):
            yield record["msg"]


def replayed(recording):
    """Return what became of a recording: its turns, each with its events and its end."""
    turns = []
    thread_id = reader = None
    for said in messages(recording):
        method, params = said.get("method"), said.get("params") or {}
        if method == "turn/started" and reader is None:
            thread_id = thread_id or params["threadId"]
            if params["threadId"] == thread_id:
                reader = TurnReader(thread_id)
                turns.append({"events": []})
        if reader is None or method is None:
            continue
        now = turns[-1]
        if "id" in said:
            item = reader.items.tools.get(params.get("itemId"))
            question = approvals.question_for(AgentRequest(said["id"], method, params), item)
            if question is not None:
                asked = {"text": question.text, "kind": question.kind, "detail": question.detail}
                now["question"] = {**asked, "options": to_plain(question.options)}
                now["declined"] = question.answer(None)
            continue
        if params.get("threadId") is None:
            continue
        events = reader.feed(Notification(method, params))
        now["events"] += [{"event_type": one.event_type, "data": one.data} for one in events]
        if reader.end is not None:
            events = reader.finish()
            now["events"] += [{"event_type": one.event_type, "data": one.data} for one in events]
            now |= {
                "status": reader.end.status,
                "last_message": reader.items.last_message,
                "totals": reader.totals,
                "is_recorded": reader.is_recorded,
                "children": sorted(reader.children),
            }
            if reader.end.error:
                now["failure"] = failure_of(reader.end.error)
            reader = None
    return turns


def test_all_recordings_are_found():
    assert len(RECORDINGS) == 17


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_becomes_the_expected_events(recording):
    told = json.loads(json.dumps(replayed(recording)))
    golden = recording.with_suffix(".golden.json")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    assert json.loads(golden.read_text()) == told
    for turn in told:
        assert {one["event_type"] for one in turn["events"]} <= set(AGENT_EVENTS)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_every_started_tool_and_message_is_completed(recording):
    for turn in replayed(recording):
        if "status" not in turn:
            continue  # the recording ends before the turn does
        data = {kind: [] for kind in ("tool.started", "tool.completed")}
        pieces = {}
        for event in turn["events"]:
            if event["event_type"] in data:
                data[event["event_type"]].append(event["data"]["tool_id"])
            if event["event_type"] == "agent.message.delta":
                item = event["data"]["item_id"]
                pieces[item] = pieces.get(item, "") + event["data"]["text"]
            if event["event_type"] == "agent.message":
                text = event["data"]["text"]
                assert pieces.pop(event["data"]["item_id"], text) == text
        assert sorted(data["tool.started"]) == sorted(data["tool.completed"])
        assert not pieces


def test_messages_of_sub_agents_are_not_those_of_the_agent():
    [turn] = replayed(FOLDER / "appserver-subagent-v1.jsonl")
    [child] = turn["children"]
    kept = [one["data"] for one in turn["events"] if one["event_type"] == "backend.event"]
    assert {data["payload"]["threadId"] for data in kept} == {child}
    items = [data["payload"]["item"] for data in kept if data["kind"] == "item/completed"]
    assert [item["type"] for item in items] == ["userMessage", "commandExecution", "agentMessage"]
    own = [one["data"]["text"] for one in turn["events"] if one["event_type"] == "agent.message"]
    assert own == [turn["last_message"]]
    assert "sub says hi" in turn["last_message"]
    assert turn["totals"]["input_tokens"] == 490
    tools = [one["data"]["name"] for one in turn["events"] if one["event_type"] == "tool.completed"]
    assert tools == ["spawn_agent", "wait"]


def test_a_directory_that_an_approval_grants_is_named_before_the_paths():
    root = "/srv/everything"
    item = {"changes": [{"kind": {"type": "add"}, "path": f"/w/{n}"} for n in range(20_000)]}
    params = {"threadId": "t", "turnId": "u", "itemId": "i", "grantRoot": root}
    asked = AgentRequest(0, "item/fileChange/requestApproval", params)
    question = approvals.question_for(asked, item)
    assert question is not None
    assert question.text.startswith(f"Change anything under {root}, ")
    assert "/w/0" in question.text
    reaches = {option.id: option.reaches for option in question.options}
    assert root in reaches["accept"]
    assert root in reaches["acceptForSession"]
    without = approvals.question_for(
        AgentRequest(0, asked.method, {**params, "grantRoot": None}), item
    )
    assert without is not None
    assert without.text.startswith("Change files: ")
    assert without.detail["cut"] == ["changes", "agent"]
    assert without.options[0] == Option("accept", "Allow once", "allow_once")


def test_a_request_for_network_access_only_is_a_permission_request():
    network = {"host": "example.com", "protocol": "https"}
    params = {"command": None, "networkApprovalContext": network, "reason": "to fetch", "cwd": "/"}
    asked = AgentRequest(0, "item/commandExecution/requestApproval", params)
    assert approvals.question_for(asked, None).detail == {
        "type": "permission",
        "permissions": {"network": network},
        "reason": "to fetch",
        "agent": {"cwd": "/"},
    }


LASTING = {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": ["touch", "/x"]}}
HOST = {"host": "example.com", "action": "allow"}
NETWORK = {"applyNetworkPolicyAmendment": {"network_policy_amendment": HOST}}
REFUSED = {"applyNetworkPolicyAmendment": {"network_policy_amendment": {**HOST, "action": "deny"}}}
UNKNOWN = {"acceptForever": {"what": "all"}}


def asked_to_touch(**more):
    offered = ["accept", "acceptForSession", LASTING, REFUSED, NETWORK, UNKNOWN, "cancel"]
    params = {"command": "touch /x", "cwd": "/", "availableDecisions": offered}
    return approvals.question_for(
        AgentRequest(0, "item/commandExecution/requestApproval", params), None, **more
    )


def decided(question, *decision, **more):
    """Return the answer to codex after a decision of a person."""
    request = Request(
        id="req_0", session_id="ses_0", run_id="run_0", attempt=1, root_session_id="ses_0",
        parent_session_id=None, kind=question.kind, text=question.text, detail=question.detail,
        options=question.options, status="pending", decision=None, answer=None, scope=None,
        decided_by=None, created_at=NOW, expires_at=NOW, resolved_at=None,
    )  # fmt: skip
    request = decide(request, *decision, **more)
    return question.answer(
        evolve(request, status=RESOLUTIONS[request.kind, request.decision].status)
    )


def test_permanent_rules_are_not_offered_by_default_and_approve_nothing():
    question = asked_to_touch()
    assert [option.id for option in question.options] == [
        "accept",
        "acceptForSession",
        "cancel",
        "decline",
    ]
    assert "for good" not in question.text + json.dumps(to_plain(question.options))
    for name in (*LASTING, *NETWORK, *UNKNOWN):
        assert decided(question, "answer", text=name) == {"decision": "decline"}
        assert decided(question, "approve", text=name) == {"decision": "accept"}
        with pytest.raises(InvalidRequest):
            decided(question, option=name)


def test_with_remember_permanent_rules_are_offered_with_what_they_allow():
    question = asked_to_touch(remember=True)
    options = {option.id: option for option in question.options}
    lasting = [*LASTING, *NETWORK, *UNKNOWN]
    assert [*options] == ["accept", "acceptForSession", *lasting, "cancel", "decline"]
    assert [name for name, one in options.items() if one.kind == "allow_always"] == lasting
    for decision, what in (
        (LASTING, '["touch", "/x"]'),
        (NETWORK, "example.com"),
        (UNKNOWN, '"all"'),
    ):
        [name] = decision
        assert what in options[name].reaches
        assert "for good" in options[name].reaches
        assert f"{options[name].label} allows {options[name].reaches}" in question.text
        assert decided(question, option=name) == {"decision": decision}
        assert decided(question, "answer", text=name) == {"decision": decision}
        assert decided(question, "approve", text=name) == {"decision": "accept"}
    assert decided(question, "approve") == {"decision": "accept"}
    assert decided(question, "approve", scope="session") == {"decision": "acceptForSession"}
    assert decided(question, "deny") == {"decision": "decline"}
    assert decided(question, option="cancel") == {"decision": "cancel"}


def test_a_rule_too_long_to_be_shown_is_not_offered():
    option = {"acceptWithExecpolicyAmendment": {"execpolicy_amendment": ["x" * 2_000]}}
    params = {"command": "x", "availableDecisions": ["accept", option]}
    asked = AgentRequest(0, "item/commandExecution/requestApproval", params)
    options = approvals.question_for(asked, None, remember=True).options
    assert [option.id for option in options] == ["accept", "acceptForSession", "decline", "cancel"]


def test_errors_of_turns_have_codes():
    turns = replayed(FOLDER / "appserver-turn-errors.jsonl")
    codes = [turn["failure"][0] for turn in turns if "failure" in turn]
    assert codes[:4] == ["auth_failed", "rate_limited", "provider_error", "provider_unreachable"]

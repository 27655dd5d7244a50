"""Clients of earlier versions. They offer options as texts, and name one in the text of an answer.

``UPDATE_GOLDEN=1`` rewrites the exchanges of requests and answers.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from serving import Serving

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).with_name("earlier-client.golden.json")

KINDS = [
    {"id": "accept", "label": "Allow once", "kind": "allow_once"},
    {
        "id": "acceptForSession",
        "label": "Allow for this session",
        "kind": "allow_session",
        "reaches": "the same without asking again",
    },
    {"id": "decline", "label": "Deny", "kind": "deny"},
    {"id": "cancel", "label": "Deny and stop", "kind": "deny_and_stop"},
]
"""Options of a current agent, which those clients answer too."""

EXCHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"options": ["once", "never"]}, {"decision": "answer", "text": "once"}),
    ({"options": ["once", "never"]}, {"decision": "answer", "text": "something else"}),
    ({"options": ["once", "never"]}, {"decision": "approve", "scope": "session"}),
    ({"options": KINDS}, {"decision": "answer", "text": "acceptForSession"}),
    ({"options": KINDS}, {"decision": "answer", "text": "Deny and stop"}),
    ({"options": KINDS}, {"decision": "answer", "text": "use tabs"}),
    ({"options": KINDS}, {"decision": "approve"}),
    ({"options": KINDS}, {"decision": "approve", "scope": "session"}),
    ({"options": KINDS}, {"decision": "deny", "text": "use tabs"}),
    ({}, {"decision": "approve", "scope": "session"}),
]

SHOWN = ("options", "status", "decision", "option", "answer", "scope")


async def exchanged(
    server: Serving, run_id: str, question: dict[str, Any], decision: dict[str, Any]
) -> dict[str, Any]:
    body = {"text": "May I?", "request_kind": "approval_request", **question}
    asked = await server.client.post(f"/runs/{run_id}/reply-parent", json=body)
    assert asked.status_code == 201, asked.text
    path = f"/requests/{asked.json()['request']['id']}/resolve"
    answers = [await server.client.post(path, json=decision) for _ in range(2)]
    first, second = (answer.json()["request"] for answer in answers)
    assert first == second  # repeating the decision is not a conflict
    return {
        "question": body,
        "decision": decision,
        "answer": {name: first[name] for name in SHOWN},
    }


async def test_answer_text_that_names_an_option_chooses_it(server: Serving) -> None:
    session = await server.session("manual")
    run = await server.client.post("/runs", json={"session_id": session})
    run_id = run.json()["run"]["id"]
    await server.client.post(f"/runs/{run_id}/transition", json={"to_status": "running"})
    found = [await exchanged(server, run_id, *one) for one in EXCHANGES]
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())

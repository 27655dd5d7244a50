"""The API description: valid, complete, and changed only on purpose."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.fields import check
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.wire import codec
from agent_orchestrator.wire.openapi import openapi_document

GOLDEN = Path(__file__).parent / "openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document("0.0.0")


def test_openapi_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)  # type: ignore[arg-type]


def test_openapi_document_is_unchanged(document: dict[str, Any]) -> None:
    """UPDATE_GOLDEN=1 rewrites it after an intended change."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert GOLDEN.read_text() == text


def test_openapi_document_has_every_operation(document: dict[str, Any]) -> None:
    described = {
        item["operationId"] for path in document["paths"].values() for item in path.values()
    }
    assert described == {operation.name for operation in OPERATIONS} | {
        "stream",
        "mcp",
        "health",
        "metrics",
        "openapi",
    }


def body_schemas(document: dict[str, Any]) -> list[tuple[Any, Draft202012Validator]]:
    found = []
    for operation in OPERATIONS:
        if not operation.has_query:
            item = document["paths"][operation.path][operation.method.lower()]
            schema = item["requestBody"]["content"]["application/json"]["schema"]
            Draft202012Validator.check_schema(schema)
            found.append((operation, Draft202012Validator(schema)))
    return found


SAMPLES: list[dict[str, Any]] = [
    {},
    {"text": "x"},
    {"text": ""},
    {"text": " \n"},
    {"text": None},
    {"text": 1},
    {"text": "x", "role": "user"},
    {"text": "x", "role": "god"},
    {"text": "x", "role": None},
    {"title": "x" * 256},
    {"title": "x" * 257},
    {"title": None, "metadata": {}},
    {"metadata": []},
    {"cwd": "/x"},
    {"cwd": "x"},
    {"cwd": "/x\0"},
    {"to_status": "canceled", "reason": "r"},
    {"to_status": "x"},
    {"to_status": "failed", "error": {"code": "x"}},
    {"cascade": True},
    {"cascade": 1},
    {"idempotency_key": "k"},
    {"idempotency_key": ""},
    {"status": "closed"},
    {"status": None},
    {"status": "x"},
    {"session_id": "s", "text": "x"},
    {"unknown": 1},
    {"expires_in_s": 5},
    {"timeout_s": 5},
    {"timeout_s": 5, "text": "x"},
    {"timeout_s": 5, "expires_in_s": 5, "text": "x"},
    {"timeout_s": -1},
]


def test_schemas_accept_the_same_bodies_as_the_checks(document: dict[str, Any]) -> None:
    """The daemon accepts exactly the bodies that the description allows."""
    for operation, validator in body_schemas(document):
        path = dict.fromkeys(operation.path_fields, "id")
        for body in SAMPLES:
            if body.keys() & path.keys():
                continue
            checked = is_taken(operation.request, {**path, **body})
            assert validator.is_valid(body) == checked, (operation.name, body)


def is_taken(kind: type, values: dict[str, Any]) -> bool:
    try:
        check(kind, codec.command(kind, values))
    except InvalidRequest:
        return False
    return True


def test_error_statuses_follow_from_the_operation(document: dict[str, Any]) -> None:
    always = {400, 401, 403, 421, 429, 500, 503}
    expected = {
        "list_sessions": {404},
        "list_runs": {404},
        "status": set(),
        "get_run": {404},
        "list_events": {404, 409, 410},
        "list_messages": {404},
        "send_message": {404, 409, 413, 415},
        "create_run": {404, 409, 413, 415},
        "create_session": {409, 413, 415},
        "stream": {404, 409, 410},
    }
    for item in document["paths"].values():
        for call in item.values():
            refusals = {int(status) for status in call["responses"] if int(status) >= 400}
            if call["operationId"] in expected:
                assert refusals == expected[call["operationId"]] | always, call["operationId"]


def test_patterns_are_portable_between_regex_engines() -> None:
    # `\0` is a null character in Python and ECMA 262, and a mistake in RE2 and Rust.
    assert r"\\0" not in GOLDEN.read_text()

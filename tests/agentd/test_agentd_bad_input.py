"""A bad request gets an error that names the field, changes nothing and is not a server error."""

import json
import logging
from base64 import b64encode
from typing import Any

import pytest
from serving import Serving

from agent_orchestrator.wire.openapi import openapi_document

pytestmark = pytest.mark.anyio

JSON = "application/json"
LONG = "x" * 129

Case = tuple[str, str, Any, int, str, str | None]

BAD_BODIES: list[Case] = [
    ("POST", "/sessions", {"title": 7}, 400, "invalid_request", "title"),
    ("POST", "/sessions", {"title": ""}, 400, "invalid_request", "title"),
    ("POST", "/sessions", {"title": "x" * 257}, 400, "invalid_request", "title"),
    ("POST", "/sessions", {"cwd": "relative/path"}, 400, "invalid_request", "cwd"),
    ("POST", "/sessions", {"cwd": "/a\0b"}, 400, "invalid_request", "cwd"),
    ("POST", "/sessions", {"metadata": []}, 400, "invalid_request", "metadata"),
    ("POST", "/sessions", {"metadata": {"x": "y" * 70_000}}, 400, "invalid_request", "metadata"),
    ("POST", "/sessions", {"provider": "nobody"}, 400, "invalid_request", "provider"),
    ("POST", "/sessions", {"idempotency_key": ""}, 400, "invalid_request", "idempotency_key"),
    ("POST", "/sessions", {"idempotency_key": 1}, 400, "invalid_request", "idempotency_key"),
    ("POST", "/sessions", {"unknown": 1}, 400, "invalid_request", "unknown"),
    ("POST", "/sessions", [], 400, "invalid_request", "body"),
    ("POST", "/sessions", None, 400, "invalid_request", "body"),
    ("POST", "/sessions", "text", 400, "invalid_request", "body"),
    ("PATCH", "/sessions/{session}", {"status": "gone"}, 400, "invalid_request", "status"),
    ("PATCH", "/sessions/{session}", {"status": None, "title": 1}, 400, "invalid_request", "title"),
    ("PATCH", "/sessions/{session}", {"owner": "me"}, 400, "invalid_request", "owner"),
    ("PATCH", "/sessions/ses_none", {"title": "x"}, 404, "not_found", None),
    ("POST", "/sessions/{session}/messages", {}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": None}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": " \n"}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": "x" * 1_000_001}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": ["x"]}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": True}, 400, "invalid_request", "text"),
    ("POST", "/sessions/{session}/messages", {"text": "x", "role": "god"}, 400, "invalid_request", "role"),
    ("POST", "/sessions/{session}/messages", {"text": "x", "when_busy": "x"}, 400, "invalid_request", "when_busy"),
    ("POST", "/sessions/{session}/messages", {"text": "x", "provider": "no"}, 400, "invalid_request", "provider"),
    ("POST", "/sessions/{session}/messages", {"text": "x", "session_id": "y"}, 400, "invalid_request", "session_id"),
    ("POST", "/sessions/{session}/messages?limit=1", {"text": "x"}, 400, "invalid_request", "limit"),
    ("POST", "/sessions/ses_none/messages", {"text": "x"}, 404, "not_found", None),
    ("POST", f"/sessions/{LONG}/messages", {"text": "x"}, 400, "invalid_request", "session_id"),
    ("POST", "/sessions/{closed}/messages", {"text": "x"}, 409, "session_closed", None),
    ("POST", "/runs", {}, 400, "invalid_request", "session_id"),
    ("POST", "/runs", {"session_id": 5, "text": "x"}, 400, "invalid_request", "session_id"),
    ("POST", "/runs", {"session_id": LONG, "text": "x"}, 400, "invalid_request", "session_id"),
    ("POST", "/runs", {"session_id": "ses_none", "text": "x"}, 404, "not_found", None),
    ("POST", "/runs", {"session_id": "{session}"}, 400, "invalid_request", "text"),
    ("POST", "/runs/{run}/transition", {}, 400, "invalid_request", "to_status"),
    ("POST", "/runs/{run}/transition", {"to_status": "flying"}, 400, "invalid_request", "to_status"),
    ("POST", "/runs/{run}/transition", {"to_status": "running"}, 409, "invalid_transition", None),
    ("POST", "/runs/{run}/transition", {"to_status": "queued"}, 409, "invalid_transition", None),
    ("POST", "/runs/{run}/transition", {"to_status": "failed", "error": 1}, 400, "invalid_request", "error"),
    ("POST", "/runs/run_none/transition", {"to_status": "running"}, 404, "not_found", None),
    ("POST", "/runs/{run}/cancel", {"cascade": "yes"}, 400, "invalid_request", "cascade"),
    ("POST", "/runs/{run}/cancel", {"cascade": 1}, 400, "invalid_request", "cascade"),
    ("POST", "/runs/run_none/cancel", {}, 404, "not_found", None),
    ("POST", "/requests/req_1/extend", {"timeout_s": 0}, 400, "invalid_request", "timeout_s"),
    ("POST", "/requests/req_1/extend", {"timeout_s": "60"}, 400, "invalid_request", "timeout_s"),
    ("POST", "/requests/req_1/extend", {"timeout_s": None}, 400, "invalid_request", "timeout_s"),
    ("POST", "/runs/{run}/reply-parent", {"text": "x", "timeout_s": -1}, 400, "invalid_request", "timeout_s"),
]  # fmt: skip

BAD_QUERIES: list[tuple[str, int, str, str | None]] = [
    ("/sessions?limit=0", 400, "invalid_request", "limit"),
    ("/sessions?limit=-1", 400, "invalid_request", "limit"),
    ("/sessions?limit=1001", 400, "invalid_request", "limit"),
    ("/sessions?limit=" + "9" * 400, 400, "invalid_request", "limit"),
    ("/sessions?limit=1e3", 400, "invalid_request", "limit"),
    ("/sessions?limit=", 400, "invalid_request", "limit"),
    ("/sessions?limit=%D9%A3", 400, "invalid_request", "limit"),
    ("/sessions?limit=1&limit=2", 400, "invalid_request", "limit"),
    ("/sessions?cursor=" + "x" * 257, 400, "invalid_request", "cursor"),
    ("/sessions?status=ajar", 400, "invalid_request", "status"),
    ("/sessions?nothing=1", 400, "invalid_request", "nothing"),
    ("/sessions?status=%FF", 400, "invalid_request", "query"),
    ("/sessions?" + "&".join(f"a{n}=1" for n in range(1200)), 400, "invalid_request", "query"),
    (f"/sessions/{LONG}", 400, "invalid_request", "session_id"),
    ("/sessions/ses_none", 404, "not_found", None),
    ("/sessions/%00", 400, "invalid_request", "session_id"),
    ("/sessions/%20", 400, "invalid_request", "session_id"),
    ("/sessions/{session}?session_id=x", 400, "invalid_request", "session_id"),
    ("/sessions/{session}/events?cursor=-1", 400, "invalid_request", "cursor"),
    ("/sessions/{session}/events?cursor=x", 400, "invalid_request", "cursor"),
    ("/sessions/{session}/events?cursor=9223372036854775808", 400, "invalid_request", "cursor"),
    ("/sessions/{session}/events?cursor=9223372036854775807", 409, "cursor_ahead", None),
    ("/sessions/{session}/events?limit=99999", 400, "invalid_request", "limit"),
    ("/sessions/{session}/events?wait_s=nan", 400, "invalid_request", "wait_s"),
    ("/sessions/{session}/events?wait_s=-1", 400, "invalid_request", "wait_s"),
    ("/sessions/ses_none/events", 404, "not_found", None),
    ("/runs?status=tired", 400, "invalid_request", "status"),
    ("/runs?session_id=ses_none", 404, "not_found", None),
    ("/health?token=x", 400, "invalid_request", "token"),
    ("/openapi.json?token=x", 400, "invalid_request", "token"),
    ("/runs/run_none", 404, "not_found", None),
    ("/runs/{run}/wait?timeout_s=inf", 400, "invalid_request", "timeout_s"),
    ("/runs/{run}/wait?interval_ms=0", 400, "invalid_request", "interval_ms"),
    ("/runs/run_none/wait", 404, "not_found", None),
    ("/runs/run_none/diagnose", 404, "not_found", None),
    ("/daemon/status?verbose=1", 400, "invalid_request", "verbose"),
    ("/stream?sessionId={session}&cursor=x", 400, "invalid_request", "cursor"),
    ("/stream?sessionId={session}&cursor=-1", 400, "invalid_request", "cursor"),
    ("/stream?sessionId={session}&cursor=99999999999999999999", 400, "invalid_request", "cursor"),
    ("/stream?sessionId={session}&cursor=1&cursor=2", 400, "invalid_request", "cursor"),
    ("/stream?sessionId={session}&cursor=999", 409, "cursor_ahead", None),
    ("/stream?cursor=nonsense", 400, "invalid_request", "cursor"),
    (f"/stream?sessionId={LONG}", 400, "invalid_request", "sessionId"),
    ("/stream?sessionId=", 400, "invalid_request", "sessionId"),
    ("/stream?sessionId=ses_none", 404, "not_found", None),
    ("/stream?sessionid=x", 400, "invalid_request", "sessionid"),
    ("/nothing", 404, "not_found", None),
    ("/sessions/", 404, "not_found", None),
    ("/sessions/a/b/c", 404, "not_found", None),
]

BAD_BYTES: list[tuple[bytes, str | None, int, str, str | None]] = [
    (b"{", JSON, 400, "invalid_request", "body"),
    (b"", JSON, 400, "invalid_request", "body"),
    (b'{"title": "\xff"}', JSON, 400, "invalid_request", "body"),
    (b'{"title": "\\ud800"}', JSON, 400, "invalid_request", "title"),
    (b'{"title": NaN}', JSON, 400, "invalid_request", "body"),
    (b'{"metadata": {"x": 1e999}}', JSON, 400, "invalid_request", "metadata.x"),
    (b'{"metadata": ' + b'{"a":' * 70 + b"1" + b"}" * 71, JSON, 400, "invalid_request", "metadata"),
    (b'{"title": "a", "title": "b"}', JSON, 400, "invalid_request", "body"),
    (b"[" * 200_000, JSON, 400, "invalid_request", "body"),
    (b'{"title": "a"} trailing', JSON, 400, "invalid_request", "body"),
    (b"\xef\xbb\xbf{}", JSON, 400, "invalid_request", "body"),
    (b"{}", "text/plain", 415, "unsupported_media_type", None),
    (b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type", None),
    (b"title=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type", None),
    (b"{}", None, 415, "unsupported_media_type", None),
]


@pytest.fixture
async def known(server: Serving) -> dict[str, str]:
    """A session with a run that has ended, and a closed one."""
    session = await server.session()
    run = await server.say(session, "hello")
    closed = await server.session()
    answer = await server.client.patch(f"/sessions/{closed}", json={"status": "closed"})
    assert answer.status_code == 200
    return {"session": session, "run": run, "closed": closed}


def filled(template: Any, known: dict[str, str]) -> Any:
    text = json.dumps(template)
    for name, value in known.items():
        text = text.replace("{" + name + "}", value)
    return json.loads(text)


def documented(method: str, path: str) -> set[str]:
    """Return the statuses that the API description has for a call."""
    parts = path.partition("?")[0].split("/")
    for template, item in openapi_document("0")["paths"].items():
        names = template.split("/")
        if len(names) == len(parts) and all(
            name == part or name.startswith("{") for name, part in zip(names, parts, strict=True)
        ):
            return set(item[method.lower()]["responses"])
    return {"404"}


def check_problem(answer: Any, status: int, code: str, field: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == JSON
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code
    assert error["message"]
    assert "Traceback" not in answer.text
    if field is not None:
        assert list(error["details"]["fields"]) == [field]
        assert field in error["message"]


async def test_invalid_json_bodies_are_refused_with_their_field(
    server: Serving, known: dict[str, str], caplog: Any
) -> None:
    before = await server.event_count()
    for method, path, body, status, code, field in BAD_BODIES:
        answer = await server.client.request(
            method, filled(path, known), json=filled(body, known) if body is not None else None,
            headers={"Content-Type": JSON}, content=b"null" if body is None else None,
        )  # fmt: skip
        check_problem(answer, status, code, field)
        assert str(status) in documented(method, path), (method, path)
    assert await server.event_count() == before
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_invalid_paths_and_queries_are_refused_with_their_field(
    server: Serving, known: dict[str, str], caplog: Any
) -> None:
    before = await server.event_count()
    for path, status, code, field in BAD_QUERIES:
        check_problem(await server.client.get(filled(path, known)), status, code, field)
        assert str(status) in documented("GET", path), path
    assert await server.event_count() == before
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_invalid_bytes_and_content_types_are_refused(server: Serving, caplog: Any) -> None:
    for data, content_type, status, code, field in BAD_BYTES:
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = await server.client.post("/sessions", content=data, headers=headers)
        check_problem(answer, status, code, field)
        assert str(status) in documented("POST", "/sessions")
    assert await server.event_count() == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_error_names_every_bad_field(server: Serving) -> None:
    answer = await server.client.post("/sessions", json={"title": 1, "cwd": 2, "colour": 3})
    assert set(answer.json()["error"]["details"]["fields"]) == {"title", "cwd", "colour"}


async def test_last_event_id_is_checked_like_a_cursor(server: Serving) -> None:
    session = await server.session()
    path = f"/stream?sessionId={session}&cursor=0"
    answer = await server.client.get(path, headers={"Last-Event-ID": "x"})
    check_problem(answer, 400, "invalid_request", "cursor")
    answer = await server.client.get(path, headers={"Last-Event-ID": "99"})
    check_problem(answer, 409, "cursor_ahead", None)


async def test_wrong_method_gets_405_with_the_allowed_ones(server: Serving) -> None:
    for method, path, allowed in [
        ("DELETE", "/sessions", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/sessions/x", "GET, HEAD, OPTIONS, PATCH"),
        ("GET", "/runs/x/cancel", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("POST", "/stream", "GET, HEAD, OPTIONS"),
    ]:
        answer = await server.client.request(method, path)
        check_problem(answer, 405, "method_not_allowed", None)
        assert answer.headers["Allow"] == allowed
        answer = await server.client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Allow"] == allowed


async def test_head_returns_get_without_content(server: Serving) -> None:
    session = await server.session()
    for path in ("/health", "/sessions", f"/stream?sessionId={session}"):
        answer = await server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert server.readers == 0


async def test_body_over_the_limit_is_refused_and_the_next_request_is_served(
    server: Serving,
) -> None:
    big = b'{"title": "' + b"x" * (9 * 1024 * 1024) + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for content in (big, chunks()):
        answer = await server.client.post(
            "/sessions", content=content, headers={"Content-Type": JSON}
        )
        check_problem(answer, 413, "payload_too_large", None)
        assert answer.json()["error"]["details"] == {"limit_bytes": 8 * 1024 * 1024}
    assert (await server.client.get("/health")).status_code == 200
    assert await server.event_count() == 0


async def test_largest_images_and_longest_text_fit_into_one_body(server: Serving) -> None:
    data = b64encode(b"GIF89a" + bytes(5 * 2**20 - 6)).decode()
    body = {"text": "x" * 1_000_000, "images": [{"data": data}]}
    answer = await server.client.post("/sessions", json=body)
    # Its provider takes no images; nothing else is wrong with it.
    check_problem(answer, 400, "invalid_request", "images")


async def test_body_just_under_the_limit_is_accepted(server: Serving) -> None:
    padding = b" " * (8 * 1024 * 1024 - 2)
    answer = await server.client.post(
        "/sessions", content=b"{" + padding + b"}", headers={"Content-Type": JSON}
    )
    assert answer.status_code == 201


async def test_unexpected_error_is_internal_and_logged_with_its_traceback(
    server: Serving, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(server.store, "read", broken)
    for path in ("/sessions", "/stream"):
        answer = await server.client.get(path)
        check_problem(answer, 500, "internal", None)
        assert "secret" not in answer.text
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in errors)

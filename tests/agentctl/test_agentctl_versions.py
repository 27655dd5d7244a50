"""agentctl shows what a daemon of another version says: words and fields it does not know."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from typing import Any

import pytest
from later import LATER, sample
from serving import answering

from agent_orchestrator.operations import OPERATIONS
from agentctl.main import invoke

COMMANDS = [
    "session list",
    "session get ses_1",
    "session create",
    "session tree ses_1",
    "message list ses_1",
    "message send ses_1 --text hi",
    "run list",
    "run get run_1",
    "run cancel run_1",
    "run diagnose run_1",
    "events list ses_1",
    "request list",
    "request show req_1",
    "request approve req_1",
    "daemon status",
    "daemon check",
    "provider list",
    "daemon audit",
    "doctor",
    "token list",
    "token create x",
    "token revoke tok_1",
    "tool session-list --parent-session-id ses_1",
]


def last_page(answer: Any) -> Any:
    """Say that there is no more: a page that is followed by itself has no end."""
    if isinstance(answer, list):
        return [last_page(entry) for entry in answer]
    if isinstance(answer, dict):
        ends: dict[str, Any] = {"has_more": False}
        return {
            name: None if name.endswith("cursor") and isinstance(entry, str) else last_page(entry)
            for name, entry in (answer | {key: ends[key] for key in ends if key in answer}).items()
        }
    return answer


@pytest.fixture
def url() -> Iterator[str]:
    routes = [
        (operation, re.compile(re.sub(r"\{\w+\}", "[^/]+", operation.path)))
        for operation in OPERATIONS
    ]

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            path = self.path.partition("?")[0]
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            [found, *_] = (
                operation
                for operation, route in routes
                if operation.method == self.command and route.fullmatch(path)
            )
            body = json.dumps(last_page(sample(found.answer, word=LATER))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_PUT = answer  # noqa: N815 - so they are called

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as url:
        yield url


@pytest.mark.parametrize("command", COMMANDS)
def test_every_view_shows_answers_of_an_older_daemon(
    url: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = invoke([*command.split(), "--url", url])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out


UNKNOWN_FIELD = {"code": "invalid_request", "message": "effort: is not a field of this call"}
REFUSALS: dict[str, tuple[int, dict[str, Any]]] = {
    "field": (400, UNKNOWN_FIELD | {"details": {"fields": {"effort": "is not a field of this call"}}}),
    "path": (404, {"code": "not_found", "message": "unknown path", "details": {}}),
    "method": (405, {"code": "method_not_allowed", "message": "takes GET", "details": {"allowed": []}}),
    "value": (400, {"code": "invalid_request", "message": "x", "details": {"fields": {"title": "is long"}}}),
    "session": (404, {"code": "not_found", "message": "no session", "details": {"session_id": "s"}}),
}  # fmt: skip


@contextmanager
def refusing(case: str, health: bytes) -> Iterator[str]:
    """Answer every call with a refusal, but for a look at its version."""
    status, error = REFUSALS[case]

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_health = self.path == "/health"
            body = health if is_health else json.dumps({"error": error}).encode()
            self.send_response(200 if is_health else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 - so they are called

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as url:
        yield url


OLD = b'{"status": "ok", "version": "0.0.7"}'


@pytest.mark.parametrize(
    ("case", "unknown"), [("field", "`effort`"), ("path", "this call"), ("method", "this call")]
)
def test_a_call_that_an_older_daemon_does_not_have_names_both_versions(
    case: str, unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(case, OLD) as url:
        code = invoke(["session", "close", "ses_1", "--url", url])
    told = capsys.readouterr().err
    assert code == 1
    assert "version 0.0.7" in told
    assert f"version {version('agent-orchestrator')}" in told
    assert unknown in told
    assert "agentctl daemon stop" in told


@pytest.mark.parametrize(
    ("case", "health", "code"),
    [
        ("value", OLD, 2),
        ("session", OLD, 4),
        ("path", b"[]", 4),
        ("path", b"no JSON", 4),
        ("path", b'{"version": 7}', 4),
    ],
)
def test_other_refusals_do_not_mention_versions(
    case: str, health: bytes, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(case, health) as url:
        assert invoke(["session", "close", "ses_1", "--url", url]) == code
    assert "version" not in capsys.readouterr().err

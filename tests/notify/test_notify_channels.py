"""The channels of notices against receivers that are correct, slow, hostile or absent."""

import base64
import hashlib
import hmac
import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from pids import is_gone
from receiver import Received, Receiver, receiving, status

from agent_orchestrator import open_embedded
from agent_orchestrator.host import use_host
from agent_orchestrator.hosts import this_host
from agent_orchestrator.notice_settings import CommandOptions, NtfyOptions, WebhookOptions
from agent_orchestrator.notifiers.command import CommandChannel
from agent_orchestrator.notifiers.ntfy import NtfyChannel
from agent_orchestrator.notifiers.webhook import WebhookChannel, signature
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.testing.scripted import ScriptedRunner

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()

CONTENT = NoticeContent(
    notice_id="ntc_1",
    action="show",
    kind="request",
    subject="req_1",
    title="Approval needed: fix the build",
    link="https://desk.example/r/req_1",
    created_at=NOW,
    at=NOW + timedelta(seconds=5),
    session_id="ses_1",
    session_title="fix the build",
    run_id="run_1",
    request_id="req_1",
    request_kind="approval_request",
    deadline=NOW + timedelta(hours=2),
)
WITHDRAWAL = evolve(CONTENT, action="withdraw")


async def webhook(receiver: Receiver, content: NoticeContent = CONTENT) -> None:
    options = WebhookOptions(url=f"{receiver.url}/hook/t0ken", secret=SECRET)
    async with WebhookChannel(options=options) as channel:
        await channel.send(content)


async def ntfy(receiver: Receiver, content: NoticeContent = CONTENT, **more: Any) -> None:
    async with NtfyChannel(options=NtfyOptions(url=f"{receiver.url}/t0pic", **more)) as channel:
        await channel.send(content)


def test_signature_is_that_of_the_specifications_example() -> None:
    key = base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")
    body = b'{"event_type":"ping","data":{"success":true}}'
    found = signature(key, "msg_loFOjxBNrRLzqYUf", "1731705121", body)
    assert found == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="


async def test_webhook_gets_signed_json(receiver: Receiver) -> None:
    await webhook(receiver)
    [got] = receiver.requests
    assert (got.method, got.path) == ("POST", "/hook/t0ken")
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "ntc_1"
    assert got.headers["webhook-timestamp"] == "1767268805"
    signed = b"ntc_1.1767268805." + got.body
    expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert got.headers["webhook-signature"] == f"v1,{expected}"
    assert json.loads(got.body) == {
        "type": "notice.request",
        "timestamp": "2026-01-01T12:00:05.000000Z",
        "data": {
            "notice_id": "ntc_1",
            "kind": "request",
            "title": "Approval needed: fix the build",
            "link": "https://desk.example/r/req_1",
            "session_id": "ses_1",
            "session_title": "fix the build",
            "run_id": "run_1",
            "request_id": "req_1",
            "request_kind": "approval_request",
            "created_at": "2026-01-01T12:00:00.000000Z",
            "expires_at": "2026-01-01T14:00:00.000000Z",
        },
    }


async def test_webhook_gets_a_withdrawal_with_an_id_of_its_own(receiver: Receiver) -> None:
    await webhook(receiver, WITHDRAWAL)
    [got] = receiver.requests
    assert got.headers["webhook-id"] == "ntc_1_withdrawn"
    assert json.loads(got.body)["type"] == "notice.withdrawn"


@pytest.mark.parametrize(
    ("code", "headers", "is_final", "is_gone", "retry_after_s"),
    [
        (500, (), False, False, None),
        (503, ("Retry-After: 120",), False, False, 120),
        (429, ("Retry-After: 99999999999999",), False, False, None),
        (429, ("Retry-After: 999999999",), False, False, 86_400),
        (429, ("Retry-After: -5",), False, False, None),
        (
            503,
            ("Retry-After: Thu, 01 Jan 2026 12:01:00 GMT", "Date: Thu, 01 Jan 2026 12:00:00 GMT"),
            False,
            False,
            60,
        ),
        (503, ("Retry-After: \xa0whenever",), False, False, None),
        (404, (), False, False, None),
        (403, (), True, False, None),
        (410, (), True, True, None),
        (301, ("Location: http://127.0.0.1:1/elsewhere",), True, False, None),
    ],
)
async def test_status_decides_about_another_attempt(
    receiver: Receiver,
    code: int,
    headers: tuple[str, ...],
    is_final: bool,
    is_gone: bool,
    retry_after_s: float | None,
) -> None:
    receiver.answer = status(code, *headers)
    with pytest.raises(SendFailed, match=f"answered {code}") as caught:
        await webhook(receiver)
    found = caught.value
    assert (found.is_final, found.is_gone) == (is_final, is_gone)
    assert found.retry_after_s == retry_after_s
    assert len(receiver.requests) == 1  # no redirect was followed


def endless_body(connection: socket.socket, _: Received) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:  # until the client has closed it
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def endless_headers(connection: socket.socket, _: Received) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def garbage(connection: socket.socket, _: Received) -> None:
    connection.sendall(b"\x00\x01\x02 not HTTP \r\n\r\n")


def nothing(connection: socket.socket, _: Received) -> None:
    connection.shutdown(socket.SHUT_RDWR)


async def test_endless_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answer = endless_body
    with anyio.fail_after(60):
        await webhook(receiver)  # its status says that it was accepted


@pytest.mark.parametrize("answer", [endless_headers, garbage, nothing])
async def test_bad_answer_fails_without_naming_the_url(receiver: Receiver, answer: Any) -> None:
    receiver.answer = answer
    with anyio.fail_after(60), pytest.raises(SendFailed) as caught:
        await webhook(receiver)
    assert not caught.value.is_final
    assert "t0ken" not in str(caught.value)


async def test_absent_receiver_fails_without_naming_the_url() -> None:
    with receiving() as gone:
        pass
    with pytest.raises(SendFailed, match="cannot be reached") as caught:
        await webhook(gone)
    assert not caught.value.is_final
    assert "t0ken" not in str(caught.value)


async def test_attempt_can_be_cut_off_while_the_receiver_hangs(receiver: Receiver) -> None:
    receiver.answer = receiver.hang
    with anyio.move_on_after(0.2) as scope:
        await webhook(receiver)
    assert scope.cancelled_caught
    receiver.answer = status(200)
    await webhook(receiver)


async def test_cookies_are_not_kept(receiver: Receiver) -> None:
    receiver.answer = status(200, "Set-Cookie: a=b; Path=/")
    options = WebhookOptions(url=f"{receiver.url}/hook", secret=SECRET)
    async with WebhookChannel(options=options) as channel:
        for _ in range(2):
            await channel.send(CONTENT)
    assert ["cookie" in got.headers for got in receiver.requests] == [False, False]


async def test_ntfy_gets_a_message(receiver: Receiver) -> None:
    await ntfy(receiver, token="tk_secret")
    [got] = receiver.requests
    assert (got.method, got.path) == ("POST", "/t0pic")
    assert got.headers["authorization"] == "Bearer tk_secret"
    assert got.headers["title"] == "Approval needed: fix the build"
    assert got.headers["click"] == "https://desk.example/r/req_1"
    assert got.headers["x-sequence-id"] == "ntc_1"
    assert got.headers["priority"] == "3"
    assert got.body == b"It waits for an answer until 14:00 UTC."


@pytest.mark.parametrize(
    ("changes", "priority"),
    [
        ({"deadline": NOW + timedelta(minutes=10)}, "5"),
        ({"deadline": NOW + timedelta(minutes=59)}, "4"),
        ({"deadline": NOW - timedelta(minutes=1)}, "5"),
        ({"deadline": None, "kind": "finished"}, "3"),
        ({"deadline": None, "kind": "failed"}, "4"),
    ],
)
async def test_ntfy_priority_follows_the_deadline(
    receiver: Receiver, changes: dict[str, Any], priority: str
) -> None:
    await ntfy(receiver, evolve(CONTENT, **changes))
    assert receiver.requests[0].headers["priority"] == priority


async def test_ntfy_title_of_any_language_and_a_path_as_link(receiver: Receiver) -> None:
    await ntfy(receiver, evolve(CONTENT, title="Frage: Überprüfung 😀", link="/r/req_1", text="ü"))
    [got] = receiver.requests
    encoded = got.headers["title"].removeprefix("=?UTF-8?B?").removesuffix("?=")
    assert base64.b64decode(encoded).decode() == "Frage: Überprüfung 😀"
    assert "click" not in got.headers
    assert got.body.decode() == "ü"


@pytest.mark.parametrize("code", [200, 404, 405])
async def test_ntfy_deletes_a_withdrawn_message_if_the_server_can(
    receiver: Receiver, code: int
) -> None:
    receiver.answer = status(code)
    await ntfy(receiver, WITHDRAWAL)
    [got] = receiver.requests
    assert (got.method, got.path) == ("DELETE", "/t0pic/ntc_1")


async def command(
    *argv: str, content: NoticeContent = CONTENT, env: dict[str, str] | None = None
) -> None:
    with use_host(this_host()):
        await CommandChannel(CommandOptions(argv=argv), env or {"PATH": "/usr/bin:/bin"}).send(
            content
        )


async def test_program_gets_json_on_its_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    await command("sh", "-c", f'cat > {out}; test "$GREETING" = hi', env={"GREETING": "hi"})
    document = json.loads(out.read_bytes())
    assert document["type"] == "notice.request"
    assert document["data"]["request_id"] == "req_1"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 3", "exited with 3"),
        ("echo first >&2; echo 'no display' >&2; exit 1", "exited with 1: no display"),
        ("printf 'a\\033[2Jb' >&2; exit 1", "exited with 1"),
        ("kill -9 $$", "exited with -9"),
    ],
)
async def test_failing_program_fails_the_attempt(script: str, error: str) -> None:
    with pytest.raises(SendFailed) as caught:
        await command("sh", "-c", script)
    assert str(caught.value) == error
    assert not caught.value.is_final


async def test_missing_program_fails_the_attempt() -> None:
    with pytest.raises(SendFailed, match="cannot be run"):
        await command("no-such-program-anywhere")


async def test_programs_output_is_discarded() -> None:
    await command("sh", "-c", "head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2")


async def test_program_and_its_children_are_ended_when_the_time_is_over(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"path = pathlib.Path({str(pids)!r})\n"
        "path.with_suffix('.new').write_text(f'{os.getpid()} {child.pid}')\n"
        "path.with_suffix('.new').rename(path)\n"
        "time.sleep(600)\n"
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, script)
        with anyio.fail_after(60):
            while not pids.exists():
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    for pid in map(int, pids.read_text().split()):
        assert is_gone(pid)


async def _run(script: str) -> None:
    await command(sys.executable, "-c", script)


async def test_embedded_engine_sends_tests_and_requests(receiver: Receiver, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    notify = {
        "dwell_s": 0,
        "include_text": True,
        "targets": {
            "phone": {"channel": "ntfy", "url": f"{receiver.url}/t0pic"},
            "desk": {
                "channel": "command",
                "argv": ["sh", "-c", f"cat > {out}.new && mv {out}.new {out}"],
            },
        },
    }
    async with open_embedded(":memory:", runners=[ScriptedRunner()], notify=notify) as client:
        for made in await client.test_notice():
            assert (await client.get_notice(made.id, wait_s=60)).state == "sent"
        assert receiver.requests[0].headers["title"] == "Test notice"
        assert json.loads(out.read_bytes())["type"] == "notice.test"
        session = await client.create_session(provider="manual")
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        asked = await client.reply_parent(run.id, "Which port?", request_kind="input_request")
        assert asked.request is not None
        with anyio.fail_after(60):
            async with client.events(session.id, follow=True) as log:
                async for event in log:
                    if event.event_type == "request.notified" and event.data["target"] == "phone":
                        assert event.data["state"] == "sent"
                        break
        assert receiver.requests[1].body == b"Which port?"

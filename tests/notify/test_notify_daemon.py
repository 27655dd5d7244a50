"""Notices of a real agentd: kept over a kill, tested, listed and retried with agentctl."""

import base64
import hashlib
import hmac
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driving import Ctl
from push_service import Browser, claims
from receiver import Receiver, status
from serving import Process, agentd
from test_agentd_process import call

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def configure(directory: Path, receiver: Receiver) -> None:
    (directory / "agentd.toml").write_text(
        f"""
        [notify]
        dwell_s = 0
        link_base = "https://desk.example"
        [notify.targets.hook]
        channel = "webhook"
        url = "{receiver.url}/h00k"
        secret = "{SECRET}"
        [providers.demo]
        runner = "demo"
        """
    )


def ask(daemon: Process) -> dict[str, Any]:
    session = call(daemon, "POST", "/sessions", json={"provider": "manual", "title": "a build"})
    session_id = session["session"]["id"]
    made = call(daemon, "POST", "/runs", json={"session_id": session_id, "provider": "manual"})
    run_id = made["run"]["id"]
    call(daemon, "POST", f"/runs/{run_id}/transition", json={"to_status": "running"})
    question = {"text": "May I?", "request_kind": "approval_request"}
    asked = call(daemon, "POST", f"/runs/{run_id}/reply-parent", json=question)
    request: dict[str, Any] = asked["request"]
    return request


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def receipts(daemon: Process, request: dict[str, Any]) -> list[dict[str, Any]]:
    found = call(daemon, "GET", f"/sessions/{request['session_id']}/events")["events"]
    return [one["data"] for one in found if one["event_type"] == "request.notified"]


def ctl(daemon: Process, directory: Path) -> Ctl:
    return Ctl(daemon.url, directory)


def test_notice_survives_a_kill_while_it_is_sent(tmp_path: Path, receiver: Receiver) -> None:
    configure(tmp_path, receiver)
    receiver.answer = receiver.hang
    with agentd(tmp_path) as daemon:
        request = ask(daemon)
        until(lambda: receiver.requests, "the first attempt has begun")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (tmp_path / "ready.json").unlink()
    receiver.answer = status(200)
    with agentd(tmp_path) as daemon:
        until(lambda: receipts(daemon, request), "a receipt is logged")
        call(daemon, "POST", f"/requests/{request['id']}/resolve", json={"decision": "deny"})
        until(lambda: len(receiver.requests) == 3, "the notice is withdrawn")
        [receipt] = receipts(daemon, request)
        # The address for people is also that of an invitation.
        assert "https://desk.example/#device=" in ctl(daemon, tmp_path)("device", "add").out
    first, second, withdrawal = receiver.requests
    documents = [json.loads(one.body) for one in receiver.requests]
    assert [one["type"] for one in documents] == ["notice.request"] * 2 + ["notice.withdrawn"]
    notice_id = first.headers["webhook-id"]
    assert second.headers["webhook-id"] == notice_id
    assert withdrawal.headers["webhook-id"] == f"{notice_id}_withdrawn"
    assert documents[0]["data"]["link"] == f"https://desk.example/r/{request['id']}"
    signed = b".".join(
        [notice_id.encode(), second.headers["webhook-timestamp"].encode(), second.body]
    )
    mac = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert second.headers["webhook-signature"] == f"v1,{mac}"
    assert receipt == {
        "request_id": request["id"],
        "notice_id": notice_id,
        "target": "hook",
        "state": "sent",
    }


def test_notices_are_tested_listed_and_retried_by_hand(tmp_path: Path, receiver: Receiver) -> None:
    configure(tmp_path, receiver)
    with agentd(tmp_path) as daemon:
        agentctl = ctl(daemon, tmp_path)
        good = agentctl("notify", "test", "--format", "json")
        assert good.code == 0, good.err
        [sent] = good.json["notices"]
        assert (sent["kind"], sent["target"], sent["state"]) == ("test", "hook", "sent")
        assert json.loads(receiver.requests[0].body)["data"]["title"] == "Test notice"

        receiver.answer = status(403)
        bad = agentctl("notify", "test", "hook")
        assert bad.code == 1
        assert "failed" in bad.out
        assert "answered 403" in bad.out
        [failed] = agentctl("notify", "list", "--failed", "--format", "json").json["notices"]
        assert failed["error"] == "answered 403"
        assert len(agentctl("notify", "list", "--format", "json").json["notices"]) == 2

        receiver.answer = status(200)
        again = agentctl("notify", "retry", failed["id"][-8:], "--format", "json")
        assert again.json["notice"]["state"] == "queued", again.err
        until(
            lambda: agentctl.field("notices.1.state", "notify", "list") == "sent",
            "the retried notice is sent",
        )
        assert agentctl("notify", "list", "--failed").out == "no notices\n"
        conflict = agentctl("notify", "retry", failed["id"])
        assert conflict.code == 6
        unknown = agentctl("notify", "test", "fax")
        assert unknown.code == 2
        assert "there are hook" in unknown.err
        for text in (daemon.stderr(), agentctl("daemon", "status", "--format", "json").out):
            assert SECRET not in text
            assert "h00k" not in text


def test_daemon_without_targets_says_so(tmp_path: Path) -> None:
    with agentd(tmp_path) as daemon:
        none = ctl(daemon, tmp_path)("notify", "test")
        assert none.code == 6
        assert "[notify]" in none.err


def test_others_than_administrators_see_no_notices(tmp_path: Path, receiver: Receiver) -> None:
    configure(tmp_path, receiver)
    with agentd(tmp_path, "--auth-token", "s3cret-s3cret-s3cret") as daemon:
        admin = {"AGENTCTL_AUTH_TOKEN": "s3cret-s3cret-s3cret"}
        agentctl = ctl(daemon, tmp_path)
        assert agentctl("notify", "test", **admin).code == 0
        token = agentctl("token", "create", "ann", "--field", "secret", **admin).out.strip()
        ann = {"AGENTCTL_AUTH_TOKEN": token}
        assert agentctl("notify", "list", **ann).out == "no notices\n"
        assert agentctl("notify", "test", "hook", **ann).code == 2
        assert agentctl("notify", "test", **ann).code == 6


def test_browser_is_told_by_a_daemon_that_was_killed_meanwhile(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Key and subscription survive; the receipts of the device end in the session's log."""
    receiver.answer = receiver.hang
    browser = Browser(f"{receiver.url}/browser")
    (tmp_path / "agentd.toml").write_text(
        f'[notify]\ndwell_s = 0\npush_services = ["{receiver.url}"]\n[providers.demo]\nrunner = "demo"\n'
    )
    with agentd(tmp_path) as daemon:
        key = call(daemon, "GET", "/push/key")["key"]
        subscription = {**browser.fields, "name": "phone"}
        made = call(daemon, "POST", "/push/subscriptions", json=subscription)["subscription"]
        request = ask(daemon)
        until(lambda: receiver.requests, "the first attempt has begun")
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    (tmp_path / "ready.json").unlink()
    receiver.answer = status(201)
    with agentd(tmp_path) as daemon:
        until(lambda: receipts(daemon, request), "a receipt is logged")
        assert call(daemon, "GET", "/push/key")["key"] == key
        first, second = receiver.requests
        assert claims(second.headers, key)["aud"] == receiver.url
        messages = [browser.message(one)["data"] for one in (first, second)]
        assert messages[0]["notice_id"] == messages[1]["notice_id"]
        report = {"notice_id": messages[1]["notice_id"], "state": "clicked"}
        call(daemon, "POST", "/push/receipts", json=report)
        states = [(one["target"], one["state"]) for one in receipts(daemon, request)]
        assert states == [(made["id"], "sent"), (made["id"], "shown")]
        agentctl = ctl(daemon, tmp_path)
        assert "phone" in agentctl("notify", "browsers").out
        forgotten = agentctl("notify", "forget", made["id"][:10])
        assert forgotten.out == "browser phone gets no notices any more\n", forgotten.err
        assert agentctl("notify", "browsers").out == "no browsers\n"
        assert browser.endpoint not in daemon.stderr()
    [key_file] = tmp_path.rglob("*.push-key")
    assert key_file.stat().st_mode & 0o777 == 0o600

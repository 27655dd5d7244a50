"""``agentctl device``: what a person sees of devices."""

import re

import httpx
from driving import Daemon
from test_agentctl_pager import on_terminal


def test_a_device_is_added_listed_and_revoked(daemon: Daemon) -> None:
    ctl = daemon.ctl
    shown = ctl("device", "add", "--name", "phone", "--scope", "read")
    assert shown.code == 0, shown.err
    [code] = [line.removeprefix("code ") for line in shown.out.splitlines() if "code " in line]
    assert f"{ctl.url}/#device={code.replace('-', '')}" in shown.out
    assert "█" in shown.out or "##" in shown.out
    assert "from now on calls without a token are refused" in shown.err
    assert "only this machine can reach" in shown.err
    answer = httpx.post(f"{ctl.url}/devices/claim", json={"code": code.lower()})
    assert answer.status_code == 201, answer.text
    device = answer.json()["device"]
    assert (device["name"], device["scopes"]) == ("phone", ["read"])
    listed = ctl("device", "list")
    assert device["id"] in listed.out
    assert "good" in listed.out
    assert code not in listed.out
    assert "is revoked" in ctl("device", "revoke", device["id"][-6:]).out
    assert "revoked" in ctl("device", "list").out
    again = ctl("--format", "json", "device", "add", "--field", "code")
    assert (again.code, len(again.out.strip()), again.err) == (0, 8, "")
    assert "code" in on_terminal(ctl, "device", "add", rows=60, NO_COLOR="1")


def test_a_session_is_shown_by_a_link_until_that_is_revoked(daemon: Daemon) -> None:
    ctl = daemon.ctl
    session = ctl.field("session.id", "session", "create", "--title", "roof")
    shown = ctl("session", "link", session, "--expires-in-s", "3600")
    assert shown.code == 0, shown.err
    [secret] = re.findall(r"/#link=(apt_[\w-]+)", shown.out)
    assert "█" in shown.out or "##" in shown.out
    headers = {"Authorization": f"Bearer {secret}"}
    path = f"{ctl.url}/sessions/{session}"
    assert httpx.get(path, headers=headers).json()["session"]["title"] == "roof"
    [link] = ctl("--format=json", "session", "links", session).json["tokens"]
    assert "valid" in ctl("session", "links", session).out
    assert "is revoked" in ctl("session", "unlink", session, link["id"][-6:]).out
    assert httpx.get(path, headers=headers).status_code == 401

"""``agentctl device``: what a person sees of devices."""

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

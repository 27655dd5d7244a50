"""``agentctl device``: what a person sees of devices."""

import re
from pathlib import Path

import httpx
import pytest
from driving import Ctl, Daemon, named
from ports import free_port
from test_agentctl_pager import shown_on_terminal

from agentctl.qr import CARD_LINES, code, device_url


def test_a_device_is_added_listed_and_revoked(daemon: Daemon) -> None:
    ctl = daemon.ctl
    shown = ctl("device", "add", "--name", "phone", "--scope", "read")
    assert shown.code == 0, shown.err
    [said] = [line.removeprefix("code ") for line in shown.out.splitlines() if "code " in line]
    assert f"{ctl.url}/#device={said.replace('-', '')}" in shown.out
    assert "█" not in shown.out  # a pipe cannot be scanned
    assert "from now on calls without a token are refused" in shown.err
    assert "only this machine can reach" in shown.err
    answer = httpx.post(f"{ctl.url}/devices/claim", json={"code": said.lower()})
    assert answer.status_code == 201, answer.text
    device = answer.json()["device"]
    assert (device["name"], device["scopes"]) == ("phone", ["read"])
    listed = ctl("device", "list")
    assert device["id"] in listed.out
    assert "good" in listed.out
    assert said not in listed.out
    assert "is revoked" in ctl("device", "revoke", device["id"][-6:]).out
    assert "revoked" in ctl("device", "list").out
    again = ctl("--format", "json", "device", "add", "--field", "code")
    assert (again.code, len(again.out.strip()), again.err) == (0, 8, "")
    drawn = shown_on_terminal(ctl, "device", "add", rows=60, NO_COLOR="1")
    assert "code" in drawn
    assert "█" in drawn
    assert "█" not in shown_on_terminal(ctl, "device", "add", rows=60, TERM="dumb")


@pytest.mark.parametrize("name", ["desk.tail1234.ts.net", "desk.example:8765/agents"])
def test_code_and_picture_fit_on_a_small_terminal(name: str) -> None:
    url = device_url(f"https://{name}", "K7PM3XQ2")
    for colour in (True, False):
        lines = code(url, colour=colour, columns=80, height=24 - CARD_LINES)
        assert len(lines) <= 24 - CARD_LINES
        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
        assert max(map(len, plain)) <= 80
    # With room, the margin is that of the standard.
    assert len(code(url, columns=80, height=60)) > len(lines)


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


def test_start_shows_the_address_of_the_page_and_a_code_for_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "n.toml").write_text('[notify]\nlink_base = "https://desk.example"\n')
    ctl = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    env = {**named(tmp_path), "NO_COLOR": "1", "LANG": "C.UTF-8"}
    monkeypatch.chdir(tmp_path)
    start = ("daemon", "start", "--", "--config", str(tmp_path / "n.toml"))
    try:
        # No token exists yet: an invitation would end the time without tokens.
        shown = shown_on_terminal(ctl, *start, rows=24, **env)
        assert "in a browser: https://desk.example" in shown
        assert "███" in shown
        assert "#device=" not in shown
        assert ctl("session", "create").code == 0
        assert ctl("token", "create", "ann").code == 0
        assert ctl("daemon", "stop", "--wait").code == 0
        last = shown_on_terminal(ctl, *start, rows=24, **env).splitlines()[-24:]
        [code] = re.findall(r"#device=(\w{8})", "\n".join(last))
        assert any(f"code {code[:4]}-{code[4:]}" in line for line in last)
        assert any("███" in line for line in last)
        assert ctl("daemon", "stop", "--wait").code == 0
        piped = ctl(*start)
        assert "#device=" not in piped.out + piped.err
    finally:
        ctl("daemon", "stop", "--now", "--wait")

"""agentctl token, and the audit trail it leaves."""

import json
import stat

import httpx
import segno
from driving import Daemon

from agent_orchestrator.user_state import user_state
from agentctl.qr import code


def status_of(daemon: Daemon, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(f"{daemon.ctl.url}/sessions", headers=headers, timeout=60).status_code


def test_once_there_is_a_token_every_call_needs_one(daemon: Daemon) -> None:
    state = user_state()
    assert state is not None
    path = state.token_file(daemon.port)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert status_of(daemon) == status_of(daemon, first) == 200
    made = daemon.ctl("token", "create", "phone")
    assert "calls without a token are refused" in made.err
    phone = made.out.split("secret")[1].split()[0]
    assert [status_of(daemon, token) for token in (None, "guess", phone, first)] == [
        401, 401, 200, 200,
    ]  # fmt: skip
    assert "calls without" not in daemon.ctl("token", "create", "again").err
    for token_id in daemon.ctl("token", "list", "--format=json").json["tokens"]:
        assert daemon.ctl("token", "revoke", token_id["id"]).code == 0
    assert status_of(daemon) == 401
    daemon.end()
    assert not path.exists()
    daemon.start()
    assert path.read_text() != first
    assert [status_of(daemon, token) for token in (None, first)] == [401, 401]
    assert daemon.ctl("session", "list").code == 0


def test_with_a_configured_token_no_local_token_file_is_written(guarded: Daemon) -> None:
    state = user_state()
    assert state is not None
    assert not state.token_file(guarded.port).exists()
    assert guarded.ctl("session", "list").code == 5


def test_tokens_are_created_listed_and_revoked(daemon: Daemon) -> None:
    ctl = daemon.ctl
    made = ctl("token", "create", "phone", "--principal", "ann", "--scope", "read",
               "--format=json").json  # fmt: skip
    token_id = made["token"]["id"]
    assert made["token"]["scopes"] == ["read"]
    assert made["secret"].startswith("apt_")
    shown = ctl("token", "create", "ci", "--expires-in-s", "3600").out
    assert "apt_" in shown
    assert "read, write, approve" in shown
    asked = ctl("--auth-token", made["secret"], "session", "list", "--format=json")
    assert (asked.code, asked.json["sessions"]) == (0, [])
    refused = ctl("--auth-token", made["secret"], "session", "create")
    assert refused.code == 5
    assert "scope write" in refused.err
    assert "revoked" in ctl("token", "revoke", token_id).out
    assert ctl("--auth-token", made["secret"], "session", "list").code == 5
    listed = ctl("token", "list").out
    assert made["secret"] not in listed
    assert [line.split()[1] for line in listed.splitlines()] == ["STATE", "revoked", "valid,"]
    trail = ctl("daemon", "audit").out
    assert ["none", "create_token"] in [line.split()[4:6] for line in trail.splitlines()[1:]]
    assert "revoke_token" in trail


def modules(lines: list[str], dark: dict[str, tuple[bool, bool]]) -> list[list[bool]]:
    """Read a printed code back: for each module whether it is dark."""
    return [
        [dark[character][half] for character in line] for line in lines for half in (False, True)
    ]


def expected(text: str) -> list[list[bool]]:
    made = segno.make(text, error="L", micro=False)
    return [[bool(module) for module in row] for row in made.matrix_iter(border=4)]


HALVES = {" ": (False, False), "▀": (True, False), "▄": (False, True), "█": (True, True)}
BARE = {one: (not above, not below) for one, (above, below) in HALVES.items()}


def test_token_create_prints_a_qr_code_with_url_and_token(daemon: Daemon) -> None:
    shown = daemon.ctl("token", "create", "phone", "--qr")
    lines = shown.out.splitlines()
    secret = next(line.split()[1] for line in lines if line.split()[:1] == ["secret"])
    text = json.dumps({"url": daemon.ctl.url, "token": secret}, separators=(",", ":"))
    wanted = expected(text)
    printed = modules([line for line in lines if len(line) == len(wanted)], BARE)
    assert printed[: len(wanted)] == wanted
    assert "only this machine" in shown.err
    for refused in (("--format", "json"), ("--field", "secret")):
        before = len(daemon.ctl("token", "list").out.splitlines())
        assert daemon.ctl("token", "create", "x", "--qr", *refused).code == 2
        assert len(daemon.ctl("token", "list").out.splitlines()) == before


def test_a_qr_code_can_be_read_in_colour_and_in_ascii() -> None:
    wanted = expected("hello")
    coloured = [
        line.removeprefix("\x1b[38;5;16;48;5;231m").removesuffix("\x1b[0m")
        for line in code("hello", colour=True)
    ]
    assert modules(coloured, HALVES)[: len(wanted)] == wanted
    plain = code("hello", unicode=False)
    assert [[pair == "  " for pair in map("".join, zip(*[iter(line)] * 2, strict=True))]
            for line in plain] == wanted  # fmt: skip
    assert code("hello", columns=28) == [
        "the QR code needs a terminal of 29 columns, but this one has 28"
    ]
    assert len(code("hello", columns=29)) == 15

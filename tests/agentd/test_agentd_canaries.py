"""Recognizable secrets: they are in the expected places, and nowhere else."""

import base64
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Process, agentd

CONFIGURED = "canary-configured-token-4d1c6f0b7a"
VARIABLE = "canary-of-a-variable-8f2e5a9c1b"
CODEX_KEY = "canary-codex-key-77aa01b2c3"
MESSAGE = "canary-in-a-message-93b1d8e4f2"
HEADER = "canary-in-a-header-05c7e2d9a6"
QUERY = "canary-in-a-query-b6a4c8d0e1"
WRONG = "canary-wrong-token-e9d3f7a5b8"
KEY = "canary-idempotency-key-aa11bb22"

CONFIG = """
[providers.tell]
runner = "command"
argv = ["env", "-0"]
output = "text"
[providers.closed]
runner = "command"
argv = ["env", "-0"]
output = "text"
env = { inherit = ["PATH"], set = { OWN = "x" } }
[providers.bad]
runner = "command"
argv = ["sh", "-c", "cat >&2; exit 3"]
[routing]
default = "tell"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    secrets = {
        "AGENTD_AUTH_TOKEN": CONFIGURED,
        "AGENTD_SOMETHING": VARIABLE,
        "AGENTCTL_AUTH_TOKEN": VARIABLE,
        "CODEX_API_KEY": CODEX_KEY,
    }
    options = ("--db", "a.db", "--log-level", "debug", "--log-format", "json")
    with agentd(tmp_path, *options, env=secrets) as found:
        yield found


def call(daemon: Process, token: str, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", "X-Anything": HEADER, **more.pop("headers", {})}
    return httpx.request(method, f"{daemon.url}{path}", headers=headers, timeout=60, **more)


def run(daemon: Process, token: str, provider: str, text: str) -> dict[str, Any]:
    made = call(daemon, token, "POST", "/sessions", json={"provider": provider})
    session = made.json()["session"]["id"]
    sent = call(
        daemon, token, "POST", f"/sessions/{session}/messages", json={"text": text},
        headers={"Idempotency-Key": KEY + session},
    ).json()["run"]["id"]  # fmt: skip
    answer = call(daemon, token, "GET", f"/runs/{sent}/wait", params={"timeout_s": 50})
    found: dict[str, Any] = answer.json()["run"]
    return found


def forms(secret: str) -> list[bytes]:
    """Return the forms in which a secret may be written."""
    plain = secret.encode()
    return [
        plain,
        json.dumps(secret)[1:-1].encode(),
        base64.b64encode(plain)[:24],
        plain.hex().encode(),
    ]


def places(directory: Path, secret: str) -> set[str]:
    """Return the files that hold a secret: the log is `stderr-…`, the database `a.db…`."""
    found = set()
    for path in directory.rglob("*"):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:  # it was renamed meanwhile
            continue
        if any(form in content for form in forms(secret)):
            found.add(path.name.partition("-")[0])
    return found


def test_secrets_are_only_in_the_expected_places(daemon: Process, tmp_path: Path) -> None:
    made = call(daemon, CONFIGURED, "POST", "/tokens", json={"name": "ann"}).json()
    named = made["secret"]
    other = call(daemon, CONFIGURED, "POST", "/tokens", json={"name": "bob"}).json()["secret"]
    environments = {}
    for provider in ("tell", "closed"):
        ended = run(daemon, named, provider, MESSAGE)
        assert ended["status"] == "completed", ended
        pairs = ended["result"]["text"].split("\0")
        environments[provider] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    assert run(daemon, named, "bad", MESSAGE)["status"] == "failed"
    _misuse(daemon, named)

    # Agents have their run's token and, like the user's own codex, the API key.
    for provider, env in environments.items():
        shown = json.dumps(env)
        assert env["AGENTCTL_AUTH_TOKEN"].startswith("art_")
        assert not [name for name in env if name.startswith("AGENTD_")]
        for secret in (CONFIGURED, VARIABLE, named, other, HEADER, MESSAGE):
            assert secret not in shown, (provider, secret)
    assert environments["tell"]["CODEX_API_KEY"] == CODEX_KEY
    assert environments["closed"].keys() - {"AGENT_ORCHESTRATOR_TAG"} == {
        "PATH", "OWN", "AGENTCTL_URL", "AGENTCTL_AUTH_TOKEN", "AGENTCTL_RUN_ID", "AGENTCTL_SESSION_ID",
    }  # fmt: skip

    # Other principals see nothing of ann's sessions.
    for path in ("/sessions", "/runs", "/requests"):
        assert MESSAGE not in call(daemon, other, "GET", path).text
    with httpx.stream(
        "GET", f"{daemon.url}/stream", headers={"Authorization": f"Bearer {other}"}, timeout=60
    ) as stream:
        heard = ""
        for part in stream.iter_text():
            heard += part
            if "caught" in heard:
                break
    assert MESSAGE not in heard

    # Status, doctor, audit, tokens and metrics show no secret.
    for path in ("/daemon/status", "/daemon/doctor", "/daemon/audit", "/tokens", "/metrics"):
        shown = call(daemon, CONFIGURED, "GET", path).text
        for secret in (
            CONFIGURED,
            VARIABLE,
            CODEX_KEY,
            named,
            other,
            MESSAGE,
            HEADER,
            QUERY,
            WRONG,
        ):
            assert secret not in shown, path

    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    belongs = {
        MESSAGE: {"a.db"},  # the conversation
        KEY: {"a.db"},
        CODEX_KEY: {"a.db"},  # the agent printed its environment: that is its answer
        **{key: set[str]() for key in (CONFIGURED, VARIABLE, named, other, HEADER, QUERY, WRONG)},
    }
    for secret, expected in belongs.items():
        assert places(tmp_path, secret) == expected, secret
    # The agent printed its run's token, so the answer contains it; no log does.
    for env in environments.values():
        assert places(tmp_path, env["AGENTCTL_AUTH_TOKEN"]) == {"a.db"}


def _misuse(daemon: Process, named: str) -> None:
    """Make calls with secrets in all places that servers often log."""
    assert call(daemon, WRONG, "GET", "/sessions").status_code == 401
    for name in ("token", "other"):
        call(daemon, named, "GET", "/sessions", params={name: QUERY})
        call(daemon, named, "GET", f"/not/there?{name}={QUERY}")
    call(daemon, named, "POST", "/sessions", content=HEADER.encode())
    call(daemon, named, "GET", "/sessions", headers={"Cookie": HEADER, "Host": f"{HEADER}.example"})
    call(daemon, named, "GET", "/sessions", headers={"Origin": f"http://{HEADER}.example"})
    host, _, port = daemon.url.removeprefix("http://").rpartition(":")
    for sent in (
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {named}\r\nAuthorization : {WRONG}\r\n\r\n",
        f"{QUERY}\r\n\r\n",
        (
            f"GET /stream HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Protocol: bearer.{WRONG}\r\n\r\n"
        ),
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(sent.encode())
            while connection.recv(65536):
                pass

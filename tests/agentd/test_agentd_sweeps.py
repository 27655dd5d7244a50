"""The whole API description, swept with what it allows and what it does not, by callers of all kinds.

Schemathesis makes the requests and holds every answer against the description: no fault of ours, no
status, type or body the description does not tell of, no bad input taken, no call that ignores its token.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest
import schemathesis
from driving import wait_until
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from serving import Process, agentd

from agent_orchestrator.wire.openapi import openapi_document

ADMIN = "correct-horse-battery-staple-and-more"

CONFIG = """
[providers.quick]
runner = "command"
argv = ["true"]
[providers.agent]
runner = "command"
argv = ["sh", "-c", 'echo "$AGENTCTL_AUTH_TOKEN" > token.new; mv token.new token; exec sleep 600']
[routing]
default = "quick"
"""

PATIENCE_S = 580
"""They take 5 s on a machine that does nothing else, the one with all phases a minute."""

PHASES = "coverage,fuzzing" if os.environ.get("SWEEP_COVERAGE") else "fuzzing"
"""Coverage takes each field to its bounds, in turn: too long for every run of the suite."""

pytestmark = pytest.mark.timeout(PATIENCE_S + 20)

ENDLESS = "/stream"
"""Its answer does not end, for which schemathesis would wait; :func:`test_streams` sweeps it."""

LEFT_OUT = "positive_data_acceptance,ignored_auth"
"""A description cannot say which providers there are, or that two fields must be equal. And callers
without a token are swept for themselves: schemathesis takes the lock-out of its wrong tokens for a fault."""

TRUTHFUL = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
"""The checks that are about answers, whoever asks."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    with agentd(tmp_path, "--db", "a.db", "--auth-token", ADMIN) as found:
        yield found


def sweep(daemon: Process, directory: Path, token: str | None, *options: str) -> int:
    """Sweep the description; return how many requests were made."""
    document = openapi_document("0")
    document["security"] = [{"bearer": []}]  # this daemon is not one that is open
    (directory / "openapi.json").write_text(json.dumps(document))
    given = ["-H", f"Authorization: Bearer {token}"] if token else []
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run", "openapi.json",
            "--url", daemon.url, *given, "--exclude-path", ENDLESS, "--generation-deterministic",
            "--no-shrink", "--continue-on-failure", "--no-color", "--warnings", "off",
            "--request-timeout", "30", "--report-json-path", "report.json", *options,
        ],
        cwd=directory,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "sweep_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
            "SWEEP_COPY": str(directory / "copy.db"),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not [line for line in daemon.log() if line["level"] == "error"]
    report = json.loads((directory / "report.json").read_text())
    calls = sum(len(item) for path, item in document["paths"].items() if path != ENDLESS)
    assert report["operations"]["tested"] == calls
    assert report["errors"] == []
    return int(report["test_cases"]["generated"])


def written(directory: Path) -> list[int]:
    """Return what grows with anything that is done."""
    tables = ("commits", "events", "access_tokens", "grants", "idempotency")
    with apsw.Connection(str(directory / "a.db"), flags=apsw.SQLITE_OPEN_READONLY) as database:
        return [next(database.execute(f"SELECT count(*) FROM {name}"))[0] for name in tables]


def made(daemon: Process, path: str, **values: Any) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = httpx.post(f"{daemon.url}{path}", json=values, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_by_an_administrator(daemon: Process, tmp_path: Path) -> None:
    before = written(tmp_path)
    options = ("--phases", PHASES, "-n", "6")
    checks = ("--checks", "all", "--exclude-checks", f"{LEFT_OUT},refused")
    assert sweep(daemon, tmp_path, ADMIN, *options, *checks) > 100
    assert written(tmp_path)[:4] > before[:4]  # it was let in, and did things


@pytest.mark.parametrize("token", [None, "apt_" + "A" * 43])
def test_by_nobody(daemon: Process, tmp_path: Path, token: str | None) -> None:
    before = written(tmp_path)
    options = ("--phases", "fuzzing", "-n", "3", "--checks", f"refused,{TRUTHFUL}")
    assert sweep(daemon, tmp_path, token, *options) > 50
    assert written(tmp_path) == before


def test_by_one_who_may_only_read(daemon: Process, tmp_path: Path) -> None:
    secret = made(daemon, "/tokens", name="ann", scopes=["read"])["secret"]
    before = written(tmp_path)
    options = ("--phases", "fuzzing", "-n", "3", "--checks", TRUTHFUL)
    assert sweep(daemon, tmp_path, secret, *options) > 50
    assert written(tmp_path) == before


def test_by_an_agent(daemon: Process, tmp_path: Path) -> None:
    session = made(daemon, "/sessions", provider="agent")["session"]["id"]
    made(daemon, f"/sessions/{session}/messages", text="work")
    wait_until((tmp_path / "token").exists)
    token = (tmp_path / "token").read_text().strip()
    options = ("--phases", "fuzzing", "-n", "3", "--checks", TRUTHFUL)
    assert sweep(daemon, tmp_path, token, *options) > 50


def test_streams(daemon: Process) -> None:
    """What the sweeps leave out: its answer is looked at, and not waited for to its end."""
    document = openapi_document("0")
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=daemon.url)
    strategies = [
        schema[ENDLESS]["GET"].as_strategy(generation_mode=mode)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    headers = {"Authorization": f"Bearer {ADMIN}"}
    seen: Counter[int] = Counter()

    with httpx.Client(base_url=daemon.url, headers=headers) as client:

        @given(case=strategies[0] | strategies[1])
        @settings(
            max_examples=60, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def open_stream(case: Any) -> None:
            sent = case.as_transport_kwargs()
            with client.stream(
                case.method, ENDLESS, params=sent["params"], headers=dict(sent["headers"] or {})
            ) as answer:
                seen[answer.status_code] += 1
                kind = answer.headers["content-type"].partition(";")[0]
                if answer.status_code == 200:
                    assert kind == "text/event-stream"
                    return
                answer.read()
            assert str(answer.status_code) in document["paths"][ENDLESS]["get"]["responses"]
            assert kind == "application/json"
            assert answer.json()["error"]["code"]

        open_stream()
    assert {200, 400} <= set(seen), seen

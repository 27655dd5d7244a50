"""The whole API description, swept with valid and invalid requests by all kinds of callers.

Schemathesis makes the requests and checks every answer against the description: no server error, no
undocumented status, type or body, no bad input accepted, no call that ignores its token.
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

TIMEOUT_S = 580
"""They take 5 s on an idle machine; the one with all phases takes a minute."""

PHASES = "coverage,fuzzing" if os.environ.get("SWEEP_COVERAGE") else "fuzzing"
"""Coverage tries the bounds of each field, which takes too long for every run of the suite."""

pytestmark = pytest.mark.timeout(TIMEOUT_S + 20)

ENDLESS = "/stream"
"""Its answer does not end, and schemathesis would wait for that; the last test sweeps it."""

LEFT_OUT = "positive_data_acceptance,ignored_auth"
"""A description cannot say which providers exist, or that two fields must be equal. Callers without
a token have their own sweep, as schemathesis reports the lock-out of its wrong tokens as a fault."""

TRUTHFUL = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
"""The checks of answers, for any caller."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "agentd.toml").write_text(CONFIG)
    with agentd(tmp_path, "--db", "a.db", "--auth-token", ADMIN) as found:
        yield found


def sweep(daemon: Process, directory: Path, token: str | None, *options: str) -> int:
    """Sweep the description; return how many requests were made."""
    document = openapi_document("0")
    document["security"] = [{"bearer": []}]  # this daemon requires a token
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
        timeout=TIMEOUT_S,
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
    """Return counts that change with every write."""
    tables = ("commits", "events", "access_tokens", "grants", "idempotency")
    with apsw.Connection(str(directory / "a.db"), flags=apsw.SQLITE_OPEN_READONLY) as database:
        return [next(database.execute(f"SELECT count(*) FROM {name}"))[0] for name in tables]


def made(daemon: Process, path: str, **values: Any) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = httpx.post(f"{daemon.url}{path}", json=values, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_sweep_with_an_admin_token_conforms_to_the_description(
    daemon: Process, tmp_path: Path
) -> None:
    before = written(tmp_path)
    options = ("--phases", PHASES, "-n", "6")
    checks = ("--checks", "all", "--exclude-checks", f"{LEFT_OUT},refused")
    assert sweep(daemon, tmp_path, ADMIN, *options, *checks) > 100
    assert written(tmp_path)[:4] > before[:4]  # its calls were accepted and changed something


@pytest.mark.parametrize("token", [None, "apt_" + "A" * 43])
def test_sweep_without_a_valid_token_is_refused_and_changes_nothing(
    daemon: Process, tmp_path: Path, token: str | None
) -> None:
    before = written(tmp_path)
    options = ("--phases", "fuzzing", "-n", "3", "--checks", f"refused,{TRUTHFUL}")
    assert sweep(daemon, tmp_path, token, *options) > 50
    assert written(tmp_path) == before


def test_sweep_with_a_read_token_conforms_and_changes_nothing(
    daemon: Process, tmp_path: Path
) -> None:
    secret = made(daemon, "/tokens", name="ann", scopes=["read"])["secret"]
    before = written(tmp_path)
    options = ("--phases", "fuzzing", "-n", "3", "--checks", TRUTHFUL)
    assert sweep(daemon, tmp_path, secret, *options) > 50
    assert written(tmp_path) == before


def test_sweep_with_a_runs_token_conforms_to_the_description(
    daemon: Process, tmp_path: Path
) -> None:
    session = made(daemon, "/sessions", provider="agent")["session"]["id"]
    made(daemon, f"/sessions/{session}/messages", text="work")
    wait_until((tmp_path / "token").exists)
    token = (tmp_path / "token").read_text().strip()
    options = ("--phases", "fuzzing", "-n", "3", "--checks", TRUTHFUL)
    assert sweep(daemon, tmp_path, token, *options) > 50


def test_sweep_of_streams_conforms_to_the_description(daemon: Process) -> None:
    """The other sweeps leave it out. Only the beginning of each answer is checked."""
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

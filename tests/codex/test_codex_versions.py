"""A codex that is too old or too new for what is asked of it: agentd and agentctl say so."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gateway import by_command_line, turn
from serving import agentd

from agent_orchestrator import Client, connect
from agent_orchestrator.operations.daemon import ProviderStatus

pytestmark = pytest.mark.anyio

FAKE = Path(__file__).parent / "fake_appserver.py"

Daemons = Callable[..., str]


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Start an agentd whose default agent is a codex of some version; return its URL."""
    command = tmp_path / "codex"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    command.chmod(0o755)
    # A login that both ways take: CODEX_API_KEY is for exec alone.
    (tmp_path / "auth.json").write_text('{"OPENAI_API_KEY": "x"}')

    def start(runner: str, version: str, fault: str = "none") -> str:
        variables = {"FAKE_VERSION": version, "FAKE_FAULT": fault}
        env = ", ".join(f"{name} = {json.dumps(value)}" for name, value in variables.items())
        (tmp_path / "agentd.toml").write_text(
            f'[providers.codex]\nrunner = "{runner}"\ncommand = "{command}"\n'
            f'home = "{tmp_path}"\nenv = {{ set = {{ {env} }} }}\n[routing]\ndefault = "codex"\n'
        )
        (tmp_path / "agentd.toml").chmod(0o600)
        return stack.enter_context(agentd(tmp_path, "--config", "agentd.toml")).url

    with ExitStack() as stack:
        yield start


async def told(client: Client) -> ProviderStatus:
    (provider,) = (await client.status()).providers
    return provider


async def doctor(url: str) -> tuple[int, dict[str, Any]]:
    """Return what agentctl's doctor exits with, and its finding on the provider."""
    done = await by_command_line(url, "doctor", "--format", "json")
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, next(one for one in findings if one["about"] == "provider codex")


@pytest.mark.parametrize(
    ("runner", "version", "available", "means", "says"),
    [
        ("codex-app-server", "0.168.0", False, None, "too old"),
        ("codex-app-server", "0.999.0", True, None, "newer than the tested"),
        ("codex-app-server", "0.169.3", True, None, None),
        ("codex", "0.168.0", True, "codex-exec", "too old"),
        ("codex", "0.999.0", True, "codex-app-server", "newer than the tested"),
        ("codex", "0.169.3", True, "codex-app-server", None),
    ],
)
async def test_the_status_says_if_codex_is_too_old_or_untested(
    daemons: Daemons,
    runner: str,
    version: str,
    available: bool,
    means: str | None,
    says: str | None,
) -> None:
    url = daemons(runner, version)
    async with connect(url) as client:
        provider = await told(client)
    assert (provider.available, provider.version, provider.mode) == (available, version, means)
    code, finding = await doctor(url)
    if says is None:
        assert (provider.reason, finding["level"]) == (None, "ok")
        return
    assert provider.reason is not None
    assert says in provider.reason
    assert version in provider.reason
    assert provider.reason in finding["message"]
    assert finding["level"] == ("warning" if available else "error")
    assert code == (0 if available else 1)


async def test_an_app_server_that_does_not_start_is_shown_in_the_status(
    daemons: Daemons, tmp_path: Path
) -> None:
    url = daemons("codex-app-server", "0.999.0", "refuse")
    async with connect(url) as client:
        assert (await told(client)).available
        session = await client.create_session(cwd=str(tmp_path))
        runs = [await turn(client, session.id, "hello") for _ in range(2)]
        provider = await told(client)
    for run in runs:
        assert run.error is not None
        assert run.error.code == "provider_unavailable"
        assert "missing field `sesame`" in run.error.message
    assert not provider.available
    assert provider.reason is not None
    assert "missing field `sesame`" in provider.reason
    code, finding = await doctor(url)
    assert (code, finding["level"]) == (1, "error")
    assert finding["message"] == provider.reason

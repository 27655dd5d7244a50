"""Fixtures for tests that run the real Claude Code against the local model server."""

import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from messages_server import MessagesServer, claude_env

from agent_orchestrator.runners.claude import ClaudeRunner
from agent_orchestrator.testing.runners import RecordingContext

MODULES = Path(__file__).parent.parent / "node_modules" / "@anthropic-ai"
MACHINE = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PINNED = MODULES / f"claude-code-linux-{MACHINE}" / "claude"


@pytest.fixture(scope="session")
def claude() -> str:
    """The Claude Code to test with: the pinned one, else a named one, else one on the PATH."""
    named = os.environ.get("AGENT_ORCHESTRATOR_CLAUDE")
    found = str(PINNED) if PINNED.exists() else named or shutil.which("claude")
    if found is None:
        reason = f"Claude Code is not there: run `npm ci --prefix {MODULES.parents[1]}`"
        if os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def models() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture
def env(tmp_path: Path, models: MessagesServer) -> dict[str, str]:
    """The variables with which Claude Code uses the local model."""
    return claude_env(tmp_path / "home", models.port)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def record(env: dict[str, str], workspace: Path):
    """Make contexts of runs."""

    def make(prompt, *, kind=RecordingContext, cwd=workspace, **more):
        variables = {**env, **more.pop("env", {})}
        context = kind(prompt, cwd=cwd, env=variables, **more)
        context.run = evolve(context.run, id=f"run_{uuid.uuid4().hex}")
        return context

    return make


@pytest.fixture
def make_runner(claude: str):
    """Make runners."""

    def make(**more):
        more.setdefault("sandbox", "danger-full-access")
        return ClaudeRunner(**{"command": claude, **more})

    return make

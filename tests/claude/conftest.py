"""Fixtures for tests that run the real Claude Code against the local model server."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from messages_server import MessagesServer, claude_env
from real_agents import required

from agent_orchestrator.runners.claude import ClaudeRunner
from agent_orchestrator.testing.runners import RecordingContext


@pytest.fixture(scope="session")
def claude() -> str:
    return required("claude")


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

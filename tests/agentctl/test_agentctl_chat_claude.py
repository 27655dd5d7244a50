"""The conversation on a full screen with the real Claude Code, on a scripted model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters import AGENTS
from driving import Daemon, running
from messages_server import MessagesServer
from real_agents import required
from screens import Stage
from test_agentctl_chat import PNG, chat

from agentctl.screens.composer import Composer

pytestmark = pytest.mark.claude

CLAUDE = next(agent for agent in AGENTS if agent.name == "claude")


@pytest.fixture
def models() -> Iterator[MessagesServer]:
    with MessagesServer() as server:
        yield server


@pytest.fixture
def daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: MessagesServer
) -> Iterator[Daemon]:
    program = required("claude")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    variables = CLAUDE.prepare(tmp_path / "claude", models.port)
    routing = '\n[routing]\ndefault = "claude"\n'
    (tmp_path / "claude.toml").write_text(CLAUDE.configuration(program, variables) + routing)
    yield from running(tmp_path, "--config", "claude.toml")


def test_claude_streams_asks_and_sees_an_image(
    daemon: Daemon, models: MessagesServer, tmp_path: Path
) -> None:
    image = tmp_path / "shot.png"
    image.write_bytes(PNG)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    file = workspace / "ran"

    async def send(stage: Stage, text: str) -> None:
        stage.find(Composer).text = text
        await stage.pilot.press("enter")

    async def play(stage: Stage) -> None:
        await send(stage, "stream 40 50 tick\nsay **all** done")
        await stage.shows("● working", "tick0 tick1 tick2")
        await stage.shows("all done", "✓ completed")
        assert stage.text.count("tick39") == 1, "the result is shown once"
        await send(stage, f"shell sh -c 'echo ran >> {file}'\nsay it ran")
        await stage.asked(" asks · tab answers", "Run: sh -c 'echo ran >>")
        assert not file.exists()
        await stage.pilot.press("tab")
        await stage.press("a", file.exists, "the command")
        await stage.answered()
        assert file.read_text() == "ran\n"
        await stage.paste(str(image))
        await stage.shows("with shot.png")
        await send(stage, "say seen")
        await stage.shows("› say seen", "1 image")
        await stage.until(
            lambda: "'type': 'image'" in str([one.body["messages"] for one in models.requests]),
            "the image at the model",
        )

    chat(daemon, play, cwd=str(workspace), size=(120, 40))

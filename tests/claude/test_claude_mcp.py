"""Claude Code as a program of its own, with the tools of the daemon over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import Gateway, turn
from loops import ON_ONE_LOOP

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

SERVERS = {
    "mcpServers": {
        "gateway": {
            "type": "http",
            "url": "${AGENTCTL_URL}/mcp",
            "headers": {"Authorization": "Bearer ${AGENTCTL_AUTH_TOKEN}"},
        }
    }
}


@pytest.fixture
def gateway(tmp_path: Path, claude: str, env: dict[str, str]) -> Iterator[Gateway]:
    directory = tmp_path / "gateway"
    directory.mkdir()
    arguments = ["-p", "--strict-mcp-config", f"--mcp-config={json.dumps(SERVERS)}"]
    argv = [claude, *arguments, "--allowedTools=mcp__gateway"]
    settings = f"argv = {json.dumps(argv)}"
    one = Gateway(
        directory, "", Path(env["HOME"]), name="plain", env=env, runner="command", settings=settings
    )
    yield one
    one.stop()


async def test_a_claude_of_the_command_runner_has_the_tools(
    gateway: Gateway, workspace: Path
) -> None:
    """With the token of its run; another token is refused (403)."""
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, "mcp gateway.session_list\nrelay")
    assert run.result is not None, run.error
    assert session.id in run.result.text

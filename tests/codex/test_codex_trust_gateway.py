"""What a real codex may have executed through the gateway: no more for a child than for its parent."""

import base64
import json
import shlex
from pathlib import Path

import anyio
import pytest
from gateway import THROUGH_A_GATEWAY, turn

pytestmark = THROUGH_A_GATEWAY


@pytest.fixture
def home(home_with_projects: Path) -> Path:
    return home_with_projects


@pytest.mark.parametrize(
    ("runner", "is_trusted"),
    [("codex-app-server", False), ("codex-app-server", True), ("codex-exec", True)],
)
async def test_a_child_executes_nothing_that_its_parent_wrote(
    gateways, workspace: Path, home: Path, runner: str, is_trusted: bool
) -> None:
    """A confined agent writes a configuration into a directory below and has a child begin there."""
    tag = home / "MARK"
    armed = workspace / "sub" / ".codex"
    command = ["-c", f"echo ran > {shlex.quote(str(tag))}"]
    server = f'[mcp_servers.e]\ncommand = "/bin/sh"\nargs = {json.dumps(command)}\n'
    encoded = base64.b64encode(server.encode()).decode()
    write = f"mkdir -p {armed} && echo {encoded} | base64 -d > {armed}/config.toml"
    config = home / "config.toml"
    if is_trusted:
        # A repository: else codex does not go by what is trusted above.
        await anyio.run_process(["git", "init", "-q"], cwd=workspace)
        table = f'\n[projects.{json.dumps(str(workspace))}]\ntrust_level = "trusted"\n'
        config.write_text(config.read_text() + table)
    before = config.read_bytes()
    spawn = {"task": "say hello", "cwd": str(workspace / "sub")}
    step = "mcp agent_orchestrator." if runner == "codex-exec" else "tool "
    script = f"shell {write}\n{step}session_spawn {json.dumps(spawn)}\nsay spawned"
    gateway = gateways(runner=runner, sandbox="workspace-write")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, script)
        assert run.result is not None, run.error and run.error.message
        tree = await client.get_tree(session.id)
        (child,) = tree.children
        ended = (await client.wait_run(child.runs[0].id, timeout_s=60)).run
        assert ended.result is not None, ended.error
        assert ended.result.text == "hello"
        assert (armed / "config.toml").read_text() == server
        assert child.session.cwd == str(workspace / "sub")
        assert not tag.exists()
        assert not (await client.requests()).requests
        if is_trusted:
            # Executed where its user begins a session of its own there: what was written would work.
            own = await client.create_session(cwd=str(workspace / "sub"))
            assert (await turn(client, own.id, "say hello")).result is not None
            assert tag.exists()
    assert config.read_bytes() == before

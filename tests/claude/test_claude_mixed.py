"""Trees in which codex and Claude Code work together, each with its own scripted model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import PATIENCE_S, Gateway, turn
from loops import ON_ONE_LOOP
from model_server import ModelServer, codex_env, write_codex_home
from real_agents import required

from agent_orchestrator import RunStatus

pytestmark = [pytest.mark.anyio, pytest.mark.claude, pytest.mark.codex, ON_ONE_LOOP]

ASKS = "shell sh -c 'echo ran > ran'\nsay done"
"""A script of Claude Code's model, with a command that it asks about."""

PREFIX = {"codex": "tool ", "claude": "mcp agent_orchestrator."}
"""How the model of each calls a tool of ours."""


@pytest.fixture
def gateway(tmp_path: Path, claude: str, env: dict[str, str]) -> Iterator[Gateway]:
    codex = required("codex")
    directory = tmp_path / "gateway"
    directory.mkdir()
    with ModelServer() as models:
        home = write_codex_home(tmp_path / "codex", models.port)
        values = ", ".join(f"{key} = {json.dumps(one)}" for key, one in codex_env(home).items())
        second = (
            f"\n[providers.codex]\nrunner = 'codex-app-server'\ncommand = {json.dumps(codex)}\n"
            f"env = {{ set = {{ {values} }} }}\n[routing]\ndefault = 'claude'"
        )
        one = Gateway(
            directory,
            claude,
            Path(env["HOME"]),
            name="claude",
            env=env,
            runner="claude",
            sandbox="workspace-write",
            settings=second,
        )
        yield one
        one.stop()


def script(parent: str, child: str, task: str) -> str:
    """Return the script of a parent that spawns a child, approves what it asks, and waits for it."""
    call = PREFIX[parent]
    spawn = json.dumps({"task": task, "provider": child})
    return "\n".join(
        [
            f"{call}session_spawn {spawn}",
            f'{call}session_wait {{"run_id": "<0.run.id>", "until": "attention"}}',
            f'{call}request_resolve {{"request_id": "<1.request.id>", "decision": "approve"}}',
            f'{call}session_wait {{"run_id": "<0.run.id>", "until": "terminal"}}',
            "relay",
        ]
    )


@pytest.mark.parametrize(("parent", "child"), [("codex", "claude"), ("claude", "codex")])
async def test_a_parent_decides_what_a_child_of_another_kind_asks(
    gateway: Gateway, workspace: Path, tmp_path: Path, parent: str, child: str
) -> None:
    outside = Path("/var/tmp") / f"mixed-{os.getpid()}-{parent}"
    task = ASKS if child == "claude" else f"escalate touch {outside}\nsay done"
    made = workspace / "ran" if child == "claude" else outside
    try:
        async with gateway.client() as client:
            session = await client.create_session(cwd=str(workspace), provider=parent)
            run = await turn(client, session.id, script(parent, child, task))
            (request,) = (await client.requests()).requests
            tree = await client.get_tree(session.id)
        assert run.result is not None, run.error
        assert "done" in run.result.text
        assert (request.decision, request.decided_by) == ("approve", run.id)
        assert [one.session.provider for one in tree.children] == [child]
        assert made.exists()
    finally:
        outside.unlink(missing_ok=True)


@pytest.mark.parametrize(("parent", "child"), [("codex", "claude"), ("claude", "codex")])
async def test_a_cancel_reaches_a_child_of_another_kind(
    gateway: Gateway, workspace: Path, parent: str, child: str
) -> None:
    call = PREFIX[parent]
    spawn = json.dumps({"task": "hang", "provider": child})
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace), provider=parent)
        prompt = f'{call}session_spawn {spawn}\n{call}session_wait {{"run_id": "<0.run.id>"}}'
        sent = await client.send_message(session.id, prompt)
        assert sent.run is not None
        async with client.events(session.id, follow=True) as events:
            async for event in events:
                if event.event_type == "child.spawned":
                    child_run = event.data["run_id"]
                    break
        await client.cancel_run(sent.run.id)
        ended = [
            (await client.wait_run(one, timeout_s=PATIENCE_S)).run.status
            for one in (sent.run.id, child_run)
        ]
    assert ended == [RunStatus.CANCELED, RunStatus.CANCELED]

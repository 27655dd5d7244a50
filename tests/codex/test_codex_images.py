"""Images through a daemon and agentctl to the real codex."""

import signal
from pathlib import Path

import anyio
import pytest
from gateway import PATIENCE_S, THROUGH_A_GATEWAY, Gateways, by_command_line
from model_server import ModelServer
from pictures import BLUE, RED

from agent_orchestrator import RunStatus
from agent_orchestrator.user_state import user_state

pytestmark = THROUGH_A_GATEWAY


def files() -> list[Path]:
    """Return what runs have in the state directory, which the daemon shares with its tests."""
    state = user_state()
    assert state is not None
    return [*state.runs.glob("*/*")]


@pytest.mark.parametrize("runner", ["codex-exec", "codex-app-server"])
async def test_images_survive_a_killed_daemon_and_are_removed_with_their_run(
    gateways: Gateways, models: ModelServer, workspace: Path, tmp_path: Path, runner: str
) -> None:
    gateway = gateways("--max-concurrency", "1", runner=runner, sandbox="workspace-write")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        held = await client.send_message(session.id, "note begun\nhang", images=[RED.data])
        queued = await client.send_message(session.id, "say after", images=[BLUE.data])
        assert held.run is not None
        assert queued.run is not None
        with anyio.fail_after(PATIENCE_S):
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.data.get("text") == "begun":
                        break
    gateway.daemon.signal(signal.SIGKILL)
    gateway.daemon.wait()
    assert [path.read_bytes() for path in files()] == [RED.data] * (runner == "codex-exec")
    gateway.start()
    assert files() == []
    async with gateway.client() as client:
        for run in (held.run, queued.run):
            ended = (await client.wait_run(run.id, timeout_s=PATIENCE_S)).run
            assert ended.status is RunStatus.COMPLETED, ended.error
        assert models.requests[-1].images == [RED.data, BLUE.data]
    (tmp_path / "red, or so.dat").write_bytes(RED.data)
    (tmp_path / "blue").symlink_to(tmp_path / "blue.bin")
    (tmp_path / "blue.bin").write_bytes(BLUE.data)
    told = await by_command_line(
        gateway.daemon.url, "ask", "say seen", "--cwd", str(workspace),
        "--image", str(tmp_path / "red, or so.dat"), "--image", str(tmp_path / "blue"),
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (0, "seen\n"), told.stderr
    assert models.requests[-1].images == [RED.data, BLUE.data]
    assert files() == []

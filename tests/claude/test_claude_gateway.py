"""Claude Code behind agentd: approvals, steering, interrupts, children, and a daemon that is killed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from gateway import PATIENCE_S, Gateway, by_command_line, family, turn
from loops import ON_ONE_LOOP
from messages_server import MessagesServer
from model_server import acknowledgement
from serving import agentd

from agent_orchestrator import Client, connect
from agent_orchestrator.domain.errors import Conflict

pytestmark = [pytest.mark.anyio, pytest.mark.claude, ON_ONE_LOOP]

COMMAND = "shell sh -c 'echo ran > ran'\nsay done"


@pytest.fixture
def gateways(tmp_path: Path, claude: str, env: dict[str, str]) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(*arguments: str, **settings: str) -> Gateway:
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        settings = {"sandbox": "workspace-write", **settings}
        home = Path(env["HOME"])
        one = Gateway(
            directory, claude, home, *arguments, name="claude", env=env, runner="claude", **settings
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def gateway(gateways: Callable[..., Gateway]) -> Gateway:
    return gateways()


def agents(daemon: int) -> list[psutil.Process]:
    return [process for process, command in family(daemon).items() if "stream-json" in command]


async def until(client: Client, session_id: str, event_type: str, after: int = 0) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session_id, cursor=after, follow=True) as events:
            async for event in events:
                if event.event_type == event_type:
                    return


async def test_the_daemon_status_shows_version_login_and_capabilities(gateway: Gateway) -> None:
    async with gateway.client() as client:
        (found,) = (await client.status()).providers
    assert (found.name, found.available, found.version) == ("claude", True, "2.1.332")
    assert found.logged_in
    assert found.capabilities.steer
    assert found.capabilities.ask
    done = await by_command_line(gateway.daemon.url, "doctor")
    assert "ANTHROPIC_API_KEY: its agents' commands do not get it, but can read it" in done.stdout


async def test_an_installed_claude_is_a_provider_without_configuration(
    tmp_path: Path, claude: str, env: dict[str, str], workspace: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "claude").symlink_to(claude)
    path = f"{programs}:/usr/bin:/bin"
    with agentd(tmp_path, env={**env, "PATH": path}) as daemon:
        async with connect(daemon.url) as client:
            found = {one.name: one for one in (await client.status()).providers}
            assert found["claude"].available
            session = await client.create_session(cwd=str(workspace), provider="claude")
            run = await turn(client, session.id, "say hello")
    assert run.result is not None, run.error
    assert run.result.text == "hello"


@pytest.mark.parametrize(
    ("settings", "status", "happens"),
    [
        ('approvals = "deny"', "denied", False),
        ('approvals = "allow"', "approved", True),
    ],
    ids=["deny", "allow"],
)
async def test_an_approval_policy_decides_without_waiting(
    gateways: Callable[..., Gateway], workspace: Path, settings: str, status: str, happens: bool
) -> None:
    gateway = gateways(settings=settings)
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, COMMAND)
        (request,) = (await client.requests()).requests
    assert run.result is not None, run.error
    assert (request.kind, request.status) == ("approval_request", status)
    assert (workspace / "ran").exists() is happens


async def test_an_approval_after_the_agent_was_stopped_reaches_the_next_process(
    gateways: Callable[..., Gateway], workspace: Path, models: MessagesServer
) -> None:
    gateway = gateways("--park-after-s", "0")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, COMMAND)
        assert sent.run is not None
        with anyio.fail_after(PATIENCE_S):
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.event_type == "run.waiting" and event.data.get("parked"):
                        break
        assert agents(gateway.daemon.pid) == []
        (asked,) = (await client.requests()).requests
    gateway.stop()
    gateway.start()
    async with gateway.client() as client:
        await client.resolve_request(asked.id, "approve")
        ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
        with pytest.raises(Conflict):
            await client.resolve_request(asked.id, "deny")
    assert ended.run.result is not None, ended.run.error
    told = models.requests[-1].prompt
    assert ended.run.result.text == acknowledgement(told)
    assert "sh -c 'echo ran > ran'" in told
    assert not (workspace / "ran").exists()

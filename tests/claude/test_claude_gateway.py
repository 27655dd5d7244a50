"""Claude Code behind agentd: approvals, steering, interrupts, children, and a daemon that is killed."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from claude_runs import with_argument
from gateway import PATIENCE_S, Gateway, by_command_line, family, turn
from loops import ON_ONE_LOOP
from messages_server import MessagesServer
from model_server import acknowledgement
from serving import agentd

from agent_orchestrator import Client, RunStatus, connect
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


async def test_the_status_shows_it(gateway: Gateway) -> None:
    async with gateway.client() as client:
        (found,) = (await client.status()).providers
    assert (found.name, found.available, found.version) == ("claude", True, "2.1.332")
    assert found.logged_in
    assert found.capabilities.steer
    assert found.capabilities.ask
    done = await by_command_line(gateway.daemon.url, "doctor")
    assert "its agents' commands can read ANTHROPIC_API_KEY" in done.stdout


async def test_it_is_a_provider_without_configuration(
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
async def test_a_policy_decides_at_once(
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


async def test_an_approval_that_comes_after_its_agent_was_stopped_is_told_to_the_next(
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


async def test_a_message_steers_and_another_interrupts(
    gateways: Callable[..., Gateway], workspace: Path, models: MessagesServer
) -> None:
    gateway = gateways(sandbox="danger-full-access")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await client.send_message(
            session.id,
            "shell while ! test -e go; do sleep 0.1; done\nshell tail -f /dev/null -s 79",
        )
        await until(client, session.id, "tool.started")
        steered = await client.send_message(session.id, "one more thing", when_busy="steer")
        assert first.run is not None
        assert steered.run is not None
        assert steered.run.id == first.run.id
        await anyio.sleep(0.5)  # Claude Code reads its input while the command runs
        (workspace / "go").touch()
        with anyio.fail_after(PATIENCE_S):
            while not with_argument("tail -f /dev/null -s 79"):
                await anyio.sleep(0.02)
        assert "one more thing" in str(models.requests[-1].body["messages"])
        last = await client.send_message(session.id, "say last", when_busy="interrupt")
        assert last.run is not None
        ended = await client.wait_run(last.run.id, timeout_s=PATIENCE_S)
        interrupted = await client.get_run(first.run.id)
    assert interrupted.status is RunStatus.CANCELED
    assert ended.run.result is not None, ended.run.error
    assert ended.run.result.text == "last"
    assert with_argument("tail -f /dev/null -s 79") == []
    assert len(agents(gateway.daemon.pid)) == 1


@pytest.mark.parametrize(
    ("script", "stage"),
    [
        ("hang", "asked"),
        ("stream 1000 50 word", "agent.message.delta"),
        ("shell tail -f /dev/null -s 80", "tool.started"),
        (COMMAND, "request.created"),
    ],
)
async def test_nothing_outlives_a_killed_daemon_and_its_run_goes_on(
    gateways: Callable[..., Gateway],
    workspace: Path,
    models: MessagesServer,
    script: str,
    stage: str,
) -> None:
    sandbox = "workspace-write" if script == COMMAND else "danger-full-access"
    gateway = gateways(sandbox=sandbox)
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        await turn(client, session.id, "say first")
        sent = await client.send_message(session.id, script)
        assert sent.run is not None
        if stage == "asked":
            await anyio.to_thread.run_sync(models.wait_for_prompt, script)
        else:
            after = (await client.get_session(session.id)).last_seq
            await until(client, session.id, stage, after - 1)
        [process] = agents(gateway.daemon.pid)
        if stage == "tool.started":
            with anyio.fail_after(PATIENCE_S):
                while not with_argument("tail -f /dev/null -s 80"):
                    await anyio.sleep(0.02)
    gateway.daemon.signal(signal.SIGKILL)
    gateway.daemon.wait()
    with anyio.fail_after(10):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.02)
        while with_argument("tail -f /dev/null -s 80"):
            await anyio.sleep(0.02)
    gateway.start()
    async with gateway.client() as client:
        if stage == "asked":
            await anyio.to_thread.run_sync(models.wait_for, len(models.requests) + 1)
        log = [event async for event in client.events(session.id)]
        assert "run.recovered" in [event.event_type for event in log]
        if stage in ("tool.started", "agent.message.delta"):
            ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
            assert ended.run.status is RunStatus.COMPLETED, ended.run.error
            assert "This is the same conversation" in models.requests[-1].prompt
        elif stage == "request.created":
            (request,) = (await client.requests()).requests
            await client.resolve_request(request.id, "approve")
            ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
            assert ended.run.status is RunStatus.COMPLETED, ended.run.error
        else:
            await client.cancel_run(sent.run.id)
            ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
            assert ended.run.status is RunStatus.CANCELED
        thread = (await client.get_session(session.id)).threads["claude"]
        assert ended.run.thread_id == thread
        after_all = await turn(client, session.id, "say after")
    assert after_all.result is not None
    assert after_all.result.text == "after"
    assert "say first" in models.requests[-1].texts


async def test_a_killed_agent_fails_its_run_and_the_session_goes_on(
    gateway: Gateway, workspace: Path, models: MessagesServer
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        await turn(client, session.id, "say first")
        sent = await client.send_message(session.id, "say before\nshell true\nhang")
        assert sent.run is not None
        await anyio.to_thread.run_sync(models.wait_for, 3)
        [process] = agents(gateway.daemon.pid)
        process.kill()
        ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
        assert ended.run.error is not None
        assert ended.run.error.code == "agent_crashed"
        last = await turn(client, session.id, "say last")
    assert last.result is not None
    assert last.result.text == "last"
    assert "say first" in models.requests[-1].texts

"""The app-server runner behind agentd: approvals, steering, interrupts, and a daemon that is killed."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from gateway import PATIENCE_S, THROUGH_A_GATEWAY, Gateway, family, turn
from model_server import ModelServer, acknowledgement

from agent_orchestrator import Client, RunStatus
from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.engine.requests import MAX_PENDING

pytestmark = THROUGH_A_GATEWAY

Gateways = Callable[..., Gateway]


@pytest.fixture
def gateway(tmp_path: Path, codex: str, home: Path) -> Iterator[Gateway]:
    directory = tmp_path / "gateway"
    directory.mkdir()
    one = Gateway(directory, codex, home, runner="codex-app-server", sandbox="workspace-write")
    yield one
    one.stop()


async def until(client: Client, session_id: str, event_type: str, after: int = 0) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with client.events(session_id, cursor=after, follow=True) as events:
            async for event in events:
                if event.event_type == event_type:
                    return


def app_servers(daemon: int) -> list[psutil.Process]:
    return [process for process, command in family(daemon).items() if "app-server" in command]


def files_with(directory: Path, what: bytes) -> list[Path]:
    """Return the files with something that begins so: codex logs the likes of ``start_task``."""
    files = [path for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    found = re.compile(rb"(?<![A-Za-z0-9])" + re.escape(what))
    return [path for path in files if found.search(path.read_bytes())]


@pytest.mark.parametrize(
    ("settings", "status", "happens"),
    [
        ('approvals = "deny"', "denied", False),
        ('approvals = "allow"', "approved", True),
    ],
    ids=["deny", "allow"],
)
async def test_an_approval_policy_decides_without_waiting(
    gateways: Gateways,
    workspace: Path,
    outside: Path,
    settings: str,
    status: str,
    happens: bool,
) -> None:
    file = outside / "made"
    gateway = gateways(runner="codex-app-server", sandbox="workspace-write", settings=settings)
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, f"escalate touch {file}\nsay done")
        (request,) = (await client.requests()).requests
        log = [event async for event in client.events(session.id)]
    assert run.result is not None, run.error
    assert run.result.text == "done"
    assert (request.kind, request.status) == ("approval_request", status)
    assert file.exists() is happens
    (command,) = (event.data for event in log if event.event_type == "tool.completed")
    assert command["status"] == ("completed" if happens else "declined")


async def test_a_request_that_cannot_be_opened_is_declined_and_the_agent_goes_on(
    gateway: Gateway, workspace: Path, outside: Path
) -> None:
    """As many questions of the run are open already as one may have."""
    file = outside / "made"
    question = {"request_kind": "input_request", "wait": False}
    questions = [json.dumps({"text": f"{number}?", **question}) for number in range(MAX_PENDING)]
    calls = "\n& ".join(f"tool session_reply_parent {one}" for one in questions)
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, f"{calls}\nescalate touch {file}\nsay done")
        log = [event async for event in client.events(session.id)]
    assert run.result is not None, run.error
    assert run.result.text == "done"
    assert not file.exists()
    assert [event.event_type for event in log].count("request.created") == MAX_PENDING
    [problem] = [event.data["message"] for event in log if event.event_type == "run.error"]
    assert "nobody could be asked" in problem
    assert str(MAX_PENDING) in problem
    [command] = [
        event.data
        for event in log
        if event.event_type == "tool.completed" and event.data["kind"] == "command"
    ]
    assert command["status"] == "declined"


async def test_a_thread_that_exec_began_has_the_tools_too(
    gateways: Gateways, workspace: Path, home: Path, models: ModelServer
) -> None:
    """Each run with its own token, also while the process stays; and back again."""
    list_tool = "mcp agent_orchestrator.session_list {}\nrelay"
    spawn = 'mcp agent_orchestrator.session_spawn {"task": "say from the child"}\n'
    wait = 'mcp agent_orchestrator.session_wait {"run_id": "<0.run.id>"}\nrelay'
    gateway = gateways(runner="codex-exec", sandbox="workspace-write")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, "say first")
    gateway.stop()
    gateway.start("codex-app-server")
    async with gateway.client() as client:
        runs = [await turn(client, session.id, spawn + wait) for _ in range(2)]
        assert len(app_servers(gateway.daemon.pid)) == 1
        sent = await client.send_message(session.id, f"shell sleep 300\n{list_tool}")
        assert sent.run is not None
        after = (await client.get_session(session.id)).last_seq
        await until(client, session.id, "tool.started", after)
        last = await client.send_message(session.id, list_tool, when_busy="interrupt")
        assert last.run is not None
        runs.append((await client.wait_run(last.run.id, timeout_s=PATIENCE_S)).run)
        tree = await client.get_tree(session.id)
        log = [event async for event in client.events(session.id)]
    for run in runs:
        assert run.result is not None, run.error
        assert run.thread_id == first.thread_id
    assert all("from the child" in run.result.text for run in runs[:2] if run.result)
    assert runs[2].result is not None
    assert session.id in runs[2].result.text
    assert [child.runs[0].parent_run_id for child in tree.children] == [one.id for one in runs[:2]]
    tools = [event.data for event in log if event.event_type == "tool.completed"]
    assert {one["kind"] for one in tools if one["status"] == "completed"} == {"mcp"}
    assert not [event.data for event in log if event.event_type == "request.created"]
    assert files_with(home, b"art_") == []  # the token of no run
    gateway.stop()
    gateway.start("codex-exec")
    async with gateway.client() as client:
        again = await turn(client, session.id, list_tool)
    assert again.result is not None, again.error
    assert session.id in again.result.text
    assert again.thread_id == first.thread_id


async def test_a_thread_that_an_app_server_began_has_the_tools_with_exec_and_back(
    gateways: Gateways, workspace: Path
) -> None:
    gateway = gateways(runner="codex-app-server", sandbox="workspace-write")
    scripts = {
        "codex-app-server": "tool session_list {}\nrelay",
        "codex-exec": "mcp agent_orchestrator.session_list {}\nrelay",
    }
    session_id = ""
    threads, kinds = set(), []
    for runner in ("codex-app-server", "codex-exec", "codex-app-server"):
        gateway.stop()
        gateway.start(runner)
        async with gateway.client() as client:
            if not session_id:
                session_id = (await client.create_session(cwd=str(workspace))).id
            run = await turn(client, session_id, scripts[runner])
            kinds = [
                event.data["kind"]
                async for event in client.events(session_id)
                if event.event_type == "tool.completed"
            ]
        assert run.result is not None, run.error
        assert session_id in run.result.text
        threads.add(run.thread_id)
    assert len(threads) == 1
    assert kinds == ["function", "mcp", "function"]


async def test_a_prompt_that_codex_had_accepted_and_not_recorded_is_delivered_again(
    tmp_path: Path, home: Path, workspace: Path
) -> None:
    """After the daemon and codex were killed in that moment; codex 0.169 has lost it then."""
    directory = tmp_path / "fake"
    directory.mkdir()
    fake = directory / "codex"
    program = Path(__file__).parent / "fake_appserver.py"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    fake.chmod(0o755)
    tag = directory / "accepted"
    variables = {"FAKE_FAULT": "not-taken-yet", "FAKE_MARK": str(tag)}
    one = Gateway(directory, str(fake), home, runner="codex-app-server", **variables)
    async with one.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, "hello")
        with anyio.fail_after(PATIENCE_S):
            while not tag.exists():
                await anyio.sleep(0.02)
    one.daemon.signal(signal.SIGKILL)
    one.daemon.wait()
    one.start()
    async with one.client() as client:
        assert sent.run is not None
        ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
        messages = (await client.list_messages(session.id)).messages
    one.stop()
    assert ended.run.result is not None, ended.run.error
    assert ended.run.result.text == "hello"
    assert [message.text for message in messages] == ["hello"]


async def test_an_approval_counts_only_for_the_process_that_asked(
    gateways: Gateways, workspace: Path, outside: Path, models: ModelServer
) -> None:
    """One that was stopped meanwhile is told of it, and would have to ask again."""
    file = outside / "made"
    gateway = gateways("--park-after-s", "0", runner="codex-app-server", sandbox="workspace-write")
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, f"escalate touch {file}\nsay done")
        assert sent.run is not None
        with anyio.fail_after(PATIENCE_S):
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.event_type == "run.waiting" and event.data.get("parked"):
                        break
        (asked,) = (await client.requests()).requests
        await client.resolve_request(asked.id, "approve")
        ended = await client.wait_run(sent.run.id, timeout_s=PATIENCE_S)
        with pytest.raises(Conflict):
            await client.resolve_request(asked.id, "deny")
        requests = (await client.requests()).requests
    assert ended.run.result is not None, ended.run.error
    told = models.requests[-1].prompt
    assert ended.run.result.text == acknowledgement(told)
    assert ended.run.attempt == 2
    assert str(file) in told
    assert not file.exists()
    assert [one.id for one in requests] == [asked.id]


async def test_sessions_share_a_process_that_stays_after_an_interrupt(
    gateway: Gateway, workspace: Path
) -> None:
    async with gateway.client() as client:
        sessions = [await client.create_session(cwd=str(workspace)) for _ in range(2)]
        for session in sessions:
            await turn(client, session.id, "say first")
        [process] = app_servers(gateway.daemon.pid)
        after = (await client.get_session(sessions[0].id)).last_seq
        sent = await client.send_message(sessions[0].id, "shell sleep 300\nsay unheard")
        assert sent.run is not None
        await until(client, sessions[0].id, "tool.started", after)
        last = await client.send_message(sessions[0].id, "say last", when_busy="interrupt")
        assert last.run is not None
        ended = (await client.wait_run(last.run.id, timeout_s=PATIENCE_S)).run
        interrupted = await client.get_run(sent.run.id)
        found = app_servers(gateway.daemon.pid)
    assert interrupted.status is RunStatus.CANCELED
    assert ended.result is not None, ended.error
    assert ended.result.text == "last"
    assert found == [process]

"""The main job on the real codex: through agentd and a client, against the local model server."""

import json
import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest
from gateway import PATIENCE_S, THROUGH_A_GATEWAY, Gateway, family, marked, turn
from model_server import ModelServer

from agent_orchestrator import Client, Run, RunStatus
from agent_orchestrator.domain.errors import InvalidRequest

pytestmark = THROUGH_A_GATEWAY


async def test_what_the_agent_does_becomes_typed_events(gateway: Gateway, workspace: Path) -> None:
    script = "reason why\nshell echo hi\nadd new.txt hello\nplan [x] one; [>] two\nsay done"
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        run = await turn(client, session.id, script)
        log = [event async for event in client.events(session.id)]
    assert run.status is RunStatus.COMPLETED, run.error
    types = [event.event_type for event in log]
    for expected in (
        "thread.started",
        "agent.reasoning",
        "tool.started",
        "tool.completed",
        "file.changed",
        "plan.updated",
        "agent.message",
        "usage.updated",
    ):
        assert expected in types
    assert (workspace / "new.txt").read_text().strip() == "hello"
    shell = next(event.data for event in log if event.event_type == "tool.completed")
    assert (shell["kind"], shell["output"].strip(), shell["exit_code"]) == ("command", "hi", 0)
    assert types[-1] == "run.completed"


@pytest.mark.parametrize("prompt", ["", " \n\t", "x" * 1_000_001], ids=["empty", "blank", "long"])
async def test_prompts_that_codex_cannot_take_are_refused_with_the_field_named(
    gateway: Gateway, workspace: Path, prompt: str, models: ModelServer
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        with pytest.raises(InvalidRequest) as refusal:
            await client.send_message(session.id, prompt)
        assert set(refusal.value.details["fields"]) == {"text"}
        assert (await client.get_session(session.id)).last_seq == 1
    assert models.requests == []


@pytest.mark.parametrize(
    ("script", "sign"),
    [
        ("hang", "thread.started"),
        ("shell setsid sleep 300 & sleep 300", "tool.started"),
    ],
    ids=["thinking", "in-a-command"],
)
async def test_a_cancel_leaves_no_process(
    gateway: Gateway, workspace: Path, script: str, sign: str
) -> None:
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        sent = await client.send_message(session.id, script)
        assert sent.run is not None
        run_id = sent.run.id
        with anyio.fail_after(PATIENCE_S):
            async with client.events(session.id, follow=True) as events:
                async for event in events:
                    if event.event_type == sign:
                        break
        diagnosis = (await client.diagnose_run(run_id)).diagnostics
        assert diagnosis.active_pid in marked(run_id)
        assert diagnosis.active_pid in [process.pid for process in diagnosis.process_tree]
        assert diagnosis.codex_invocation is not None
        assert "exec" in diagnosis.codex_invocation.argv
        await client.cancel_run(run_id)
        run = (await client.wait_run(run_id, timeout_s=PATIENCE_S)).run
        assert run.status is RunStatus.CANCELED
        # Recorded only when they are gone: there is nothing to wait for here.
        assert marked(run_id) == []
        again = await turn(client, session.id, "say still here")
        assert again.status is RunStatus.COMPLETED, again.error


async def test_eight_sessions_share_four_workers(gateway: Gateway, workspace: Path) -> None:
    runs: list[Run] = []

    async def one(client: Client, number: int) -> None:
        session = await client.create_session(cwd=str(workspace))
        runs.append(await turn(client, session.id, f"shell echo {number}\nsay {number}"))

    async with gateway.client() as client, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(one, client, number)
    assert sorted(run.result.text for run in runs if run.result) == [str(n) for n in range(8)]
    spans = [(run.started_at, run.finished_at) for run in runs]
    most = max(sum(a <= start < b for a, b in spans if a and b) for start, _ in spans if start)
    assert most <= 4


async def test_the_same_key_fifty_times_at_once_makes_one_run(
    gateway: Gateway, workspace: Path, models: ModelServer
) -> None:
    ids: list[str | None] = []

    async def send(client: Client, session_id: str) -> None:
        sent = await client.send_message(session_id, "say once", idempotency_key="the-key")
        ids.append(sent.run.id if sent.run else None)

    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(send, client, session.id)
        (run_id,) = set(ids)
        assert run_id
        run = (await client.wait_run(run_id, timeout_s=PATIENCE_S)).run
        assert run.status is RunStatus.COMPLETED, run.error
        assert len((await client.list_runs(session_id=session.id)).runs) == 1
    assert len(ids) == 50
    assert len(models.requests) == 1


async def test_nothing_of_codex_outlives_a_killed_daemon_and_the_run_goes_on(
    gateway: Gateway, home: Path, workspace: Path
) -> None:
    server = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
    with (home / "config.toml").open("a") as config:
        config.write(f"[mcp_servers.echo]\ncommand = {json.dumps(server[0])}\n")
        config.write(f"args = {json.dumps(server[1:])}\nrequired = true\n")
    os.mkfifo(workspace / "begun")
    escaped = "env -i setsid sleep 300 & setsid sh -c 'echo yes > begun; exec sleep 300' &"
    async with gateway.client() as client:
        session = await client.create_session(cwd=str(workspace))
        script = f"shell trap '' INT TERM HUP; {escaped} sleep 300"
        held = await client.send_message(session.id, script)
        queued = await client.send_message(session.id, "say after")
        assert held.run is not None
        assert queued.run is not None
        with anyio.fail_after(PATIENCE_S):
            assert await anyio.to_thread.run_sync((workspace / "begun").read_text) == "yes\n"
            everything = family(gateway.daemon.pid)
            while list(everything.values()).count("sleep 300") < 3:  # each is a shell first
                await anyio.sleep(0.02)
                everything = family(gateway.daemon.pid)
    assert " ".join(server) in everything.values()
    gateway.daemon.signal(signal.SIGKILL)
    gateway.daemon.wait()
    with anyio.fail_after(45):
        while any(is_alive(process) for process in everything):
            await anyio.sleep(0.02)
    assert marked(held.run.id) == []
    gateway.start()
    async with gateway.client() as client:
        first = (await client.wait_run(held.run.id, timeout_s=PATIENCE_S)).run
        second = (await client.wait_run(queued.run.id, timeout_s=PATIENCE_S)).run
        assert (first.status, first.attempt) == (RunStatus.COMPLETED, 2), first.error
        assert second.status is RunStatus.COMPLETED, second.error
        assert first.thread_id == second.thread_id


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

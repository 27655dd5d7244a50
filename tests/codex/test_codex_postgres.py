"""The real codex through an agentd on PostgreSQL that is killed: the conversation goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
from gateway import PATIENCE_S, THROUGH_A_GATEWAY, Gateways, marked, turn

from agent_orchestrator import RunStatus

pytestmark = THROUGH_A_GATEWAY


async def test_a_conversation_survives_a_killed_daemon(
    database: Callable[[], str], gateways: Gateways, workspace: Path
) -> None:
    gateway = gateways("--store", database())
    os.mkfifo(workspace / "begun")
    async with gateway.client() as client:
        assert (await client.status()).store.backend == "postgresql"
        session = await client.create_session(cwd=str(workspace))
        first = await turn(client, session.id, "add kept.txt yes\nsay first")
        assert first.status is RunStatus.COMPLETED, first.error
        held = await client.send_message(session.id, "shell echo yes > begun; sleep 300")
        queued = await client.send_message(session.id, "say after")
        assert held.run is not None
        assert queued.run is not None
        with anyio.fail_after(PATIENCE_S):
            assert await anyio.to_thread.run_sync((workspace / "begun").read_text) == "yes\n"
    gateway.kill()
    with anyio.fail_after(45):
        while marked(held.run.id):
            await anyio.sleep(0.02)
    gateway.start()
    async with gateway.client() as client:
        resumed = (await client.wait_run(held.run.id, timeout_s=PATIENCE_S)).run
        after = (await client.wait_run(queued.run.id, timeout_s=PATIENCE_S)).run
        assert (resumed.status, resumed.attempt) == (RunStatus.COMPLETED, 2), resumed.error
        assert after.status is RunStatus.COMPLETED, after.error
        assert first.thread_id == resumed.thread_id == after.thread_id
        log = [event async for event in client.events(session.id)]
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        ends = [event.run_id for event in log if event.event_type == "run.completed"]
        assert ends == [first.id, resumed.id, after.id]
        report = await client.check_store()
        assert report.ok, report.findings


async def test_a_conversation_is_taken_over_by_another_daemon(
    database: Callable[[], str], gateways: Gateways, workspace: Path
) -> None:
    """The app-server of each daemon would keep the conversation open; only one at a time may have it."""
    url = database()
    first = gateways("--store", url, runner="codex-app-server")
    second = gateways("--store", url, runner="codex-app-server", config="second.toml")
    os.mkfifo(workspace / "begun")
    async with first.client() as here, second.client() as there:
        session = await here.create_session(cwd=str(workspace))
        runs = [await turn(here, session.id, "say one")]
        runs += [
            await turn(there, session.id, "say two"),
            await turn(here, session.id, "say three"),
        ]
        workers = {(run.worker_id or "").partition("/")[0] for run in runs}
        assert len(workers) == 1
        assert workers == {(await here.status()).daemon_id}
        held = await there.send_message(session.id, "shell echo yes > begun; sleep 300")
        assert held.run is not None
        with anyio.fail_after(PATIENCE_S):
            assert await anyio.to_thread.run_sync((workspace / "begun").read_text) == "yes\n"
        first.kill()
        resumed = (await there.wait_run(held.run.id, timeout_s=PATIENCE_S)).run
        assert (resumed.status, resumed.attempt) == (RunStatus.COMPLETED, 2), resumed.error
        after = await turn(there, session.id, "say after")
        assert after.status is RunStatus.COMPLETED, after.error
        assert {run.thread_id for run in (*runs, resumed, after)} == {runs[0].thread_id}
        log = [event async for event in there.events(session.id)]
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        report = await there.check_store()
        assert report.ok, report.findings
    first.start()

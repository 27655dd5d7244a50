"""The check of a store: it finds changed rows and does not report work in progress."""

from pathlib import Path

import anyio
import apsw
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Forbidden
from agent_orchestrator.engine import EngineConfig, Orchestrator, ProviderConfig, Routing
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.store import Maintaining
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.scripted import PROVIDER, ScriptedRunner

pytestmark = pytest.mark.anyio


def test_maintenance_is_optional_for_a_store(tmp_path: Path) -> None:
    assert isinstance(SqliteStore(tmp_path / "data.db"), Maintaining)
    assert not isinstance(MemoryStore(), Maintaining)


async def a_history(client: Client) -> None:
    for _ in range(3):
        session = await client.create_session(provider=PROVIDER)
        for _ in range(2):
            sent = await client.send_message(session.id, "hello")
            assert sent.run is not None
            await client.wait_run(sent.run.id, timeout_s=60)
    await client.update_session(session.id, status="closed")
    manual = await client.create_session(provider="manual")
    run = (await client.create_run(manual.id)).id
    await client.transition_run(run, "running")
    await client.reply_parent(run, "may I?", request_kind="approval_request", wait=True)


@ON_ONE_LOOP
@pytest.mark.parametrize(
    ("tampering", "finding"),
    [
        ("UPDATE runs SET status = 'failed' WHERE status = 'completed'", "is failed, attempt 1"),
        ("UPDATE runs SET attempt = 2", "attempt 2, but its log says"),
        ("UPDATE runs SET status = 'queued' WHERE status = 'completed'", "has 1 terminal events"),
        ("UPDATE sessions SET last_seq = last_seq + 1", "its log ends with"),
        ("UPDATE sessions SET status = 'open'", "its log says closed"),
        ("UPDATE requests SET status = 'approved'", "its log says pending"),
        (
            "UPDATE events SET seq = seq + 100 WHERE event_type = 'run.completed'",
            "in its log, event",
        ),
        (
            "UPDATE events SET event_type = 'run.completed' WHERE event_type = 'run.started'",
            "events after its end",
        ),
        (
            "DROP TRIGGER audit_unchanged; UPDATE audit SET target = 'run_x'",
            "audit: entry 1 was changed after it was written",
        ),
    ],
)
async def test_check_finds_rows_that_were_changed(
    tmp_path: Path, tampering: str, finding: str
) -> None:
    path = tmp_path / "data.db"
    with anyio.fail_after(60):
        async with open_embedded(path, runners=[ScriptedRunner()]) as client:
            await a_history(client)
            good = await client.check_store()
            assert (good.ok, good.findings, good.sessions, good.runs) == (True, (), 4, 7)
            connection = apsw.Connection(str(path))
            connection.execute(tampering)
            connection.close()
            found = await client.check_store()
    assert not found.ok
    assert any(finding in one for one in found.findings), found.findings


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_check_reports_nothing_while_runs_are_in_progress(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_orchestrator.engine.maintenance.ROWS_PAGE", 5)
    where = ":memory:" if kind == "memory" else str(tmp_path / "data.db")
    with anyio.fail_after(60):
        async with (
            open_embedded(where, runners=[ScriptedRunner()], max_concurrency=4) as client,
            anyio.create_task_group() as tasks,
        ):
            sessions = [await client.create_session(provider=PROVIDER) for _ in range(4)]
            sent = 0

            async def talk(session_id: str) -> None:
                nonlocal sent
                while True:
                    accepted = await client.send_message(session_id, "hello")
                    sent += 1
                    assert accepted.run is not None
                    await client.wait_run(accepted.run.id, timeout_s=60)

            for session in sessions:
                tasks.start_soon(talk, session.id)
            while sent < 32:  # more than one page of runs in a session
                found = await client.check_store()
                assert found.findings == ()
            tasks.cancel_scope.cancel()


async def test_check_and_backup_are_for_administrators_only(tmp_path: Path) -> None:
    config = EngineConfig(
        providers={PROVIDER: ProviderConfig(ScriptedRunner(), PROVIDER)},
        routing=Routing(PROVIDER),
        host=this_host(),
    )
    async with MemoryStore() as store, Orchestrator(store, config) as engine:
        client = Client(engine.acting_as(Principal("somebody")))
        with pytest.raises(Forbidden):
            await client.check_store()
        with pytest.raises(Forbidden):
            await client.back_up(tmp_path / "copy.db")

"""What an agent can make grow stays bounded, and is found without passing all that was before."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_orchestrator import Client, Orchestrator, ProviderConfig, Routing, open_embedded
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.audit import first_break
from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.engine import EngineConfig
from agent_orchestrator.mcp.tools import TOOLS, Agent, use
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.view import SqliteView
from agent_orchestrator.testing import ScriptedRunner

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def config() -> EngineConfig:
    providers = {"scripted": ProviderConfig(ScriptedRunner(), "scripted")}
    return EngineConfig(providers=providers, routing=Routing("scripted"))


async def test_refusals_that_repeat_are_counted_not_listed() -> None:
    async with MemoryStore() as store, Orchestrator(store, config()) as engine:
        client = Client(engine)
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        agent = Client(engine.acting_as(Principal.of_run(run.id, 1, session.id)))
        before = len((await client.list_audit()).entries)
        for number in range(1_000):
            with pytest.raises(NotFound):
                await agent.get_session(f"ses_{number}")
        entries = (await client.list_audit()).entries[before:]
        assert [entry.detail.get("times", 1) for entry in entries] == [2**n for n in range(10)]
        with pytest.raises(NotFound):  # another call is another entry
            await agent.get_run("run_none")
        trail = (await client.list_audit()).entries
        assert len(trail) == before + 11
        assert first_break(trail) is None


async def test_a_question_is_found_again_without_all_that_was_asked(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "a.db", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        agent = Agent(client, run.id, session.id, hold_s=0)

        async def ask(text: str) -> dict[str, Any]:
            given = {"text": text, "request_kind": "input_request", "wait": False}
            answer, is_error = await use(agent, TOOLS["session_reply_parent"], given)
            assert not is_error, answer
            return answer

        first = await ask("the first")
        assert (await ask("the first"))["request"]["id"] == first["request"]["id"]
        await client.resolve_request(first["request"]["id"], "answer", text="yes")
        told = await ask("the first")
        assert (told["request"]["id"], told["answer"]) == (first["request"]["id"], "yes")
        again = await ask("the first")
        assert again["request"]["id"] != first["request"]["id"]
        for number in range(40):
            asked = await ask(f"question {number}")
            await client.resolve_request(asked["request"]["id"], "deny")
            await ask(f"question {number}")
        # Another process of the agent finds what is open.
        agent = Agent(client, run.id, session.id, hold_s=0)
        assert (await ask("the first"))["request"]["id"] == again["request"]["id"]


def plan(connection: apsw.Connection, sql: str, values: Any) -> str:
    rows = connection.execute("EXPLAIN QUERY PLAN " + sql, values)
    return "; ".join(row[3] for row in rows)


async def test_no_look_of_an_attempt_searches_a_log_or_closed_questions(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "a.db", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
    plans: list[str] = []
    async with SqliteStore(tmp_path / "a.db") as store:

        def look(view: Any) -> None:
            assert isinstance(view, SqliteView)
            execute = view._execute

            def explained(sql: str, values: Any = ()) -> Any:
                plans.append(plan(view._connection, sql, values))
                return execute(sql, values)

            view._execute = explained  # type: ignore[assignment]
            try:
                view.last_event_at(run)
                view.last_output_at(run)
                view.last_output_at(run, attempt=1)
                view.requests(run_id=run.id, status="pending", limit=64)
                view.requests(session_id=session.id, status="pending", limit=64)
                view.run_count(session.id)
                view.child_count(session.id)
                view.waiting_messages(session.id, limit=9)
            finally:
                view._execute = execute

        await store.read(look)
    print(*plans, sep="\n")
    assert len(plans) >= 8
    assert not [one for one in plans if "SCAN" in one or "events" in one]
    found = [one for one in plans if "SEARCH requests" in one]
    assert found
    # Those that are closed are passed over by the index; what it finds is read by its id.
    assert all("status=?" in one or "(id=?)" in one for one in found)

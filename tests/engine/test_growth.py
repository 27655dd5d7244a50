"""Records that an agent can add are bounded, and are found without a scan of older ones."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest
from attrs import define
from loops import ON_ONE_LOOP

from agent_orchestrator import Client, Orchestrator, ProviderConfig, Routing, open_embedded
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.audit import first_break
from agent_orchestrator.domain.errors import Conflict, NotFound, Unavailable
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.domain.tokens import NAMED_TOKEN_PREFIX, token_hash
from agent_orchestrator.engine import EngineConfig, requests, retention
from agent_orchestrator.hosts import this_host
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.view import SqliteView
from agent_orchestrator.testing import ScriptedRunner
from agent_orchestrator.testing.stores.samples import a_record
from agent_orchestrator.tools.agent import Agent, calls_over
from agent_orchestrator.tools.toolbox import AgentTools

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@define
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


def config(clock: Clock | None = None) -> EngineConfig:
    providers = {"scripted": ProviderConfig(ScriptedRunner(), "scripted")}
    return EngineConfig(
        providers=providers,
        routing=Routing("scripted"),
        clock=clock or (lambda: datetime.now(UTC)),
        host=this_host(),
    )


@define
class Kept:
    """A store that outlives its engines."""

    store: Store

    @asynccontextmanager
    async def engine(self, clock: Clock | None = None) -> AsyncIterator[Orchestrator]:
        async with Orchestrator(self.store, config(clock)) as engine:
            yield engine

    async def keys(self, caller: str, call: str, count: int) -> list[int]:
        """Return which of the keys "0", "1" … are on record."""
        return await self.store.read(
            lambda view: [n for n in range(count) if view.idempotency(caller, call, str(n))]
        )


@pytest.fixture(params=["memory", "sqlite"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "a.db")
    async with store:
        yield Kept(store)


@define
class Tree:
    """An agent's run that is executed by hand, and a child of it that has ended."""

    client: Client
    agent: Client
    run_id: str
    child_run_id: str

    @property
    def cancel(self) -> str:
        """The call that cancels the child."""
        return f"cancel_run {self.child_run_id}"


async def a_tree(engine: Orchestrator) -> Tree:
    client = Client(engine)
    session = await client.create_session(provider=MANUAL)
    run = await client.create_run(session.id)
    await client.transition_run(run.id, "running")
    agent = Client(engine.acting_as(Principal.of_run(run.id, 1, session.id)))
    child = await agent.spawn(run_id=run.id, task="work", provider=MANUAL)
    await client.cancel_run(child.run.id)
    return Tree(client, agent, run.id, child.run.id)


async def test_repeated_refusals_are_counted_in_the_audit_trail() -> None:
    async with MemoryStore() as store, Orchestrator(store, config()) as engine:
        tree = await a_tree(engine)
        before = len((await tree.client.list_audit()).entries)
        for number in range(1_000):
            with pytest.raises(NotFound):
                await tree.agent.get_session(f"ses_{number}")
        entries = (await tree.client.list_audit()).entries[before:]
        assert [entry.detail.get("times", 1) for entry in entries] == [2**n for n in range(10)]
        with pytest.raises(NotFound):  # another call is another entry
            await tree.agent.get_run("run_none")
        trail = (await tree.client.list_audit()).entries
        assert len(trail) == before + 11
        assert first_break(trail) is None


async def test_repeated_calls_of_an_agent_are_counted_in_the_audit_trail(kept: Kept) -> None:
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        before = len((await tree.client.list_audit()).entries)
        for _ in range(100):
            await tree.agent.cancel_run(tree.child_run_id)
        entries = (await tree.client.list_audit()).entries[before:]
        assert [entry.detail.get("times", 1) for entry in entries] == [2**n for n in range(7)]
        assert {(one.principal, one.operation, one.decision) for one in entries} == {
            (tree.run_id, "cancel_run", "done")
        }
        # Another target is another entry, and so is each call of a person.
        child = await tree.agent.spawn(run_id=tree.run_id, task="more", provider=MANUAL)
        await tree.agent.cancel_run(child.run.id)
        for _ in range(3):
            await tree.client.cancel_run(tree.child_run_id)
        trail = (await tree.client.list_audit()).entries
        assert [one.target for one in trail[before + 7 :]] == [
            child.run.id,
            *[tree.child_run_id] * 3,
        ]
        assert all("times" not in one.detail for one in trail[before + 7 :])
        assert first_break(trail) is None


async def test_different_calls_of_an_agent_have_their_own_audit_entries(kept: Kept) -> None:
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        before = len((await tree.client.list_audit()).entries)
        for cascade in (False, False, False, True, True, False):
            await tree.agent.cancel_run(tree.child_run_id, cascade=cascade)
        for number in range(4):  # another reason is not another call
            await tree.agent.cancel_run(tree.child_run_id, cascade=True, reason=f"{number}")
        details = [one.detail for one in (await tree.client.list_audit()).entries[before:]]
        assert [(one["cascade"], one.get("times", 1)) for one in details] == [
            (False, 1),
            (False, 2),
            (True, 1),
            (True, 2),
            (False, 4),
            (True, 4),
        ]


async def test_repeats_of_an_idempotency_key_are_not_counted(kept: Kept) -> None:
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        before = len((await tree.client.list_audit()).entries)
        for _ in range(5):
            await tree.agent.cancel_run(tree.child_run_id, idempotency_key="1")
        await tree.agent.cancel_run(tree.child_run_id)
        entries = (await tree.client.list_audit()).entries[before:]
        assert [one.detail.get("times", 1) for one in entries] == [1, 2]


async def test_calls_with_ever_new_values_do_not_fill_the_audit_trail() -> None:
    async with MemoryStore() as store, Orchestrator(store, config()) as engine:
        tree = await a_tree(engine)
        child = (await tree.agent.spawn(run_id=tree.run_id, task="ask", provider=MANUAL)).run
        await tree.client.transition_run(child.id, "running")
        asking = Client(engine.acting_as(Principal.of_run(child.id, 1, child.session_id)))
        asked = await asking.reply_parent(child.id, "?", request_kind="input_request")
        assert asked.request is not None
        before = len((await tree.client.list_audit(limit=1000)).entries)
        for number in range(300):
            await tree.agent.extend_request(asked.request.id, 4000 + number)
        entries = (await tree.client.list_audit(limit=1000)).entries[before:]
        audited = [(one.detail["expires_in_s"], one.detail.get("times", 1)) for one in entries]
        assert audited[:100] == [(4000 + number, 1) for number in range(100)]
        assert audited[100:] == [(4099 + 2**n, 2**n) for n in range(8)]
        await tree.agent.extend_request(asked.request.id, 4000)
        last = (await tree.client.list_audit(limit=1000)).entries[-1]
        assert (last.detail["expires_in_s"], last.detail["times"]) == (4000, 2)


async def test_call_that_failed_on_the_store_is_not_counted(kept: Kept) -> None:
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        before = len((await tree.client.list_audit()).entries)
        transact, fails = kept.store.transact, True

        async def failing(change: Any, *, reserve: bool = False) -> Any:
            if fails:
                raise Unavailable("the disk is full")
            return await transact(change, reserve=reserve)

        kept.store.transact = failing  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(Unavailable):
                await tree.agent.cancel_run(tree.child_run_id)
        fails = False
        await tree.agent.cancel_run(tree.child_run_id)
        assert len((await tree.client.list_audit()).entries) == before + 1


async def test_idempotency_keys_of_a_run_are_bounded_and_deleted_when_it_ends(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_RUN_RECORDS", 10)
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        for number in range(30):
            for client in (tree.agent, tree.client):
                await client.cancel_run(tree.child_run_id, idempotency_key=str(number))
        assert await kept.keys(tree.run_id, tree.cancel, 30) == list(range(20, 30))
        assert await kept.keys("local", tree.cancel, 30) == list(range(30))
        await tree.client.transition_run(tree.run_id, "completed")
        assert (
            await kept.keys(tree.run_id, tree.cancel, 30) == []
        )  # few: with the run's last change
        assert await kept.keys("local", tree.cancel, 30) == list(range(30))


async def test_idempotency_keys_are_bounded_by_the_size_of_their_answers(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_RUN_RECORDS_SIZE", 2_000_000)
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        child = await tree.agent.spawn(run_id=tree.run_id, task="long", provider=MANUAL)
        await tree.client.transition_run(child.run.id, "running")
        await tree.client.transition_run(child.run.id, "completed", result={"text": "é" * 500_000})
        for number in range(6):
            await tree.agent.cancel_run(child.run.id, idempotency_key=str(number))
        kept_keys = await kept.keys(tree.run_id, f"cancel_run {child.run.id}", 6)
        assert kept_keys == [4, 5]


async def eventually(condition: Any) -> None:
    with anyio.fail_after(60):
        while not await condition():
            await anyio.sleep(0.001)


async def test_old_idempotency_keys_are_deleted_at_the_start_and_while_running(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with kept.engine(clock) as engine:
        tree = await a_tree(engine)
        for number in range(3):
            await tree.client.cancel_run(tree.child_run_id, idempotency_key=str(number))
            clock.now += timedelta(days=1)
    clock.now = NOW + timedelta(days=8, minutes=1)
    async with kept.engine(clock):  # at a start
        await eventually(lambda: _is(kept.keys("local", tree.cancel, 3), [2]))
    monkeypatch.setattr(retention, "LONGEST_PAUSE_S", 0.001)
    async with kept.engine(clock):  # and while it runs
        await eventually(lambda: _is(kept.keys("local", tree.cancel, 3), [2]))
        clock.now += timedelta(days=1)
        await eventually(lambda: _is(kept.keys("local", tree.cancel, 3), []))


@pytest.mark.parametrize("restarts", [False, True])
async def test_idempotency_keys_of_an_ended_run_are_deleted_in_batches(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    count = 150
    deleted: list[int] = []

    def size(tx: View, run_id: str) -> int:
        return sum(tx.idempotency(run_id, "c", str(n)) is not None for n in range(count))

    async def no_pass(_: object) -> None:
        return None

    with monkeypatch.context() as patch:
        if restarts:
            patch.setattr(retention, "delete_due", no_pass)  # it stops before the rest is deleted
        async with kept.engine() as engine:
            tree = await a_tree(engine)
            for number in range(count):
                record = a_record(caller=tree.run_id, call="c", key=str(number))
                await kept.store.transact(
                    lambda tx, record=record: tx.add_record(record, max_count=999, max_size=99_999)  # type: ignore[misc]
                )
            transact = kept.store.transact

            async def counting(change: Any, **options: Any) -> Any:
                def counted(tx: Transaction) -> Any:
                    before = size(tx, tree.run_id)
                    answer = change(tx)
                    deleted.append(before - size(tx, tree.run_id))
                    return answer

                return await transact(counted, **options)

            monkeypatch.setattr(kept.store, "transact", counting)
            await tree.client.transition_run(tree.run_id, "completed")
            if restarts:
                assert len(await kept.keys(tree.run_id, "c", count)) == count - 64
            else:
                await eventually(lambda: _is(kept.keys(tree.run_id, "c", count), []))
    async with kept.engine():
        await eventually(lambda: _is(kept.keys(tree.run_id, "c", count), []))
    assert sum(deleted) == count
    assert max(deleted) <= 64


async def test_notes_and_questions_of_a_run_to_its_parent_are_limited(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_NOTES", 3)
    monkeypatch.setattr(requests, "MAX_QUESTIONS", 4)
    async with kept.engine() as engine:
        tree = await a_tree(engine)
        children = [
            await tree.agent.spawn(run_id=tree.run_id, task="work", provider=MANUAL)
            for _ in range(2)
        ]
        for child in children:
            await tree.client.transition_run(child.run.id, "running")
        run_id, other_id = (child.run.id for child in children)
        agents = [Principal.of_run(one.run.id, 1, one.session.id) for one in children]
        agent = Client(engine.acting_as(agents[0]))
        for number in range(2):
            await agent.reply_parent(run_id, "a note", idempotency_key=str(number))
        await agent.reply_parent(run_id, "a note", idempotency_key="0")  # one note, sent again
        asked = await agent.reply_parent(run_id, "?", request_kind="input_request")
        assert asked.message is not None  # a question reaches the parent too, and counts
    async with kept.engine() as engine:
        agent, other = (Client(engine.acting_as(one)) for one in agents)
        for client in (agent, Client(engine)):
            with pytest.raises(Conflict) as refusal:
                await client.reply_parent(run_id, "one too many")
            assert refusal.value.details == {"limit": "notes", "most": 3}
        again = await agent.reply_parent(run_id, "??", request_kind="input_request")
        assert again.request is not None
        with pytest.raises(Conflict) as refusal:
            await agent.reply_parent(run_id, "???", request_kind="input_request")
        assert refusal.value.details == {"limit": "questions", "most": 4}
        await other.reply_parent(other_id, "a note")  # each run has its own
        parent_id = children[0].session.parent_session_id
        assert parent_id is not None
        messages = (await Client(engine).list_messages(parent_id)).messages
        own = {child.run.id for child in children}
        texts = sorted(one.text for one in messages if one.source.run_id in own)
        assert texts == ["?", "??", "a note", "a note", "a note"]


async def _is(found: Any, expected: object) -> bool:
    return bool(await found == expected)


async def test_deletion_pass_that_fails_is_retried_and_the_engine_goes_on(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RETRY_S", 0.001)
    tries = []

    async def failing(_: object) -> None:
        tries.append(1)
        raise ZeroDivisionError if len(tries) == 1 else Unavailable("the disk is full")

    monkeypatch.setattr(retention, "delete_due", failing)
    async with kept.engine() as engine:
        with anyio.fail_after(60):
            while len(tries) <= 3:
                await anyio.sleep(0.001)
        await Client(engine).create_session(provider=MANUAL)


def test_next_deletion_pass_is_between_an_hour_and_a_day_away() -> None:
    hour, day = 3600, 86400
    assert retention.seconds_until(None, NOW) == day
    assert retention.seconds_until(NOW + timedelta(hours=5), NOW) == 5 * hour
    assert retention.seconds_until(NOW - timedelta(hours=5), NOW) == hour
    assert retention.seconds_until(NOW + timedelta(days=5), NOW) == day


@pytest.mark.parametrize("batch", [1, 2, 500])
async def test_tokens_that_ended_long_ago_are_deleted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(retention, "BATCH", batch)
    clock = Clock()
    async with kept.engine(clock) as engine:
        client = Client(engine)
        lasts = await client.create_token("lasts")
        revoked = await client.create_token("revoked")
        await client.create_token("expires", expires_in_s=3600)
        await client.revoke_token(revoked.token.id)
        clock.now += timedelta(days=1)
        await client.revoke_token((await client.create_token("newest")).token.id)
        trail = (await client.list_audit()).entries

    async def names(client: Client) -> set[str]:
        return {token.name for token in (await client.list_tokens()).tokens}

    clock.now = NOW + timedelta(days=30)
    async with kept.engine(clock) as engine:
        due = await retention.delete_due(engine.core)
        assert due == NOW + retention.TOKEN_LIFETIME
        assert len(await names(Client(engine))) == 4
    clock.now += timedelta(days=9)
    async with kept.engine(clock) as engine:
        assert await retention.delete_due(engine.core) is None
        assert await names(Client(engine)) == {"lasts", "newest"}
        # The newest stays, though it has ended: without any token, the API would need none.
        assert engine.has_tokens()
        assert await engine.holder(token_hash(revoked.secret)) is None
        holder = await engine.holder(token_hash(lasts.secret))
        assert holder is not None
        assert lasts.secret.startswith(NAMED_TOKEN_PREFIX)
        with pytest.raises(NotFound):
            await Client(engine).revoke_token(revoked.token.id)
        assert (await Client(engine).list_audit()).entries == trail


async def test_repeated_question_of_an_agent_finds_its_open_request(tmp_path: Path) -> None:
    async with open_embedded(tmp_path / "a.db", runners=[ScriptedRunner()]) as client:
        session = await client.create_session(provider=MANUAL)
        run = await client.create_run(session.id)
        await client.transition_run(run.id, "running")
        agent = Agent(calls_over(client.transport), run.id, session.id, hold_s=0)

        async def ask(text: str) -> Mapping[str, Any]:
            given = {"text": text, "request_kind": "input_request", "wait": False}
            result = await AgentTools(agent).call("session_reply_parent", given)
            assert not result.is_error, result.text
            return result.content

        first = await ask("the first")
        assert (await ask("the first"))["request"]["id"] == first["request"]["id"]
        await client.resolve_request(first["request"]["id"], "answer", text="yes")
        reply = await ask("the first")
        assert (reply["request"]["id"], reply["answer"]) == (first["request"]["id"], "yes")
        again = await ask("the first")
        assert again["request"]["id"] != first["request"]["id"]
        for number in range(40):
            asked = await ask(f"question {number}")
            await client.resolve_request(asked["request"]["id"], "deny")
            await ask(f"question {number}")
        # Another process of the agent finds the open request.
        agent = Agent(calls_over(client.transport), run.id, session.id, hold_s=0)
        assert (await ask("the first"))["request"]["id"] == again["request"]["id"]


def plan(connection: apsw.Connection, sql: str, values: Any) -> str:
    rows = connection.execute("EXPLAIN QUERY PLAN " + sql, values)
    return "; ".join(row[3] for row in rows)


async def test_queries_of_an_attempt_use_indexes(tmp_path: Path) -> None:
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
    # The index skips closed requests. The rows that it finds are read by their id.
    assert all("status=?" in one or "(id=?)" in one for one in found)

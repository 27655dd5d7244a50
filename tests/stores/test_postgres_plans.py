"""What queries of PostgreSQL read, by the server's own account."""

import json
from datetime import timedelta

import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import RunStatus
from agent_orchestrator.domain.model import Attempt, Thread
from agent_orchestrator.testing.stores.samples import NOW, a_run, a_session, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


def rows_in(plan):
    """Return the number of rows that a plan and its parts have handled."""
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return own + sum(map(rows_in, plan.get("Plans", ())))


async def rows_read(store, query):
    """Return the rows that the statements of a query have handled."""
    from agent_orchestrator.stores.postgres.connection import Connection

    statements = []
    execute = Connection.execute

    def noted(connection, sql, values=()):
        statements.append((sql, values))
        return execute(connection, sql, values)

    def explain(tx):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "execute", noted)
            found = query(tx)
        explained = [
            tx._connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", values).fetchone()[0]
            for sql, values in statements
        ]
        plans = [json.loads(one) if isinstance(one, str) else one for one in explained]
        return found, sum(rows_in(plan[0]["Plan"]) for plan in plans)

    return await store.transact(explain)


async def test_a_claim_reads_little_of_a_long_conversation(postgres, database):
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()
    session = a_session(host="here")
    ended = [a_run(session.id, provider="codex", status=RunStatus.COMPLETED) for _ in range(2_000)]
    queued = a_run(session.id, provider="codex")
    async with PostgresStore(url) as store, PostgresStore(url) as other:
        await put(store, session, *ended, queued)

        def begin(tx, by):
            tx.put_thread(session.id, "codex", Thread("t", {}))
            for number, run in enumerate(ended):
                at = NOW + timedelta(seconds=number)
                tx.put_attempt(Attempt(run.id, 1, f"{by.lease.daemon_id}/worker-1", "codex", at))

        await store.transact(lambda tx: begin(tx, other))
        name = url.rpartition("/")[2]
        for table in ("runs", "attempts", "threads", "sessions"):
            postgres.run(f"ANALYZE agent_orchestrator.{table}", name)

        def claim(tx, by=store):
            return tx.next_runs(4, providers=["codex"], daemon_id=by.lease.daemon_id, host="here")

        found, rows = await rows_read(store, claim)
        assert found == [], "the other daemon has the conversation"
        assert rows < 1_000
        assert await store.read(lambda view: claim(view, other)) == [queued]


PLANS = """
    SELECT generic_plans::int, custom_plans::int FROM pg_prepared_statements
    WHERE generic_plans + custom_plans > 10 AND statement ~ '^\\s*SELECT.* FROM runs'"""
"""How often each statement of a session about runs was executed with a plan of earlier ones, and with its own."""

ROWS_OF_RUNS = """
    SELECT (seq_tup_read + idx_tup_fetch)::int FROM pg_stat_xact_user_tables WHERE relname = 'runs'"""
"""The rows that the present transaction has read."""


def analyze(postgres, url):
    for table in ("runs", "attempts", "threads", "sessions", "daemons"):
        postgres.run(f"ANALYZE agent_orchestrator.{table}", url.rpartition("/")[2])


async def put_queued(store, count):
    sessions = [a_session(host="here") for _ in range(count)]
    queued = [a_run(session.id, provider="codex") for session in sessions]
    await put(store, *sessions, *queued)
    return queued


def claim_by(store):
    def claim(tx):
        return tx.next_runs(5, providers=["codex"], daemon_id=store.lease.daemon_id, host="here")

    return claim


async def test_a_claim_is_not_planned_each_time(postgres, database):
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()
    async with PostgresStore(url) as store:
        await put_queued(store, 3_000)
        analyze(postgres, url)
        for _ in range(30):
            assert len(await store.transact(claim_by(store))) == 5
        [(shared, own)] = await store.transact(lambda tx: list(tx._connection.execute(PLANS)))
        assert own < 10 < shared


async def test_a_run_is_read_without_planning_each_time(postgres, database):
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()
    async with PostgresStore(url) as store:
        [run, *_] = await put_queued(store, 300)
        analyze(postgres, url)
        for _ in range(30):
            assert await store.transact(lambda tx: tx.run(run.id)) == run
        plans = await store.transact(lambda tx: list(tx._connection.execute(PLANS)))
        assert [own < 10 < shared for shared, own in plans] == [True] * 2, (
            "the run, and its session"
        )


async def test_a_claim_reads_little_of_a_queue_that_has_grown_since_it_was_planned(postgres):
    from agent_orchestrator.stores.postgres import PostgresStore

    # Without statistics of an earlier test.
    async with PostgresStore(postgres.new_database()) as store:
        claim = claim_by(store)
        for _ in range(10):
            assert await store.transact(claim) == []
        await put_queued(store, 1_000)

        def claim_and_count(tx):
            before = tx._connection.first_row(ROWS_OF_RUNS)[0]
            found = claim(tx)
            return len(found), tx._connection.first_row(ROWS_OF_RUNS)[0] - before

        found, rows = await store.transact(claim_and_count)
        assert found == 5
        assert rows < 100

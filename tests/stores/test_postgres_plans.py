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

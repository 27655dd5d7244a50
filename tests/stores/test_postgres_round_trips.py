"""How often a daemon waits for the server: with the server at a distance, this is what a call takes."""

import anyio
import pytest
from attrs import evolve
from loops import ON_ONE_LOOP
from test_postgres_groups import accept, together

from agent_orchestrator import Outcome, RunContext, RunStatus, open_embedded
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_message,
    a_run,
    a_session,
    drafts,
    put,
)

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@pytest.fixture
def waits(monkeypatch):
    """The connections that have waited for the server, once for each time."""
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres.connection import Connection

    found = []
    for name in ("_results", "_run"):
        method = getattr(Connection, name)

        def noted(self, *values, method=method):
            found.append(self)
            return method(self, *values)

        monkeypatch.setattr(Connection, name, noted)
    return found


def opened(url):
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore(url)


def of_writer(waits, store):
    return sum(one is store._primary.connection for one in waits)


async def test_a_turn_waits_a_bounded_number_of_times(database, waits):
    async def agent(context: RunContext) -> Outcome:
        await context.emit("agent.message", {"text": "done"})
        return Outcome("done")

    store = opened(database())
    async with open_embedded(store, runners=[FunctionRunner("agent", agent)]) as client:
        session = await client.create_session()
        counts = []
        # The first ones prepare the statements. On a busy machine, one may take a commit more.
        while not counts or (counts[-1] > 23 and len(counts) < 10):
            waits.clear()
            sent = await client.send_message(session.id, "go")
            assert sent.run is not None
            with anyio.fail_after(60):
                assert (await client.wait_run(sent.run.id)).run.status == "completed"
            counts.append(of_writer(waits, store))
        # Its three commits: it is accepted and started, its message is delivered, it ends.
        assert counts[-1] <= 23, counts


async def test_a_group_of_accepts_waits_a_few_times(database, waits):
    async with opened(database()) as store:
        sessions = [a_session() for _ in range(10)]
        await put(store, *sessions)
        for first, seq in ((0, 1), (100, 4)):
            waits.clear()
            made = [accept(one, first + n) for n, one in enumerate(sessions)]
            assert await together(store, made) == [seq] * 10
        # The change that waits: two statements and the commit. The group: the lock with the records, the sessions,
        # the caller's last record, what is written with the end of the change, and the commit.
        assert of_writer(waits, store) <= 3 + 5


async def test_the_token_and_the_length_of_the_queue_are_read_once_for_a_group(database, waits):
    async with opened(database()) as store:
        sessions = [a_session() for _ in range(10)]
        await put(store, *sessions)
        token = AccessToken("tok_1", "phone", "bob", ("write",), "local", NOW, None)
        await store.transact(lambda tx: tx.add_token(token, "hash"))

        def accepted(session):
            def change(tx):
                assert tx.token(token.id) == token
                found = tx.session(session.id)
                assert not tx.queue_is_full(1000)
                run = a_run(found.id)
                tx.add_run(run)
                tx.add_message(a_message(found.id, run_id=run.id))
                return tx.append(found.id, drafts("x", run_id=run.id), NOW)

            return change

        for number in (1, 2):
            waits.clear()
            assert await together(store, [accepted(one) for one in sessions]) == [number] * 10
        assert of_writer(waits, store) <= 3 + 5


async def test_a_full_queue_is_noticed_within_a_group(database):
    async with opened(database()) as store:
        sessions = [a_session() for _ in range(12)]
        await put(store, *sessions)

        def accepted(session):
            def change(tx):
                if tx.queue_is_full(5):
                    return "full"
                tx.add_run(a_run(session.id))
                return "queued"

            return change

        answers = await together(store, [accepted(one) for one in sessions])
        assert answers == ["queued"] * 5 + ["full"] * 7

        def leave(tx):
            [first, *_] = tx.runs(limit=9)
            tx.put_run(evolve(first, status=RunStatus.CANCELED))

        answers = await together(store, [leave, *[accepted(one) for one in sessions[:3]]])
        assert answers == [None, "queued", "full", "full"]


async def test_a_revoked_token_is_seen_by_the_next_change_of_its_group(database):
    async with opened(database()) as store:
        token = AccessToken("tok_1", "phone", "bob", ("write",), "local", NOW, None)
        await store.transact(lambda tx: tx.add_token(token, "hash"))

        def look(tx):
            found = tx.token(token.id)
            return None if found is None else found.revoked_at

        def revoke(tx):
            tx.put_token(evolve(tx.token(token.id), revoked_at=NOW))

        def remove(tx):
            tx.remove_token(token.id)

        answers = await together(store, [look, revoke, look, remove, look])
        assert answers == [None, None, NOW, None, None]
        assert await store.read(look) is None


async def test_a_group_of_manual_runs_waits_a_few_times(database, waits):
    store = opened(database())
    async with open_embedded(store) as client:
        sessions = [(await client.create_session()).id for _ in range(10)]

        async def create(session_id: str) -> None:
            await client.create_run(session_id, text="go", provider="manual")

        counts = []
        for _ in range(
            10
        ):  # the first ones prepare the statements; a group may come in two commits
            waits.clear()
            async with anyio.create_task_group() as tasks:
                for session_id in sessions:
                    tasks.start_soon(create, session_id)
            counts.append(of_writer(waits, store))
        # Which daemons have a provider is not looked up for one that each daemon has.
        assert min(counts) < len(sessions), counts

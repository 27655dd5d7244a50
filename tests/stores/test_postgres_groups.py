"""Changes that PostgreSQL commits together: rows are read once, and the answers are those of one after the other."""

import threading

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from loops import ON_ONE_LOOP
from test_memory_and_sqlite_agree import REFUSED, changes, everything, play

from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.stores.memory import MemoryStore
from agent_orchestrator.testing.stores.samples import NOW, a_record, a_run, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


def opened(url):
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore(url)


async def together(store, functions):
    """Make changes in one group, in this order, and return their answers or errors."""
    answers = [None] * len(functions)
    may_go, is_waiting = threading.Event(), anyio.Event()

    def wait(_):
        anyio.from_thread.run_sync(is_waiting.set)
        assert may_go.wait(60)

    async def make(number):
        try:
            answers[number] = await store.transact(functions[number])
        except Exception as error:  # noqa: BLE001 - compared
            answers[number] = type(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.transact, wait)
        await is_waiting.wait()
        for number in range(len(functions)):
            tasks.start_soon(make, number)
            await anyio.lowlevel.checkpoint()
        may_go.set()
    return answers


@pytest.fixture
def statements(monkeypatch):
    """The queries of each connection that wait for an answer."""
    from agent_orchestrator.stores.postgres.connection import Connection

    sent = []
    execute = Connection.execute

    def noted(connection, sql, values=()):
        sent.append((connection, " ".join(sql.split())))
        return execute(connection, sql, values)

    monkeypatch.setattr(Connection, "execute", noted)
    return sent


def accept(session, number):
    """Return what an accepted message does to the store."""

    def change(tx):
        assert tx.idempotency("ann", "POST /x", f"key {number}") is None
        found = tx.session(session.id)
        run = a_run(found.id)
        tx.add_run(run)
        seq = tx.append(found.id, drafts("x", run_id=run.id), NOW)
        tx.append(found.id, drafts("y", "z"), NOW)
        record = a_record(caller="ann", call="POST /x", key=f"key {number}")
        tx.add_record(record, max_count=999, max_size=999_999)
        assert (tx.session(found.id).last_seq, tx.run(run.id)) == (seq + 2, run)
        return seq

    return change


async def test_a_group_takes_few_round_trips(database, statements):
    async with opened(database()) as store:
        sessions = [a_session() for _ in range(20)]
        await put(store, *sessions)
        await together(store, [accept(one, -1 - n) for n, one in enumerate(sessions)])
        statements.clear()
        functions = [accept(one, number) for number, one in enumerate(sessions)]
        assert await together(store, functions) == [4] * 20
        # Heartbeats go through another connection, at any time.
        queries = [
            sql
            for connection, sql in statements
            if connection is store._primary.connection
            and not sql.startswith(("BEGIN", "COMMIT", "ROLLBACK"))
        ]
        # Those of the change that waits, and of the group: the lock, records, sessions, the caller's last record.
        assert len(queries) <= 8, queries
        for session in sessions:
            events = await store.read(
                lambda view, one=session: view.events(one.id, after=0, limit=9)
            )
            assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
        assert await store.check() == []


async def test_a_key_that_is_used_twice_in_a_group_is_found(database):
    async with opened(database()) as store:
        session = a_session()
        await put(store, session)

        def once(tx):
            if (known := tx.idempotency("ann", "POST /x", "key")) is not None:
                return known.answer
            record = a_record(caller="ann", call="POST /x", key="key", answer=f"{len(drafts())}")
            tx.append(session.id, drafts("x"), NOW)
            tx.add_record(record, max_count=9, max_size=99)
            return "made"

        assert await together(store, [once] * 6) == ["made"] + ["0"] * 5
        assert (await store.read(lambda view: view.session(session.id))).last_seq == 1


async def test_a_refused_change_leaves_no_trace_in_its_group(database):
    async with opened(database()) as store:
        session = a_session()
        await put(store, session)

        def fail(tx):
            tx.append(session.id, drafts("lost"), NOW)
            raise LookupError

        def go_on(tx):
            before = tx.session(session.id).last_seq
            return tx.append(session.id, drafts("kept"), NOW) - before

        answers = await together(store, [go_on, fail, go_on, fail, go_on])
        assert answers == [1, LookupError, 1, LookupError, 1]
        assert (await store.read(lambda view: view.session(session.id))).last_seq == 3
        assert await store.check() == []


def outcome_of(change):
    def made(tx):
        try:
            return play(tx, change)
        except (Conflict, NotFound) as error:
            raise type(error)("refused") from None

    return made


async def compare(url, played):
    async with MemoryStore() as memory, opened(url) as postgres:
        expected = []
        for change in played:
            try:
                expected.append(await memory.transact(outcome_of(change)))
            except (Conflict, NotFound):
                expected.append(REFUSED)
            except LookupError as error:
                expected.append(type(error))
        found = await together(postgres, [outcome_of(change) for change in played])
        assert [REFUSED if one in (Conflict, NotFound) else one for one in found] == expected
        everywhere = await memory.read(everything)
        here = await postgres.read(everything)
        for question, answer in everywhere.items():
            assert here[question] == answer, question
        assert await postgres.check() == []


async def test_a_change_that_adds_many_runs_keeps_few_of_their_rows(database):
    from agent_orchestrator.stores.postgres.row_cache import MAX_RUNS

    async with opened(database()) as store:
        session = a_session()
        await put(store, session)
        runs = [a_run(session.id) for _ in range(MAX_RUNS + 100)]

        def change(tx):
            for run in runs:
                assert tx.run(run.id) is None
                tx.add_run(run)
                tx.put_attempt(Attempt(run.id, 1, "dmn_1/1", "demo", NOW, stderr_tail=run.id))
            first = evolve(runs[0], model="other")
            tx.put_run(first)
            assert tx.run(first.id) == first
            assert [one.stderr_tail for one in tx.attempts(first.id)] == [first.id]
            return max(len(tx._rows.runs), len(tx._rows.attempts))

        assert await store.transact(change) <= MAX_RUNS
        found = await store.read(lambda view: view.runs(limit=2 * MAX_RUNS))
        assert found == [evolve(runs[0], model="other"), *runs[1:]]
        for run in (runs[0], runs[-1]):
            [attempt] = await store.read(lambda view, run=run: view.attempts(run.id))
            assert attempt.stderr_tail == run.id


@pytest.mark.timeout(300)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(played=changes)
def test_a_group_answers_like_one_after_the_other(postgres, database, played):
    url = database()
    try:
        anyio.run(compare, url, played)
    finally:
        postgres.empty(url)

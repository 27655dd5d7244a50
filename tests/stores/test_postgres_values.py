"""What the PostgreSQL store sends: statements, texts that a column cannot hold, large values, round trips."""

import subprocess
import sys
from operator import methodcaller

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import RunError, RunResult
from agent_orchestrator.stores.postgres.translation import translated
from agent_orchestrator.stores.postgres.values import MARK, parameter, row_of
from agent_orchestrator.testing.stores.samples import NOW, a_message, a_run, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text('\0\x01"\\x1')


@given(TEXT, TEXT)
def test_texts_are_encoded_without_loss(one, other):
    sent = [parameter(text).decode() for text in (one, other)]
    assert "\0" not in "".join(sent)
    assert row_of(sent) == (one, other)
    assert (sent[0] == sent[1]) == (one == other)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(ValueError, match="surrogates"):
        parameter("\ud800")


def test_a_column_of_texts_can_hold_other_values():
    assert row_of([f"{MARK}123", f"{MARK}x00ff", "x00ff", None, 5]) == (
        123,
        b"\0\xff",
        "x00ff",
        None,
        5,
    )


@pytest.mark.parametrize(
    ("sqlite", "postgres"),
    [
        ("SELECT a FROM t WHERE b = ? AND c > ?", "SELECT a FROM t WHERE b = $1 AND c > $2"),
        (
            "UPDATE t SET a = ?2 WHERE id = ?1 AND b = ?",
            "UPDATE t SET a = $2 WHERE id = $1 AND b = $3",
        ),
        ("SELECT a FROM t INDEXED BY i WHERE +b = ?", "SELECT a FROM t WHERE b = $1"),
        ("SELECT last_seq + ? FROM t", "SELECT last_seq + $1 FROM t"),
        ("WHERE a IS ? AND b IS NULL", "WHERE a IS NOT DISTINCT FROM $1 AND b IS NULL"),
    ],
)
def test_statements_are_translated(sqlite, postgres):
    assert translated(sqlite).sql.decode() == postgres


async def test_hard_texts_are_kept_in_every_column(database):
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres import PostgresStore

    async with PostgresStore(database()) as store:
        for text in ("\0", "\x01", '\x01"x"', "\x01x00", "a\0b" * 50_000, "\x01" * 70_000):
            session = a_session(title=text[:100], metadata={"text": text})
            run = a_run(
                session.id,
                status=RunStatus.FAILED,
                result=RunResult(text),
                error=RunError("denied", text),
            )
            message = a_message(session.id, text=text)
            await put(store, session, message)
            await store.transact(methodcaller("add_run", run))
            await store.transact(methodcaller("append", session.id, drafts(text), NOW))
            assert await store.read(methodcaller("session", session.id)) == evolve(
                session, last_seq=1, last_line=text_line(text), updated_at=NOW
            )
            assert await store.read(methodcaller("message", message.id)) == message
            assert await store.read(methodcaller("run", run.id)) == run
            [[cut], _] = await store.read(
                methodcaller("latest_runs", session.id, limit=1, cut=3, size=1)
            )
            assert (cut.result.text, cut.error.message) == (text[:3], text[:3])
            events = await store.read(methodcaller("events", session.id, after=0, limit=9))
            assert [event.data for event in events] == [{"text": text}]


def text_line(text):
    from agent_orchestrator.ports.changes import last_line

    return last_line(drafts(text))


async def test_an_accept_takes_few_round_trips(database, monkeypatch):
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres import PostgresStore, connection

    trips = 0
    execute = connection.Connection.execute

    def counted(*arguments):
        nonlocal trips
        trips += 1  # what is queued is sent with it
        return execute(*arguments)

    monkeypatch.setattr(connection.Connection, "execute", counted)
    async with PostgresStore(database()) as store:
        session = a_session()
        await put(store, session)

        async def accept():
            run = a_run(session.id, provider="manual")
            message = a_message(session.id, run_id=run.id)

            def change(tx):
                assert tx.session(session.id) is not None
                tx.add_message(message)
                tx.add_run(run)
                tx.append(session.id, drafts("a", "b", run_id=run.id), NOW)

            await store.transact(change)

        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(accept)
        trips = 0
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(accept)
        # The look at the session, and the places in the log.
        assert trips < 64 * 2 + 64


async def test_long_events_are_sent_one_by_one(database, monkeypatch):
    """A message to the server has at most 1 GiB, and what is queued is in memory."""
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres import PostgresStore, connection

    sizes = []
    send_alone, send = connection.Connection._send_alone, connection.Connection._send

    def size_of(statement):
        return sum(len(cell) for cell in statement.cells if cell is not None)

    def sent_alone(self, statement):
        sizes.append(size_of(statement))
        return send_alone(self, statement)

    def sent(self, statements):
        sizes.append(sum(map(size_of, statements)))
        return send(self, statements)

    monkeypatch.setattr(connection.Connection, "_send_alone", sent_alone)
    monkeypatch.setattr(connection.Connection, "_send", sent)
    texts = [str(number) * 400_000 for number in range(10)]
    async with PostgresStore(database()) as store:
        session = a_session()
        await put(store, session)
        await store.transact(methodcaller("append", session.id, drafts(*texts, "short"), NOW))
        events = await store.read(methodcaller("events", session.id, after=0, limit=99))
        assert [event.data["text"] for event in events] == [*texts, "short"]
    assert max(sizes) < 500_000


def test_agents_do_not_get_the_password(monkeypatch):
    from agentd.settings import Settings
    from agentd.traces import agents_environment

    monkeypatch.setenv("PGPASSWORD", "hunter22")
    assert "PGPASSWORD" in agents_environment(Settings())
    assert "PGPASSWORD" not in agents_environment(Settings(store="postgresql://host/db"))


def test_psycopg_is_imported_for_its_urls_only():
    program = (
        "import sys; from agent_orchestrator.stores.registry import open_store; import agentd.daemon;"
        "open_store('x.db'); assert 'psycopg' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

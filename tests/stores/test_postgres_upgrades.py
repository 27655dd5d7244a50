"""Migrations of a PostgreSQL database that others use, and daemons of two versions on it."""

import threading
import time
from contextlib import contextmanager

import anyio
import anyio.to_thread
import psycopg
import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.errors import SchemaTooNew, StoreOpenError, Unavailable
from agent_orchestrator.stores.postgres import PostgresStore, schema
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

EXPANDS = """
-- What a next version could add.
ALTER TABLE sessions ADD COLUMN hue text COLLATE "C";
ALTER TABLE runs ADD COLUMN weight bigint NOT NULL DEFAULT 1;
CREATE TABLE hues (name text COLLATE "C" PRIMARY KEY);
"""
CONTRACTS = "-- min_reader: {}\nALTER TABLE sessions DROP COLUMN title;\n"


@pytest.fixture
def url(postgres):
    """A database for one test, which may be migrated further than this version knows."""
    return postgres.new_database()


@contextmanager
def version_of(*scripts):
    """Let this process be a version with further migrations."""
    present = schema.migrations()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: (*present, *scripts))
        yield len(present) + len(scripts)


def version_in(postgres, url):
    return postgres.run(
        "SELECT version, min_reader FROM agent_orchestrator.schema", url.rpartition("/")[2]
    )[0]


async def test_an_older_daemon_goes_on_while_a_newer_one_migrates(postgres, url):
    present = schema.schema_version()
    oldest = schema.min_reader(present)
    async with PostgresStore(url) as older:
        session = a_session(title="kept")
        await put(older, session)
        done, seqs = anyio.Event(), []

        async def write():
            while not done.is_set():
                seqs.append(
                    await older.transact(lambda tx: tx.append(session.id, drafts("x"), NOW))
                )
                await older.read(lambda view: view.sessions(limit=9))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(write)
            while not seqs:
                await anyio.sleep(0.01)
            with version_of(EXPANDS) as newest:
                async with PostgresStore(url) as newer:
                    assert version_in(postgres, url) == (newest, oldest) == (present + 1, oldest)
                    before = len(seqs)
                    with anyio.fail_after(60):
                        while len(seqs) < before + 20:
                            await anyio.sleep(0.01)
                    other = a_session()
                    await put(newer, other)
                    await newer.transact(
                        lambda tx: tx.append(session.id, drafts("of the newer"), NOW)
                    )
                    assert await older.read(lambda view: view.session(other.id)) == other
            done.set()
        events = await older.read(lambda view: view.events(session.id, after=0, limit=99_999))
        assert [event.seq for event in events] == list(range(1, len(seqs) + 2))
        assert await older.check() == []
    # Started again, the older version can use the tables as well.
    async with PostgresStore(url) as older:
        assert (await older.read(lambda view: view.session(session.id))).title == "kept"
    assert version_in(postgres, url) == (present + 1, oldest)


async def test_a_version_that_cannot_use_the_tables_is_refused(postgres, url):
    present = schema.schema_version()
    async with PostgresStore(url) as older:
        session = a_session()
        await put(older, session)
        with (
            version_of(CONTRACTS.format(present + 1)),
            pytest.raises(StoreOpenError, match="stop process"),
        ):
            async with PostgresStore(url):
                pass
        assert version_in(postgres, url)[0] == present
        await older.transact(lambda tx: tx.append(session.id, drafts("x"), NOW))
    with version_of(CONTRACTS.format(present + 1)):
        connection = Connection(url)
        schema.prepare(connection)
        connection.close()
    assert version_in(postgres, url) == (present + 1, present + 1)
    with pytest.raises(StoreOpenError, match="which this program cannot use"):
        async with PostgresStore(url):
            pass


async def test_a_daemon_that_was_silent_does_not_come_back_to_tables_that_it_cannot_use(
    postgres, url, monkeypatch
):
    present = schema.schema_version()
    profile = DaemonProfile("1", None, 1, (), "here")
    async with PostgresStore(url) as older:
        await older.join(profile)
        monkeypatch.setattr(older, "_send_heartbeat", lambda: True)
        postgres.run(
            "UPDATE agent_orchestrator.daemons SET expires_at = now() - interval '1 second'",
            url.rpartition("/")[2],
        )
        with version_of(CONTRACTS.format(present + 1)):
            connection = Connection(url)
            schema.prepare(connection)
            connection.close()
        with pytest.raises(Unavailable, match="taken over"):
            await older.transact(lambda _: None)
        with anyio.fail_after(60):
            await older.lease.lost.wait()
        with pytest.raises(SchemaTooNew):
            await older.join(profile)
        [problem] = await older.problems()
        assert problem.code == "lease_lost"


async def test_each_script_of_a_jump_is_run_once(postgres, url):
    with version_of(EXPANDS, "CREATE TABLE more (n bigint)") as newest:
        threads = []
        failures = []

        def prepare():
            try:
                connection = Connection(url)
                schema.prepare(connection)
                connection.close()
            except Exception as error:  # noqa: BLE001 - asserted
                failures.append(error)

        for _ in range(3):
            threads.append(threading.Thread(target=prepare))
            threads[-1].start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        assert failures == []
        assert version_in(postgres, url)[0] == newest


async def test_a_migration_that_waits_does_not_block_others(postgres, url):
    """Without a limit, every statement waits behind an ALTER that waits."""
    async with PostgresStore(url) as store:
        session = a_session()
        await put(store, session)
    longest = 0.0
    with psycopg.connect(url) as reading, psycopg.connect(url, autocommit=True) as other:
        reading.execute("SELECT count(*) FROM agent_orchestrator.sessions")  # its lock stays
        with version_of(EXPANDS) as newest:
            connection = Connection(url)
            migrating = threading.Thread(target=schema.prepare, args=(connection,))
            migrating.start()
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                began = time.monotonic()
                other.execute("SELECT count(*) FROM agent_orchestrator.sessions")
                longest = max(longest, time.monotonic() - began)
                await anyio.sleep(0.01)
            assert migrating.is_alive()
            assert version_in(postgres, url)[0] == newest - 1
            reading.rollback()
            await anyio.to_thread.run_sync(migrating.join, 60)
            assert not migrating.is_alive()
            connection.close()
    assert version_in(postgres, url)[0] == newest
    # The wait for the lock, and what a busy machine adds. Without a limit it had lasted as long as the other reader.
    assert longest < 15


async def test_a_migration_gives_up_in_the_end(url, monkeypatch):
    async with PostgresStore(url):
        pass
    monkeypatch.setattr(schema, "_MIGRATION_TIMEOUT_S", 0.5)
    with psycopg.connect(url) as reading:
        reading.execute("SELECT count(*) FROM agent_orchestrator.sessions")
        with version_of(EXPANDS), pytest.raises(StoreOpenError, match="cannot be migrated"):
            async with PostgresStore(url):
                pass

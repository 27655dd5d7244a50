"""The server is away, a connection is lost, another daemon comes: nothing is lost and nothing is doubled."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from operator import methodcaller

import anyio
import pytest
from cutting import proxied
from loops import ON_ONE_LOOP
from postgres import served

from agent_orchestrator.domain.errors import CursorAhead, StoreLocked, StoreOpenError, Unavailable
from agent_orchestrator.ports.store import ANY_TOPIC, DAEMONS_TOPIC
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = pytest.mark.anyio


@pytest.fixture
def opened():
    """Return how to open a store; psycopg is imported only where there is a server."""
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore


@pytest.fixture
def own_server():
    """A server that the test may stop."""
    with served() as server:
        yield server


def through(url, proxy):
    """Return a database's URL by way of a proxy."""
    return f"postgresql://owner@127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}"


async def texts_of(store, session):
    events = await store.read(lambda view: view.events(session.id, after=0, limit=100_000))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.data["text"] for event in events]


@pytest.mark.parametrize("forwards", [True, False], ids=["made", "not made"])
async def test_a_commit_whose_answer_is_lost_is_made_once(postgres, database, opened, forwards):
    url = database()
    with proxied(postgres.port) as proxy:
        async with opened(through(url, proxy)) as store:
            session = a_session()
            await put(store, session)
            for number in range(3):
                proxy.cut_at(b"COMMIT", forwards=forwards)
                with anyio.fail_after(45):
                    await store.transact(
                        methodcaller("append", session.id, drafts(str(number)), NOW)
                    )
            assert proxy.cuts == 3
            assert await texts_of(store, session) == ["0", "1", "2"]
            assert await store.problems() == ()
            assert await store.check() == []


async def test_a_change_that_is_run_again_has_the_answer_of_its_last_run(
    postgres, database, opened
):
    url = database()
    with proxied(postgres.port) as proxy:
        async with opened(through(url, proxy)) as store:
            session = a_session()
            await put(store, session)
            runs = []

            def change(tx):
                runs.append(len(runs))
                if len(runs) == 1:
                    raise LookupError("refused the first time")
                return tx.append(session.id, drafts("x"), NOW)

            proxy.cut_at(b"COMMIT", forwards=False)
            with anyio.fail_after(45):
                assert await store.transact(change) == 1
            assert (proxy.cuts, len(runs)) == (1, 2)


async def test_a_lost_connection_is_found_again_without_a_refusal(
    postgres, database, opened, monkeypatch
):
    from agent_orchestrator.stores.postgres import daemons

    monkeypatch.setattr(daemons, "HEARTBEAT_S", 600.0)  # a failed heartbeat connects again, too
    url = database()
    with proxied(postgres.port) as proxy:
        async with opened(through(url, proxy)) as store:
            session = a_session()
            await put(store, session)
            notified = []
            with store.listen(notified.append):
                for number in range(5):
                    proxy.cut_all()
                    with anyio.fail_after(45):
                        await store.transact(
                            methodcaller("append", session.id, drafts(str(number)), NOW)
                        )
                        assert len(await texts_of(store, session)) == number + 1
            # What another daemon committed meanwhile is unknown.
            assert all(ANY_TOPIC in topics for topics in notified if "events" in topics)
            assert await texts_of(store, session) == list("01234")


@ON_ONE_LOOP
async def test_the_server_is_killed_while_many_write(own_server, opened, monkeypatch):
    from agent_orchestrator.stores.postgres import primary

    monkeypatch.setattr(primary, "RESOLVE_S", 60.0)  # a busy machine starts a server slowly
    url = own_server.new_database()
    made, refused, unknown = set(), set(), set()
    async with opened(url) as store:
        session = a_session()
        await put(store, session)
        stop = anyio.Event()

        async def write(name):
            number = 0
            while not stop.is_set():
                number += 1
                text = f"{name}/{number}"
                try:
                    await store.transact(methodcaller("append", session.id, drafts(text), NOW))
                    made.add(text)
                except Unavailable as error:
                    (unknown if "unknown" in error.message else refused).add(text)
                    await anyio.sleep(0.02)

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for name in range(8):
                    tasks.start_soon(write, name)
                for _ in range(3):
                    before = len(made)
                    while len(made) < before + 50:
                        await anyio.sleep(0.01)
                    await anyio.to_thread.run_sync(own_server.stop, signal.SIGQUIT)
                    await anyio.to_thread.run_sync(own_server.start)
                before = len(made)
                while len(made) < before + 50:
                    await anyio.sleep(0.01)
                stop.set()
        found = await texts_of(store, session)
        assert len(found) == len(set(found))
        assert made <= set(found)
        assert not refused & set(found)
        assert not unknown, "the server was back in time"
        assert await store.check() == []


@ON_ONE_LOOP
async def test_calls_are_refused_while_nothing_goes_through_a_connected_proxy(
    postgres, database, opened, monkeypatch
):
    """The connections stay open, so the system reports nothing."""
    from agent_orchestrator.stores.postgres import daemons
    from agent_orchestrator.stores.postgres import store as module

    monkeypatch.setattr(daemons, "HEARTBEAT_S", 0.2)
    with proxied(postgres.port) as proxy:
        async with opened(through(database(), proxy)) as store:
            session = a_session()
            await put(store, session)
            refused = []

            async def is_refused(call):
                with pytest.raises(Unavailable) as raised:
                    await call()
                refused.append(raised.value.details["problem"])

            proxy.hold()
            # Only now: before, and after it, a busy machine may answer a heartbeat later than that.
            with monkeypatch.context() as patch, anyio.fail_after(60):
                patch.setattr(module, "SILENT_LIMIT_S", 0.5)
                async with anyio.create_task_group() as tasks:
                    for call in (
                        lambda: store.transact(
                            methodcaller("append", session.id, drafts("lost"), NOW)
                        ),
                        lambda: store.read(lambda view: view.session(session.id)),
                    ):
                        tasks.start_soon(is_refused, call)
                [problem] = await store.problems()
            assert refused == ["database_unreachable"] * 2
            assert problem.code == "database_unreachable"
            proxy.release()
            with anyio.fail_after(60):
                while await store.problems():
                    await anyio.sleep(0.05)
                await store.transact(methodcaller("append", session.id, drafts("kept"), NOW))
            assert await texts_of(store, session) in (["kept"], ["lost", "kept"])
            assert await store.check() == []


@ON_ONE_LOOP
async def test_a_store_is_closed_while_nothing_goes_through_a_connected_proxy(
    postgres, database, opened, monkeypatch
):
    from agent_orchestrator.stores.postgres import store as module

    with proxied(postgres.port) as proxy, anyio.fail_after(60):
        async with opened(through(database(), proxy)):
            proxy.hold()
            monkeypatch.setattr(module, "SILENT_LIMIT_S", 0.5)


@ON_ONE_LOOP
async def test_a_value_may_take_longer_to_arrive_than_a_transaction_may_be_idle(
    postgres, database, opened, monkeypatch
):
    """The server takes a transaction for idle until it has the whole of a statement."""
    from agent_orchestrator.stores.postgres import connection

    shorter = connection._SETTINGS.replace("session_timeout = '5s'", "session_timeout = '1s'")
    assert shorter != connection._SETTINGS
    monkeypatch.setattr(connection, "_SETTINGS", shorter)
    text = "x" * 1_500_000
    with proxied(postgres.port) as proxy:
        async with opened(through(database(), proxy)) as store:
            session = a_session()
            await put(store, session)
            proxy.delay_s = 0.1  # for each 64 KiB at most
            with anyio.fail_after(60):
                await store.transact(methodcaller("append", session.id, drafts(text, "short"), NOW))
            proxy.delay_s = 0.0
            assert await texts_of(store, session) == [text, "short"]
            assert await store.problems() == ()


@ON_ONE_LOOP
async def test_a_stopped_daemon_to_which_the_server_sends_does_not_keep_its_locks(
    postgres, database, opened, monkeypatch
):
    """While rows are sent, its transaction is not idle, and its system still answers the server's probes."""
    from agent_orchestrator.stores.postgres import connection, daemons

    url = database()
    async with opened(url) as store:
        session = a_session()
        await put(store, session)
        with monkeypatch.context() as patch:
            shorter = connection._SETTINGS.replace("user_timeout = 15000", "user_timeout = 1000")
            patch.setattr(connection, "_SETTINGS", shorter)
            stopped = connection.Connection(url)
        try:
            stopped.execute("BEGIN")
            stopped.execute(daemons.LOCK)
            rows = b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
            stopped.pgconn.send_query(rows)  # more than is buffered on the way; nobody reads it
            with anyio.fail_after(60):
                while True:
                    with contextlib.suppress(Unavailable):  # it waits for a lock for so long only
                        await store.transact(methodcaller("append", session.id, drafts("x"), NOW))
                        break
        finally:
            stopped.close()
        assert await texts_of(store, session) == ["x"]


@ON_ONE_LOOP
async def test_calls_are_refused_while_the_server_is_away(own_server, opened):
    url = own_server.new_database()
    async with opened(url) as store:
        session = a_session()
        await put(store, session)
        own_server.stop()
        for call in (
            lambda: store.transact(methodcaller("append", session.id, drafts("x"), NOW)),
            lambda: store.read(lambda view: view.session(session.id)),
        ):
            with anyio.fail_after(45), pytest.raises(Unavailable) as raised:
                await call()
            assert raised.value.retry_after_s >= 1
            assert raised.value.details["problem"] == "database_unreachable"
        [problem] = await store.problems()
        assert problem.code == "database_unreachable"
        notified = []
        with store.listen(notified.append):
            own_server.start()
            with anyio.fail_after(45):
                while not any(ANY_TOPIC in topics for topics in notified):
                    await anyio.sleep(0.05)  # nobody calls: the store comes back by itself
                while await store.problems():
                    await anyio.sleep(0.05)
        assert await store.read(lambda view: view.session(session.id)) == session
        assert await texts_of(store, session) == []


async def test_a_server_that_is_away_is_reported_at_the_opening(opened):
    with pytest.raises(StoreOpenError, match="cannot open postgresql://ann@127") as raised:
        async with opened("postgresql://ann:hunter2@127.0.0.1:1/db?connect_timeout=2"):
            pass
    assert "hunter2" not in str(raised.value)


async def test_a_daemon_of_an_earlier_version_shares_the_database_with_no_other(
    postgres, database, opened
):
    url = database()
    async with opened(url):
        postgres.run("UPDATE agent_orchestrator.daemons SET version = NULL", url.rpartition("/")[2])
        said = f"in use by process {os.getpid()} on .*, of an earlier version"
        with pytest.raises(StoreLocked, match=said):
            async with opened(url):
                pass
    async with opened(url):
        pass


@ON_ONE_LOOP
async def test_a_daemon_that_was_killed_is_followed_at_once(database, opened):
    url = database()
    held = (
        "import anyio, sys\n"
        "from agent_orchestrator.stores.postgres import PostgresStore, daemons\n"
        "daemons.LEASE_S = 600.0\n"
        "async def main():\n"
        "    async with PostgresStore(sys.argv[1]):\n"
        "        print('open', flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-c", held, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout.readline() == b"open\n"
        async with opened(url) as store:
            both = await store.read(lambda view: view.daemons())
            assert [one.pid for one in both] == [process.pid, os.getpid()]
            process.kill()
            process.wait()
    with anyio.fail_after(60):
        async with opened(url) as store:
            [own] = await store.read(lambda view: view.daemons())
            assert own.id == store.lease.daemon_id


def elsewhere(server, url, lease):
    """Add the row of a daemon on another machine."""
    database = url.rpartition("/")[2]
    server.run(
        "INSERT INTO agent_orchestrator.daemons (id, host, machine, pid, expires_at) VALUES"
        f" ('dmn_far', 'far', 'boot/1', 7, clock_timestamp() + interval '{lease}')",
        database,
    )


async def test_a_daemon_on_another_machine_keeps_the_database_while_it_extends_its_lease(
    postgres, database, opened
):
    url = database()
    async with opened(url):
        pass  # the tables
    elsewhere(postgres, url, "1 hour")

    async def extend():
        while True:  # a busy machine may look for the first time after the first of them
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(
                postgres.run,
                "UPDATE agent_orchestrator.daemons SET expires_at = expires_at + interval '1 minute'"
                " WHERE ended_at IS NULL",
                url.rpartition("/")[2],
            )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(extend)
        with anyio.fail_after(60), pytest.raises(StoreLocked, match="process 7 on far"):
            async with opened(url):
                pass
        tasks.cancel_scope.cancel()


async def test_the_end_of_a_daemon_is_told_by_one_that_is_refused_itself(
    postgres, database, opened, monkeypatch
):
    """Runs may wait for that end, and nobody finds it a second time."""
    from agent_orchestrator.stores.postgres import daemons

    monkeypatch.setattr(daemons, "HEARTBEAT_S", 600.0)  # else the first daemon may be faster
    monkeypatch.setattr(daemons, "LEASE_S", 600.0)
    url = database()
    async with opened(url) as store:
        postgres.run("UPDATE agent_orchestrator.daemons SET version = NULL", url.rpartition("/")[2])
        elsewhere(postgres, url, "-1 seconds")
        heard = anyio.Event()
        with store.listen(lambda topics: heard.set() if DAEMONS_TOPIC in topics else None):
            with pytest.raises(StoreLocked):
                async with opened(url):
                    pass
            with anyio.fail_after(60):
                await heard.wait()


@ON_ONE_LOOP
def test_a_daemon_that_leaves_is_not_taken_for_lost(postgres, database):
    """Another one of the same process may look at that moment."""
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres import daemons
    from agent_orchestrator.stores.postgres.connection import Connection
    from agent_orchestrator.stores.postgres.schema import prepare

    url = database()
    with closing(Connection(url)) as one, closing(Connection(url)) as other:
        prepare(one)
        leaving, staying = daemons.join(one), daemons.join(other)

        class Watched:
            def execute(self, *statement):
                daemons.send_heartbeat(other, staying, lambda: datetime.now(UTC))
                return one.execute(*statement)

        daemons.leave(Watched(), leaving)
        daemons.leave(other, staying)
    lost = "SELECT is_lost FROM agent_orchestrator.daemons WHERE ended_at IS NOT NULL"
    assert postgres.run(lost, url.rpartition("/")[2]) == [(False,), (False,)]


async def test_a_daemon_whose_lease_has_expired_is_followed(postgres, database, opened):
    url = database()
    async with opened(url):
        pass
    elsewhere(postgres, url, "0.5 seconds")
    with anyio.fail_after(45):
        async with opened(url) as store:
            await put(store, a_session())


async def test_the_lease_is_extended_by_commits_and_without_them(database, opened, monkeypatch):
    from agent_orchestrator.stores.postgres import daemons

    monkeypatch.setattr(daemons, "HEARTBEAT_S", 0.05)
    async with opened(database()) as store:
        began = time.monotonic()
        first = store.lease.expires_at
        assert began < first <= time.monotonic() + daemons.LEASE_S
        await put(store, a_session())
        assert first < store.lease.expires_at <= time.monotonic() + daemons.LEASE_S
        with anyio.fail_after(45):
            while store.lease.expires_at < began + 1 + daemons.LEASE_S:
                await anyio.sleep(0.02)
        assert not store.lease.lost.is_set()


async def test_a_daemon_that_was_taken_over_commits_nothing_more(postgres, database, opened):
    url = database()
    async with opened(url) as store:
        session = a_session()
        await put(store, session)
        postgres.run(
            "UPDATE agent_orchestrator.daemons SET ended_at = now()", url.rpartition("/")[2]
        )
        for _ in range(2):
            with pytest.raises(Unavailable, match="taken over by another daemon"):
                await store.transact(methodcaller("append", session.id, drafts("late"), NOW))
        with anyio.fail_after(45):
            await store.lease.lost.wait()
        [problem] = await store.problems()
        assert problem.code == "lease_lost"
        assert await texts_of(store, session) == []


async def test_other_daemons_commits_are_heard_of(postgres, database, opened):
    """What another daemon would send. Until several may run, a session of the database stands for it."""
    url = database()
    async with opened(url) as store:
        notified = []
        heard = anyio.Event()

        def listener(topics):
            notified.append(topics)
            heard.set()

        with store.listen(listener):
            for payload, topics in (
                ('["dmn_far", "events", "session:s"]', {"events", "session:s"}),
                ('["dmn_far", "*"]', {ANY_TOPIC}),
                ("not ours", {ANY_TOPIC}),
            ):
                notified.clear()
                heard = anyio.Event()
                sql = f"SELECT pg_notify('agent_orchestrator', '{payload}')"
                await anyio.to_thread.run_sync(postgres.run, sql, url.rpartition("/")[2])
                with anyio.fail_after(45):
                    await heard.wait()
                assert notified == [frozenset(topics)]
            notified.clear()
            await store.transact(methodcaller("notify", "mine"))
            # Its own notification has come back by the time that this one comes.
            heard = anyio.Event()
            await anyio.to_thread.run_sync(
                postgres.run,
                """SELECT pg_notify('agent_orchestrator', '["dmn_far", "last"]')""",
                url.rpartition("/")[2],
            )
            with anyio.fail_after(45):
                while frozenset({"last"}) not in notified:
                    await anyio.sleep(0.01)
            assert notified == [frozenset({"mine"}), frozenset({"last"})]


@ON_ONE_LOOP
def test_many_topics_are_sent_as_all():
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres.notifications import topics_of
    from agent_orchestrator.stores.postgres.writer import payload

    few = payload("dmn_1", {"events", "run:ü"})
    assert topics_of(few.encode(), "dmn_2") == {"events", "run:ü"}
    assert topics_of(few.encode(), "dmn_1") == frozenset()
    many = payload("dmn_1", {f"session:{number:030}" for number in range(1000)})
    assert len(many) < 8000
    assert topics_of(many.encode(), "dmn_2") == {ANY_TOPIC}


async def test_a_restored_database_begins_a_new_timeline(postgres, database, opened):
    """A dump that is restored elsewhere lacks the events since, and gives their numbers to others."""
    url = database()
    name = url.rpartition("/")[2]
    copy = f"copy_of_{name}"
    session = a_session()

    async def append(store, text):
        await store.transact(methodcaller("append", session.id, drafts(text), NOW))
        return await store.read(lambda view: view.feed_head())

    async with opened(url) as store:
        await put(store, session)
        kept = await append(store, "kept")
    postgres.run(f"CREATE DATABASE {copy} TEMPLATE {name}")
    try:
        async with opened(url) as store:
            assert await store.read(methodcaller("feed", after=kept, limit=9)) == []
            lost = await append(store, "lost")
        async with opened(url.replace(name, copy)) as store:
            other = await append(store, "other")
            assert lost.partition(".")[0] == other.partition(".")[0]
            [item] = await store.read(methodcaller("feed", after=kept, limit=9))
            assert item.event.data == {"text": "other"}
            with pytest.raises(CursorAhead) as raised:
                await store.read(methodcaller("feed", after=lost, limit=9))
            again = raised.value.details["resume_cursor"]
            assert len(await store.read(methodcaller("feed", after=again, limit=9))) == 2
            epoch = kept.partition(".")[2]
            assert await store.read(methodcaller("last_common_seq", session.id, epoch)) == 1
    finally:
        postgres.run(f"DROP DATABASE {copy}")

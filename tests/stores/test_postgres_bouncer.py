"""The store through PgBouncer: in transaction mode it shares sessions among clients, and loses notifications."""

import logging
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from loops import ON_ONE_LOOP
from ports import free_port
from serving import agentd
from test_agentd_process import call, wait_for

from agent_orchestrator.domain.errors import StoreOpenError
from agent_orchestrator.store_copy import copy_store
from agent_orchestrator.testing.stores.samples import HARD_TEXT, NOW, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


def opened(url, **options):
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore(url, **options)


def program():
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = "pgbouncer is not there: run `bin/setup postgres` as root on Debian"
        if os.environ.get("REQUIRE_PGBOUNCER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def pooled(server, mode, *, size=4):
    """Start PgBouncer before a server, and yield a function that returns the URL through it."""
    bouncer = program()
    folder = Path(server.folder) / f"bouncer-{mode}-{time.monotonic_ns()}"
    folder.mkdir()
    port = free_port()
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
[databases]
* = host=127.0.0.1 port={server.port} user=owner
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
logfile = {folder}/log
server_login_retry = 0.2
"""
    )
    for path in (folder, config):
        shutil.chown(path, server.folder.stat().st_uid, server.folder.stat().st_gid)
    with subprocess.Popen(
        [*server.user, bouncer, "-q", config], stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until_open(process, folder, port)
            yield lambda url: url.replace(f":{server.port}/", f":{port}/")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            shutil.rmtree(folder)


def wait_until_open(process, folder, port):
    import socket

    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)


async def codes(store):
    return [problem.code for problem in await store.problems()]


async def is_deaf(store, expected):
    with anyio.fail_after(60):
        while ("notifications_late" in await codes(store)) != expected:
            await anyio.sleep(0.05)


async def use(store, other):
    """Change and read by two stores, and return the session."""
    session = a_session(title=HARD_TEXT)
    await put(store, session)

    async def append(by):
        for _ in range(10):
            await by.transact(lambda tx: tx.append(session.id, drafts(HARD_TEXT, "x"), NOW))
            await by.read(lambda view: view.session(session.id))

    async with anyio.create_task_group() as tasks:
        for by in (store, other, store, other):
            tasks.start_soon(append, by)
    events = await other.read(lambda view: view.events(session.id, after=0, limit=999))
    assert [event.seq for event in events] == list(range(1, 81))
    assert await store.check() == []
    return session


async def hears(listening, writing, session):
    """Wait until a store is notified of a change by another."""
    heard = anyio.Event()

    def note(topics):
        if topics & {f"session:{session.id}", "*"}:
            heard.set()

    with listening.listen(note), anyio.fail_after(45):
        await writing.transact(lambda tx: tx.append(session.id, drafts("told"), NOW))
        await heard.wait()


async def test_transaction_mode_works_with_a_direct_address_for_notifications(postgres, database):
    url = database()
    with pooled(postgres, "transaction", size=2) as through:
        async with (
            opened(through(url), listen=url) as one,
            opened(through(url), listen=url) as other,
        ):
            session = await use(one, other)
            await hears(one, other, session)
            await is_deaf(one, expected=False)
            assert await codes(one) == await codes(other) == []
        # Nothing of our sessions is left to other clients of the pool.
        shown = postgres_setting(through(url), "search_path")
        assert "agent_orchestrator" not in shown


def postgres_setting(url, name):
    import psycopg

    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        return connection.execute(f"SHOW {name}").fetchone()[0]


async def test_without_it_the_store_says_so_and_is_notified_late(postgres, database, caplog):
    url = database()
    with pooled(postgres, "transaction") as through, caplog.at_level(logging.WARNING):
        async with opened(through(url)) as one, opened(url) as other:
            await is_deaf(one, expected=True)
            assert await codes(other) == []
            [problem] = await one.problems()
            assert "store_listen" in problem.message
            assert "store_listen" in caplog.text
            session = await use(one, other)
            await hears(one, other, session)


async def test_session_mode_hears(postgres, database):
    url = database()
    with pooled(postgres, "session", size=30) as through:
        async with opened(through(url)) as one, opened(through(url)) as other:
            session = await use(one, other)
            await hears(other, one, session)
            await is_deaf(one, expected=False)


async def test_a_direct_connection_is_no_pooler(postgres):
    from agent_orchestrator.stores.postgres.connection import Connection

    url = postgres.new_database()
    with pooled(postgres, "transaction") as through:
        for place, expected in ((url, False), (through(url), True)):
            connection = Connection(place)
            assert connection.is_pooled is expected
            assert connection.first_row("SELECT 1 + ?", (1,)) == (2,)
            assert not connection.in_transaction
            connection.close()


async def test_a_copy_refuses_a_pooler(postgres, tmp_path):
    url = postgres.new_database()
    with (
        pooled(postgres, "transaction") as through,
        pytest.raises(StoreOpenError, match="connection pooler"),
    ):
        copy_store(through(url), str(tmp_path / "back.db"))


def test_agentd_through_a_pooler(postgres, database, tmp_path):
    url = database()
    secret = url.replace("owner@", "owner:hunter-22@")
    with pooled(postgres, "transaction") as through:
        with agentd(tmp_path, "--store", through(url)) as daemon:

            def says_so():
                problems = call(daemon, "GET", "/daemon/status")["problems"]
                return any(problem["code"] == "notifications_late" for problem in problems)

            wait_for(says_so, "the status says that notifications are late")
            findings = call(daemon, "GET", "/daemon/doctor")["findings"]
            assert any("store_listen" in finding["message"] for finding in findings)
        (tmp_path / "ready.json").unlink(missing_ok=True)
        env = {"AGENTD_STORE": through(secret), "AGENTD_STORE_LISTEN": secret}
        with agentd(tmp_path, env=env) as daemon:
            session = call(daemon, "POST", "/sessions", json={})["session"]["id"]
            call(daemon, "POST", f"/sessions/{session}/messages", json={"text": "hello"})
            status = call(daemon, "GET", "/daemon/status")
            assert not any(one["code"] == "notifications_late" for one in status["problems"])
            assert "hunter" not in str(status)
            assert "hunter" not in daemon.stderr()

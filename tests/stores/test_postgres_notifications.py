"""Notifications of other daemons: what is done when they do not arrive."""

import contextlib

import anyio
import anyio.to_thread
import pytest
from cutting import proxied
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.testing.stores.samples import NOW, a_session, drafts, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    pytest.importorskip("psycopg")
    from agent_orchestrator.stores.postgres import notifications

    monkeypatch.setattr(notifications, "POLL_S", 0.2)
    monkeypatch.setattr(notifications, "PROBE_S", 0.2)
    monkeypatch.setattr(notifications, "PROBE_TIMEOUT_S", 1.0)


def opened(url, **options):
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore(url, **options)


def through(url, proxy):
    return f"postgresql://owner@127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}"


async def is_late(store, expected):
    """Wait until a store says that it is, or is not, notified late."""
    with anyio.fail_after(60):
        while ("notifications_late" in [one.code for one in await store.problems()]) != expected:
            await anyio.sleep(0.02)


async def topics_of_change(listening, writing, session):
    """Return the topics of the first notification of another store's change."""
    heard = anyio.Event()
    topics = set()

    def note(found):
        if found & {f"session:{session.id}", "*"}:
            topics.update(found)
            heard.set()

    with listening.listen(note), anyio.fail_after(60):
        await writing.transact(lambda tx: tx.append(session.id, drafts("told"), NOW))
        await heard.wait()
    return topics


async def test_an_address_for_notifications_that_is_gone_is_reported(postgres, database):
    """The other connections work, so nothing else shows it."""
    url = database()
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(proxied(postgres.port))
        async with opened(url, listen=through(url, proxy)) as one, opened(url) as other:
            session = a_session()
            await put(one, session)
            assert f"session:{session.id}" in await topics_of_change(one, other, session)
            await anyio.to_thread.run_sync(stack.close)
            await is_late(one, expected=True)
            assert await topics_of_change(one, other, session) == {"*"}
            [problem] = await one.problems()
            assert "store_listen cannot be reached" in problem.message


async def test_a_connection_for_notifications_that_is_dead_is_replaced(postgres, database):
    """It stays open, as behind a proxy that has lost the server."""
    url = database()
    with proxied(postgres.port) as proxy:
        async with opened(url, listen=through(url, proxy)) as one, opened(url) as other:
            session = a_session()
            await put(one, session)
            assert f"session:{session.id}" in await topics_of_change(one, other, session)
            proxy.strand()
            await is_late(one, expected=True)
            await is_late(one, expected=False)
            with anyio.fail_after(60):
                while f"session:{session.id}" not in await topics_of_change(one, other, session):
                    await anyio.sleep(0.02)


async def test_without_notifications_changes_are_looked_for_at_short_intervals(
    postgres, database, monkeypatch
):
    from agent_orchestrator.stores.postgres import notifications

    url = database()
    with proxied(postgres.port) as proxy:
        async with opened(url, listen=through(url, proxy)) as one:
            proxy.hold()
            await is_late(one, expected=True)
            # From now on it does not wait as long for each probe.
            monkeypatch.setattr(notifications, "PROBE_TIMEOUT_S", 3600.0)
            looked = []
            with one.listen(looked.append), anyio.fail_after(60):
                while len(looked) < 3:
                    await anyio.sleep(0.02)
            assert set(looked) == {frozenset({"*"})}
            proxy.release()


async def test_others_are_notified_of_a_daemon_when_it_has_given_sessions_its_host(
    database, monkeypatch
):
    """Before that, they would find none of their runs, and nothing would wake them again."""
    from agent_orchestrator.stores.postgres import daemons

    steps = []

    def note(name):
        call = getattr(daemons, name)

        def noted(*values):
            steps.append(name)
            return call(*values)

        monkeypatch.setattr(daemons, name, noted)

    note("_adopt_some")
    note("_tell")
    async with opened(database()) as store:
        session = a_session(host=None)
        await put(store, session)
        steps.clear()
        await store.join(DaemonProfile("1", None, 1, ("codex",), "x"))
        assert (await store.read(lambda view: view.session(session.id))).host == "x"
    assert steps == ["_adopt_some", "_tell"]

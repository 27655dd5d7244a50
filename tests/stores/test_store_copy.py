"""Copies of a database between SQLite and PostgreSQL, which may be killed at any moment."""

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from contextlib import closing
from hashlib import sha256

import anyio
import pytest
from attrs import evolve
from driving import COMMAND, PATIENCE_S, environment, finished, started
from loops import ON_ONE_LOOP

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import AuditEntry, entry_hash, first_break
from agent_orchestrator.domain.errors import ConfigError, StoreLocked, StoreOpenError
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Attempt, Image, RunResult, Thread
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import Draft
from agent_orchestrator.store_copy import CopyFailed, copy_store
from agent_orchestrator.store_copy.tables import DERIVED, INDEX, OWN, TABLES
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import (
    HARD_TEXT,
    NOW,
    a_message,
    a_notice,
    a_record,
    a_request,
    a_run,
    a_session,
    a_subscription,
    drafts,
    put,
)
from agent_orchestrator.testing.stores.searches import find, log, say, until_complete

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

ODD = ("\x01", "\x01x00", '\x01"a"', "\0", "a\0b", "", HARD_TEXT, "\ufffd\U0010ffff")
LONG = "ü\0" * 100_000
SESSIONS = 3


def opened(location, **options):
    if "://" not in str(location):
        return SqliteStore(location, **options)
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore(location, **options)


def audited(text, previous):
    seq = 1 if previous is None else previous.seq + 1
    entry = AuditEntry(seq, NOW, "ann", "run", "cancel_run", text, "done", {"a": [text, None]}, "-")
    return evolve(entry, hash=entry_hash(previous.hash if previous else "", entry))


async def fill(location, *, events=0):
    """Give each table rows."""
    async with opened(location) as store:
        for number in range(SESSIONS):
            session = a_session(title=ODD[number], metadata={"a": ODD}, owner=f"ann{number}")
            data = bytes(range(256)) * number
            picture = Image("image/png", len(data), sha256(data).hexdigest())
            run = a_run(session.id, priority=bool(number % 2))
            ended = a_run(session.id, status=RunStatus.COMPLETED, result=RunResult(LONG[number:]))
            message = a_message(session.id, text="\n".join(ODD), images=(picture,), run_id=run.id)
            await put(store, session, run, ended, message)

            def change(tx, session=session, run=run, message=message, data=data, number=number):
                for text in ODD:
                    tx.append(session.id, drafts(text), NOW)
                    tx.add_audit(audited(text, tx.last_audit()))
                tx.append(session.id, drafts(LONG, "x", run_id=run.id), NOW)
                tx.add_image(message.id, sha256(data).hexdigest(), data)
                tx.put_attempt(Attempt(run.id, 1, "dmn_1/1", "demo", NOW, stderr_tail=HARD_TEXT))
                tx.add_request(a_request(run, text=HARD_TEXT, detail={"x": ODD[number]}))
                tx.put_thread(session.id, "codex", Thread(f"thread \0 {number}", {"a": HARD_TEXT}))
                tx.put_grants(session.id, [Grant("bob", "reader"), Grant("cy", "writer")])
                token = AccessToken(f"tok_{number}", HARD_TEXT, "bob", (), "ann", NOW, None)
                tx.add_token(token, f"{number}" * 64)
                record = a_record(key=f"{ODD[number]}{number}", answer=HARD_TEXT)
                tx.add_record(record, max_count=9, max_size=99_999)
                tx.put_seen("bob", session.id, number)
                tx.add_notice(a_notice(f"req_{number}", error=HARD_TEXT))
                tx.add_push_subscription(a_subscription("bob", name=HARD_TEXT))
                tx.set_notice_cursor("5")
                tx.delete_events(session.id, through=number, digest="ab")
                tx.delete_events(session.id, seqs=(4,))
                tx.mark_pruned_audited(session.id)

            await store.transact(change)
        for _ in range(0, events, 500):
            many = [Draft("agent.message", {"text": f"line {n} \0"}) for n in range(500)]
            await store.transact(lambda tx, many=many: tx.append(session.id, many, NOW))


def contents(view):
    """Return what the model sees of all tables."""
    sessions = view.sessions(limit=99)
    runs = view.runs(limit=99)
    messages = [message for one in sessions for message in view.messages(one.id, limit=99)]
    return {
        "sessions": sessions,
        "messages": messages,
        "images": [view.image(image.digest) for one in messages for image in one.images],
        "image_space": view.image_space(),
        "runs": runs,
        "attempts": [view.attempts(run.id) for run in runs],
        "activity": [(view.last_event_at(run), view.last_output_at(run)) for run in runs],
        "live_runs": view.live_runs(),
        "events": [view.events(one.id, after=0, limit=999_999) for one in sessions],
        "requests": view.requests(limit=99),
        "threads": [view.thread(one.id, "codex") for one in sessions],
        "of_thread": [view.session_of_thread(f"thread \0 {n}") for n in range(SESSIONS)],
        "grants": [view.grants(one.id) for one in sessions],
        "tokens": view.tokens(limit=99),
        "of_hash": [view.token_of_hash(f"{n}" * 64) for n in range(SESSIONS)],
        "records": [
            view.idempotency("local", "POST /sessions", f"{ODD[n]}{n}") for n in range(SESSIONS)
        ],
        "audit": view.audit(after=0, limit=999),
        "seen": [view.seen("bob", one.id) for one in sessions],
        "notices": view.notices(limit=99),
        "notice_cursor": view.notice_cursor(),
        "subscriptions": view.push_subscriptions(limit=99),
        "newest_ids": view.newest_ids(),
        "count": view.event_count(),
    }


async def contents_of(location):
    async with opened(location) as store:
        assert await store.check() == []
        assert await store.problems() == ()
        return await store.read(contents)


def tables_of(report, *, without=("epochs",)):
    return {one.name: (one.rows, one.sha256) for one in report.tables if one.name not in without}


async def test_both_ways_keep_everything(tmp_path, database):
    url, back = database(), tmp_path / "back.db"
    source = tmp_path / "agents.db"
    await fill(source)
    expected = await contents_of(source)
    there = copy_store(str(source), url)
    assert {one.name for one in there.tables if not one.rows} == set(), "each table has a row"
    assert there.rows == sum(one.rows for one in there.tables)
    assert await contents_of(url) == expected
    again = copy_store(url, str(back))
    assert tables_of(again) == tables_of(there)
    assert await contents_of(back) == expected
    assert await contents_of(source) == expected
    assert first_break(expected["audit"]) is None
    assert [path.name for path in tmp_path.iterdir() if "copying" in path.name] == []
    assert back.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("to_postgres", [True, False])
async def test_a_copy_can_be_used_further(tmp_path, database, to_postgres):
    places = tmp_path / "agents.db", database()
    source, target = places if to_postgres else places[::-1]
    await fill(source)
    async with opened(source) as store:
        cursor, epoch = await store.read(lambda view: (view.feed_head(), view.epoch()))
    copy_store(str(source), str(target))
    async with opened(target) as store:
        last = (await store.read(lambda view: view.sessions(limit=99)))[-1]
        assert await store.read(lambda view: view.feed(after=cursor, limit=9)) == []
        seq = await store.read(lambda view: view.last_common_seq(last.id, epoch))
        assert seq == last.last_seq
        session = a_session()
        run = a_run(session.id)
        await put(store, session, run)

        def change(tx):
            tx.append(session.id, drafts("one"), NOW)
            tx.append(last.id, drafts("more"), NOW)
            tx.add_audit(audited("after the copy", tx.last_audit()))
            tx.add_record(a_record(key="new"), max_count=9, max_size=99_999)
            tx.put_run(evolve(run, status=RunStatus.COMPLETED))

        await store.transact(change)
        found = await store.read(lambda view: view.feed(after=cursor, limit=9))
        assert [item.event.session_id for item in found] == [session.id, last.id]
        assert first_break(await store.read(lambda view: view.audit(after=0, limit=999))) is None
        assert (await store.read(lambda v: v.live_runs()))["demo"] == {RunStatus.QUEUED: SESSIONS}
        assert await store.check() == []
    # The source was used further, too: readers who were ahead of the copy are told.
    async with opened(source) as store:
        await store.transact(lambda tx: tx.append(last.id, drafts("other", "log"), NOW))
        epoch = await store.read(lambda view: view.epoch())
    async with opened(target) as store:
        assert await store.read(lambda view: view.last_common_seq(last.id, epoch)) == 0


async def test_large_values_are_copied_alone(tmp_path, database):
    source, url, back = tmp_path / "agents.db", database(), tmp_path / "back.db"
    text = "ü" * 32_000_000  # 64 MB
    session = a_session()
    run = a_run(session.id, result=RunResult(text[1:]), status=RunStatus.COMPLETED)
    async with opened(source) as store:
        await put(store, session, run)
        await store.transact(lambda tx: tx.append(session.id, drafts(text, "small"), NOW))
    there = copy_store(str(source), url)
    assert tables_of(copy_store(url, str(back))) == tables_of(there)
    async with opened(back) as store:
        [large, small] = await store.read(lambda v: v.events(session.id, after=0, limit=9))
        assert (large.data["text"], small.data["text"]) == (text, "small")
        assert (await store.read(lambda view: view.run(run.id))).result == run.result


def tables_in(url):
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'agent_orchestrator'"
        return {row[0] for row in connection.execute(query)}


async def test_all_tables_are_known(tmp_path, database):
    known = {table.name for table in TABLES} | set(DERIVED) | OWN | INDEX
    url = database()
    async with opened(url):
        pass
    assert tables_in(url) - known == set()
    path = tmp_path / "agents.db"
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = {name for (name,) in found}
        # FTS5 makes these tables for its index.
        assert {name for name in names if not name.startswith("search_index_")} - known == set()


async def test_a_copy_makes_its_own_index_of_words(tmp_path, database):
    source, url, back = tmp_path / "agents.db", database(), tmp_path / "back.db"
    session = a_session(title="needle title")
    async with opened(source) as store:
        await put(store, session)
        await log(store, session, "session.created", {"title": session.title})
        await say(store, session, "needle \0 one", "other", "needle two" * 20_000)
        expected = await find(store, "needle*")
        assert len(expected) == 3
    copy_store(str(source), url)
    async with opened(url) as store:
        await until_complete(store)
        assert await find(store, "needle*") == expected
        await say(store, session, "needle three")
    copy_store(url, str(back))
    async with opened(back) as store:
        await until_complete(store)
        assert await find(store, "needle*") == ["needle three", *expected]
        assert await store.check() == []


async def test_databases_in_use_are_refused(tmp_path, database):
    source, url = tmp_path / "agents.db", database()
    await fill(source)
    async with opened(source):
        with pytest.raises(StoreLocked, match="in use by process"):
            copy_store(str(source), url)
    async with opened(url):
        with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}"):
            copy_store(str(source), url)
        with pytest.raises(StoreLocked, match=f"in use by process {os.getpid()}"):
            copy_store(url, str(tmp_path / "back.db"))
    # A database that was opened and never used has no content.
    assert copy_store(str(source), url).rows > 0


async def test_nothing_is_overwritten(tmp_path, database):
    source, url, other = tmp_path / "agents.db", database(), tmp_path / "other.db"
    await fill(source)
    copy_store(str(source), url)
    before = await contents_of(url)
    with pytest.raises(CopyFailed, match="has content already, in the table sessions"):
        copy_store(str(source), url)
    assert await contents_of(url) == before
    for end in ("", "-wal", ".commits"):
        beside = tmp_path / f"other.db{end}"
        beside.write_bytes(b"mine")
        with pytest.raises(CopyFailed, match="exists already"):
            copy_store(url, str(other))
        assert beside.read_bytes() == b"mine"
        beside.unlink()
    unfinished = tmp_path / ".other.db.copying"
    unfinished.write_bytes(b"mine")
    with pytest.raises(StoreOpenError, match="not an unfinished copy"):
        copy_store(url, str(other))
    assert unfinished.read_bytes() == b"mine"
    unfinished.unlink()

    def make(_):
        if not other.exists():
            other.write_bytes(b"mine")

    with pytest.raises(CopyFailed, match="exists already"):
        copy_store(url, str(other), on_progress=make)
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("a.db", "b.db"), "both are SQLite"),
        (("postgresql://a", "postgresql://b"), "both are PostgreSQL"),
        (("mysql://a", "b.db"), "mysql:// cannot be copied"),
        ((":memory:", "postgresql://b"), ":memory: is not"),
    ],
)
def test_what_cannot_be_copied_is_refused(places, said):
    with pytest.raises(ConfigError, match=said):
        copy_store(*places)


async def test_a_source_must_exist(tmp_path, database):
    url = database()
    with pytest.raises(StoreOpenError, match=r"none\.db does not exist"):
        copy_store(str(tmp_path / "none.db"), url)
    assert not list(tmp_path.iterdir())


async def test_a_source_without_tables_is_refused(tmp_path, postgres):
    url = postgres.new_database()
    with pytest.raises(StoreOpenError, match="has no tables of agentd"):
        copy_store(url, str(tmp_path / "back.db"))
    assert not list(tmp_path.glob("back*"))


class Stopped(Exception):
    """The copy ends here."""


def stop_at(step, rows):
    def stop(progress):
        if progress.step == step and progress.rows >= rows:
            raise Stopped

    return stop


async def test_no_daemon_opens_an_unfinished_copy(tmp_path, database):
    source, url = tmp_path / "agents.db", database()
    await fill(source)
    with pytest.raises(Stopped):
        copy_store(str(source), url, on_progress=stop_at("checking", 1))
    with pytest.raises(StoreOpenError, match="is an unfinished copy"):
        await contents_of(url)
    with pytest.raises(StoreOpenError, match="is an unfinished copy"):
        await opened(url).reach()
    with pytest.raises(StoreOpenError, match="is an unfinished copy"):
        copy_store(url, str(tmp_path / "back.db"))
    assert copy_store(str(source), url).resumed
    assert await contents_of(url) == await contents_of(source)


@pytest.mark.parametrize("to_postgres", [True, False])
async def test_a_changed_source_is_copied_anew(tmp_path, database, to_postgres):
    places = tmp_path / "agents.db", database()
    source, target = map(str, places if to_postgres else places[::-1])
    await fill(source)
    with pytest.raises(Stopped):
        copy_store(source, target, on_progress=stop_at("checking", 1))
    await contents_of(source)  # opened, and not changed
    with pytest.raises(Stopped):
        copy_store(source, target, on_progress=stop_at("checking", 1))
    async with opened(source) as store:
        [session, *_] = await store.read(lambda view: view.sessions(limit=1))
        await store.transact(lambda tx: tx.append(session.id, drafts("later"), NOW))
    assert not copy_store(source, target).resumed
    assert await contents_of(target) == await contents_of(source)


async def test_a_copy_that_differs_is_found_and_made_anew(tmp_path, postgres, database):
    source, url = tmp_path / "agents.db", database()
    await fill(source)

    def damage(progress):
        if (progress.step, progress.rows) == ("checking", 1 + SESSIONS - 1):
            name = url.rpartition("/")[2]
            postgres.run("UPDATE agent_orchestrator.messages SET role = role || '.'", name)

    with pytest.raises(CopyFailed, match="differs from its source: messages has 3 rows"):
        copy_store(str(source), url, on_progress=damage)
    assert not copy_store(str(source), url).resumed
    assert await contents_of(url) == await contents_of(source)


def copied_tables(target):
    """Return how many tables an unfinished copy has begun; None if there is no such copy."""
    try:
        if "://" in target:
            import psycopg

            with psycopg.connect(target, autocommit=True) as connection:
                query = "SELECT count(*) FROM agent_orchestrator.unfinished_copy"
                return connection.execute(query).fetchone()[0]
        folder, _, name = target.rpartition("/")
        path = f"file:{folder}/.{name}.copying?mode=ro"
        with closing(sqlite3.connect(path, uri=True, timeout=0)) as connection:
            return connection.execute("SELECT count(*) FROM copying").fetchone()[0]
    except Exception:  # noqa: BLE001 - there is none yet, or it is busy
        return None


def copy_command(source, target):
    return [*COMMAND, "--format", "json", "store", "copy", source, target]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to_postgres", [True, False])
async def test_a_copy_that_is_killed_goes_on(tmp_path, postgres, database, to_postgres):
    places = str(tmp_path / "agents.db"), database()
    source, target = places if to_postgres else places[::-1]
    await fill(source, events=20_000)
    expected = await contents_of(source)
    env = environment(XDG_STATE_HOME=str(tmp_path / "state"))
    kills = 0
    # At the beginning, in the middle of the tables, within the events, behind the last table.
    for tables, pause_s in ((0, 0), (1, 0), (4, 0), (9, 0), (9, 0.3), (len(TABLES), 0), (99, 0.5)):
        with started(copy_command(source, target), env=env, stdout=subprocess.PIPE) as process:
            deadline = time.monotonic() + PATIENCE_S
            while (
                process.poll() is None
                and (tables < 99 or time.monotonic() < deadline - PATIENCE_S + pause_s)
                and ((found := copied_tables(target)) is None or found < tables)
            ):
                assert time.monotonic() < deadline
                await anyio.sleep(0.005)
            await anyio.sleep(pause_s if tables < 99 else 0)
            process.kill()
            assert process.wait() in (-signal.SIGKILL, 0)
            kills += process.returncode != 0
            if process.returncode == 0:
                break
    else:
        done = finished(copy_command(source, target), PATIENCE_S, env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resumed"] is True
    assert kills >= 4
    assert await contents_of(target) == expected
    assert not list(tmp_path.glob(".*copying*"))


def test_progress_is_shown_on_a_terminal(tmp_path, database):
    source, url = tmp_path / "agents.db", database()
    anyio.run(lambda: fill(source, events=40_000))
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with started(
        [*COMMAND, "store", "copy", str(source), url],
        env=environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        out = process.communicate(timeout=PATIENCE_S)[0].decode()
    shown = b""
    try:
        while part := os.read(master, 65_536):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert b"events: " in shown
    assert b" rows (" in shown
    assert f"copied {source} to " in out
    assert "each read in both" in out


def test_no_password_is_shown(tmp_path, postgres, database):
    url = database()
    anyio.run(fill, url)
    secret = url.replace("owner@", "owner:hunter22@")
    answers = [
        finished(copy_command(*places), PATIENCE_S, env=environment())
        for places in (
            (secret, str(tmp_path / "back.db")),
            (str(tmp_path / "back.db"), secret),
            (secret.replace(f":{postgres.port}", ":1"), str(tmp_path / "other.db")),
            (secret.replace("owner", "own er"), str(tmp_path / "other.db")),
            (secret.replace("owner:", "owner:p@ss"), str(tmp_path / "other.db")),
        )
    ]
    assert [one.returncode for one in answers] == [0, 6, 1, 1, 2], answers
    assert all(b"hunter" not in one.stdout + one.stderr for one in answers)
    assert all(b"Traceback" not in one.stderr for one in answers)
    report = json.loads(answers[0].stdout)
    assert report["source"] == url
    assert {one["name"] for one in report["tables"]} == {table.name for table in TABLES}


def test_agentd_starts_on_a_copy_at_its_default_path(tmp_path, database):
    """The copy counts as the user's own: its queued runs may be carried out."""
    url = database()
    anyio.run(fill, url)
    env = environment(XDG_STATE_HOME=str(tmp_path / "state"))
    folder = tmp_path / "project" / ".agent-orchestrator"
    done = finished(copy_command(url, str(folder / "agents.db")), PATIENCE_S, env=env)
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; from pathlib import Path;"
        "from agent_orchestrator.known_databases import is_known;"
        "from agent_orchestrator.stores.sqlite.connection import names_of;"
        "from agent_orchestrator.user_state import user_state;"
        "sys.exit(0 if is_known(user_state(), names_of(Path(sys.argv[1]))) else 1)"
    )
    subprocess.run([sys.executable, "-c", code, folder / "agents.db"], env=env, check=True)

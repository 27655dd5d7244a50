"""Measure durable events of the embedded client, compared with a plain loop of inserts."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import apsw

from agent_orchestrator import open_embedded
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.sqlite import SqliteStore
from benchmarks import function_agents
from benchmarks.figures import Effort, Figure, check, medians

BATCH = 64
COLUMNS = "position, session, seq, run_id, attempt, event_type, created_at, data"
Rows = list[tuple[Any, ...]]


def measure(effort: Effort, directory: Path) -> list[Figure]:
    times = effort.of(full=7, quick=3, smoke=1)
    count = effort.of(full=20_000, quick=10_000, smoke=200)
    directory.mkdir(parents=True)
    files = (directory / f"{number}.db" for number in range(2 * times + 2))
    through: list[Path] = []

    def embedded() -> float:
        through.append(next(files))
        return anyio.run(partial(_append, through[-1], count))

    def bare() -> float:
        return _insert(next(files), through[-1])

    medians(1, embedded, bare)  # warms up
    seconds, bare_seconds = medians(times, embedded, bare)
    rate = count / seconds
    # The plain loop also inserts the few events of the run itself.
    bare_rate = len(_event_rows(through[-1])) / bare_seconds
    return [
        Figure(
            name="events appended by the embedded client / bare inserts by 64",
            value=rate / bare_rate,
            bound=0.25,
            limit="at least",
            detail=f"{rate:,.0f}/s / {bare_rate:,.0f}/s",
        )
    ]


async def _append(file: Path, count: int) -> float:
    runner = FunctionRunner("talk", function_agents.talk)
    async with open_embedded(file, runners=[runner]) as client:
        session = await client.create_session()
        started = time.perf_counter()
        sent = await client.send_message(session.id, str(count))
        assert sent.run is not None
        waited = await client.wait_run(sent.run.id, timeout_s=120)
        seconds = time.perf_counter() - started
        check(waited.run.status == "completed", f"the run ended {waited.run.status}")
        events = [event async for event in client.events(session.id)]
    numbers = [event.seq for event in events]
    check(numbers == list(range(1, len(events) + 1)), "the log has a gap")
    words = sum(event.event_type == "agent.message.delta" for event in events)
    check(words == count, f"{words} of {count} events in the log")
    return seconds


def _insert(file: Path, source: Path) -> float:
    """Insert the rows that the client wrote into a new database with the same schema."""
    rows = _event_rows(source)
    anyio.run(partial(_make_database, file))
    connection = apsw.Connection(str(file))
    try:
        for name, value in (("synchronous", 2), ("foreign_keys", 1)):
            connection.pragma(name, value)
            check(connection.pragma(name) == value, f"SQLite keeps {name}")
        check(connection.pragma("journal_mode") == "wal", "the database has no write-ahead log")
        marks = ", ".join("?" * len(rows[0]))
        statement = f"INSERT INTO events ({COLUMNS}) VALUES ({marks})"
        started = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            with connection:
                connection.executemany(statement, rows[start : start + BATCH])
        seconds = time.perf_counter() - started
        found = connection.execute("SELECT count(*) FROM events").get
        check(found == len(rows), f"{found} of {len(rows)} rows were inserted")
    finally:
        connection.close()
    return seconds


async def _make_database(file: Path) -> None:
    async with SqliteStore(file):
        pass
    connection = apsw.Connection(str(file))
    try:
        # The rows that events refer to.
        connection.execute(
            "INSERT INTO sessions (number, id, owner, cwd, status, root_session_id, depth,"
            " notify_parent, metadata, created_at, updated_at)"
            " VALUES (1, 'ses_1', 'local', '/', 'open', 'ses_1', 0, 'record', '{}', '', '')"
        )
    finally:
        connection.close()


def _event_rows(file: Path) -> Rows:
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        return list(connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position"))
    finally:
        connection.close()

"""Measure the store on PostgreSQL: accepts, turns, and events on a stream. The server is on the same machine."""

import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.runners.function import FunctionRunner
from benchmarks import function_agents, postgres_costs
from benchmarks.codex import NotMeasured
from benchmarks.figures import Effort, Figure, check, medians
from benchmarks.processes import ROOT
from benchmarks.turns import turn

sys.path.append(str(ROOT / "tests" / "support"))
from postgres import (  # type: ignore[import-not-found]
    Server,
    programs,
    served,
)

CALLERS: Final = 50
BATCH: Final = 64
TABLES: Final = {
    "messages": "id",
    "runs": "id",
    "events": "position",
    "activity": "run_id",
    "idempotency": "number",
}
"""The tables to which an accept adds rows, and the columns that order them."""


def measure(effort: Effort, directory: Path) -> list[Figure]:
    if programs() is None:
        raise NotMeasured("PostgreSQL is not there: run bin/setup postgres")
    times = effort.of(full=5, quick=3, smoke=1)
    each = effort.of(full=40, quick=20, smoke=2)
    turns = effort.of(full=200, quick=60, smoke=3)
    with served() as server:
        urls: list[str] = []

        def accepts() -> float:
            urls.append(server.new_database())
            return anyio.run(partial(_accept, urls[-1], each))

        def bare() -> float:
            return _insert(server, urls[-1], each * CALLERS)

        medians(1, accepts, bare)  # warms up
        seconds, bare_seconds = medians(times, accepts, bare)
        turn_ms, stream_ms = anyio.run(partial(_turns, server.new_database(), turns))
        costs = postgres_costs.measure(effort, directory, server, _accept, CALLERS)
    rate, bare_rate = each * CALLERS / seconds, each * CALLERS / bare_seconds
    return [
        Figure(
            name="PostgreSQL: accepts by the embedded client / bare inserts of the same rows by 64",
            value=rate / bare_rate,
            bound=0.4,
            limit="at least",
            detail=f"{rate:,.0f}/s / {bare_rate:,.0f}/s, {CALLERS} callers",
        ),
        Figure(
            name="PostgreSQL: a turn of a function, embedded",
            value=turn_ms,
            bound=12,
            unit="ms",
            places=1,
            detail="median",
        ),
        Figure(
            name="PostgreSQL: an event, from the call to the stream",
            value=stream_ms,
            bound=10,
            unit="ms",
            places=1,
            detail="median",
        ),
        *costs,
    ]


async def _accept(url: str, each: int) -> float:
    """Queue manual runs with idempotency keys, in one session of each caller. Return the seconds."""
    runner = FunctionRunner("echo", function_agents.echo)
    async with open_embedded(url, runners=[runner]) as client:
        sessions = [(await client.create_session()).id for _ in range(CALLERS)]

        async def call(session_id: str, count: int) -> None:
            for number in range(count):
                await client.create_run(
                    session_id,
                    text="Say in one line what this is for.",
                    provider="manual",
                    idempotency_key=f"{session_id}-{count}-{number}",
                )

        async def all_call(count: int) -> None:
            async with anyio.create_task_group() as tasks:
                for session_id in sessions:
                    tasks.start_soon(call, session_id, count)

        await all_call(1)  # prepares the statements
        started = time.perf_counter()
        await all_call(each)
        seconds = time.perf_counter() - started
        for session_id in sessions:
            runs = await client.list_runs(session_id=session_id, limit=200)
            check(len(runs.runs) == each + 1, f"{len(runs.runs)} runs in {session_id}")
    return seconds


def _insert(server: Server, url: str, accepts: int) -> float:
    """Insert the rows of these accepts once more, into empty tables, in transactions of 64 accepts."""
    import psycopg

    name = url.rpartition("/")[2]
    rows: dict[str, list[tuple[Any, ...]]] = {}
    statements: dict[str, str] = {}
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("SET search_path = agent_orchestrator")
        connection.execute(
            "SET session_replication_role = replica"
        )  # as a plain loop, without triggers
        for table, order in TABLES.items():
            cursor = connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
            assert cursor.description is not None
            columns = [column.name for column in cursor.description]
            rows[table] = cursor.fetchall()
            marks = ", ".join(["%s"] * len(columns))
            override = "OVERRIDING SYSTEM VALUE" if table == "idempotency" else ""
            statements[table] = (
                f"INSERT INTO {table} ({', '.join(columns)}) {override} VALUES ({marks})"
            )
            connection.execute(f"DELETE FROM {table}")
        batches = max(1, accepts // BATCH)
        parts = {
            table: [found[number::batches] for number in range(batches)]
            for table, found in rows.items()
        }
        started = time.perf_counter()
        for number in range(batches):
            with connection.transaction(), connection.cursor() as cursor:
                for table, batch in parts.items():
                    cursor.executemany(statements[table], batch[number])
        return time.perf_counter() - started


async def _turns(url: str, count: int) -> tuple[float, float]:
    """Return the medians in milliseconds: of a turn, and of an event's way to a stream."""
    runner = FunctionRunner("echo", function_agents.echo)
    async with open_embedded(url, runners=[runner]) as client:
        session = await client.create_session()
        taken = [(await turn(client, session.id, "hello"))[0] for _ in range(count + 2)][2:]
        delays = await _delays(client, session.id, count)
    return 1000 * statistics.median(taken), 1000 * statistics.median(delays)


async def _delays(client: Client, session_id: str, count: int) -> list[float]:
    delays: list[float] = []
    cursor = (await client.get_session(session_id)).last_seq
    async with client.events(session_id, cursor=cursor, follow=True) as events:
        for number in range(count):
            started = time.perf_counter()
            await client.update_session(session_id, title=str(number))
            event = await anext(events)
            delays.append(time.perf_counter() - started)
            check(event.event_type == "session.updated", f"{event.event_type} came")
    return delays

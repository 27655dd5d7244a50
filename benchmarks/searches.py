"""Measure what the index of words costs an accept, and searches in many texts of others."""

import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final
from unittest.mock import patch

import anyio

from agent_orchestrator import Client, open_embedded
from agent_orchestrator.domain.access import Visibility
from agent_orchestrator.domain.model import MANUAL
from agent_orchestrator.domain.search import Search, phrases_of
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.sql.transaction import SqlTransaction
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_session
from benchmarks import function_agents
from benchmarks.figures import Effort, Figure, check

SENDERS: Final = 50
TEXT: Final = (
    "The build of the service fails since this morning with a timeout in test_connection_refused of"
    " tests/network/test_client.py. Find out why, fix it, and tell me in one line what it was. Run {}."
)
OWN: Final = 10
"""Texts of the principal who searches."""


def measure(effort: Effort, directory: Path) -> list[Figure]:
    directory.mkdir(parents=True)
    each = effort.of(full=20, quick=20, smoke=1)
    rounds = effort.of(full=15, quick=7, smoke=1)
    texts = effort.of(full=100_000, quick=20_000, smoke=200)
    bare_s, indexed_s = anyio.run(partial(_accepts, directory, each, rounds))
    search_s = anyio.run(partial(_searches, directory / "many.sqlite", texts))
    count = SENDERS * each
    return [
        Figure(
            name="accepts with the index of words / without, by processor time",
            value=bare_s / indexed_s,
            bound=0.9,
            limit="at least",
            detail=f"{bare_s / count * 1e6:,.0f} µs / {indexed_s / count * 1e6:,.0f} µs, embedded, {SENDERS} tasks",
        ),
        Figure(
            name=f"search of a principal with {OWN} of {texts:,} texts that match",
            value=search_s * 1000,
            bound=20,
            limit="at most",
            unit="ms",
            detail="median of 20",
        ),
    ]


def _without_index() -> AbstractContextManager[object]:
    """Switch the writes of the index off in this process."""
    return patch.object(SqlTransaction, "_index_events", lambda *_: None)


async def _accepts(directory: Path, each: int, rounds: int) -> tuple[float, float]:
    """Return the processor seconds of a round of messages without the index, and with it."""
    runner = FunctionRunner("echo", function_agents.echo)
    taken: tuple[list[float], list[float]] = ([], [])
    async with (
        open_embedded(directory / "bare.sqlite", runners=[runner], max_queue=1_000_000) as bare,
        open_embedded(
            directory / "indexed.sqlite", runners=[runner], max_queue=1_000_000
        ) as indexed,
    ):
        sessions = [
            [(await client.create_session(provider=MANUAL)).id for _ in range(SENDERS)]
            for client in (bare, indexed)
        ]
        for number in range(rounds + 1):
            with _without_index():
                taken[0].append(await _round(bare, sessions[0], each, number))
            taken[1].append(await _round(indexed, sessions[1], each, number))
        sent = SENDERS * each * (rounds + 1)
        for client, expected in ((bare, 0), (indexed, SENDERS * each)):
            found = await _found(client, f'"run {rounds}"')
            check(found == expected, f"{found} of {expected} messages were found")
            waiting = (await client.status()).queue_counts.queued_count
            check(waiting == sent, f"{waiting} of {sent} runs are queued")
    return median(taken[0][1:]), median(taken[1][1:])


async def _found(client: Client, words: str) -> int:
    """Return the number of hits on all pages of a search."""
    page = await client.search(words, limit=1000)
    count = len(page.hits)
    while page.next_cursor is not None:
        page = await client.search(words, limit=1000, cursor=page.next_cursor)
        count += len(page.hits)
    return count


async def _round(client: Client, sessions: list[str], each: int, number: int) -> float:
    async def send(session_id: str) -> None:
        for _ in range(each):
            await client.send_message(session_id, TEXT.format(number))

    started = time.process_time()
    async with anyio.create_task_group() as tasks:
        for session_id in sessions:
            tasks.start_soon(send, session_id)
    return time.process_time() - started


async def _searches(path: Path, count: int) -> float:
    """Return the seconds of a search of a principal, most of whose matches are of others."""
    own, others = a_session(owner="ann"), a_session(owner="bob")

    def add(tx: Transaction, session_id: str, numbers: range) -> None:
        drafts = [Draft("agent.message", {"text": TEXT.format(number)}) for number in numbers]
        tx.append(session_id, drafts, NOW)

    async with SqliteStore(path) as store:
        for session in (own, others):
            await store.transact(lambda tx, session=session: tx.add_session(session))
        await store.transact(lambda tx: add(tx, own.id, range(OWN)))
        for start in range(OWN, count, 500):
            numbers = range(start, min(start + 500, count))
            await store.transact(lambda tx, numbers=numbers: add(tx, others.id, numbers))
        wanted = Search(phrases_of('"the build" test_client.py conn*'))

        def query(view: View) -> tuple[int, str | None]:
            found, cursor = view.search(wanted, within=Visibility("ann"), limit=100)
            return len(found), cursor

        taken = []
        for _ in range(21):
            started = time.perf_counter()
            found = await store.read(query)
            taken.append(time.perf_counter() - started)
            check(found == (OWN, None), f"{found} was found")
    return median(taken[1:])

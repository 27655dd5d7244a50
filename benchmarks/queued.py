"""Measure how many messages an embedded client sends in a second while many runs wait, compared with an empty queue."""

import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import anyio

from agent_orchestrator import Client, RunContext, open_embedded
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.runners.function import FunctionRunner
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import a_run, a_session
from benchmarks.figures import Effort, Figure, check

SENDERS: Final = 50
PER_SESSION: Final = 100
MAX_QUEUE: Final = 1_000_000


async def _hold(_: RunContext) -> None:
    await anyio.sleep_forever()


def measure(effort: Effort, directory: Path) -> list[Figure]:
    directory.mkdir(parents=True, exist_ok=True)
    queued = effort.of(full=100_000, quick=20_000, smoke=200)
    each = effort.of(full=20, quick=20, smoke=1)
    rounds = effort.of(full=5, quick=3, smoke=1)
    empty, full = anyio.run(partial(_rates, directory, queued, each, rounds))
    return [
        Figure(
            name=f"messages sent while {queued:,} runs are queued / while none is",
            value=median(full) / median(empty),
            bound=0.9,
            limit="at least",
            detail=f"{median(full):,.0f}/s / {median(empty):,.0f}/s, {SENDERS} tasks",
        )
    ]


async def _rates(
    directory: Path, queued: int, each: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the messages per second with an empty queue, and with so many runs in it."""
    rates = []
    for count in (0, queued):
        path = directory / f"{count}.sqlite"
        await _fill(path, count)
        runner = FunctionRunner("hold", _hold)
        async with open_embedded(
            path, runners=[runner], max_concurrency=1, max_queue=MAX_QUEUE
        ) as client:
            holding = await client.create_session()
            await client.send_message(holding.id, "hold the only worker")
            ids = [(await client.create_session()).id for _ in range(SENDERS)]
            rates.append([await _rate(client, ids, each) for _ in range(rounds + 1)][1:])
            found = (await client.status()).queue_counts.queued_count
            sent = SENDERS * each * (rounds + 1)
            check(count + sent <= found + 1 <= count + sent + 1, f"{found} runs are queued")
    return rates[0], rates[1]


async def _rate(client: Client, ids: list[str], each: int) -> float:
    """Return the messages per second of as many tasks as there are sessions."""

    async def send(session_id: str) -> None:
        for _ in range(each):
            await client.send_message(session_id, "Say in one line what this is for.")

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for session_id in ids:
            tasks.start_soon(send, session_id)
    return len(ids) * each / (time.perf_counter() - started)


async def _fill(path: Path, count: int) -> None:
    """Queue so many runs, a hundred in each session."""

    def add(tx: Transaction) -> None:
        session = a_session()
        tx.add_session(session)
        for _ in range(PER_SESSION):
            tx.add_run(a_run(session.id, provider="hold"))

    async with SqliteStore(path) as store:
        for _ in range(count // PER_SESSION):
            await store.transact(add)

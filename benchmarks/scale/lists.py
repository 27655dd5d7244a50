"""Measure the lists of a principal who owns little beside many rows of another one, and those of an administrator."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import anyio

from agent_orchestrator.domain.access import EVERYTHING, Visibility
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import RunResult
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import NOW, a_request, a_run, a_session, drafts
from benchmarks.figures import Effort, Figure, check

OWN: Final = 20
"""Sessions of the principal who owns little. Each has an ended run, a queued run and a pending request."""

ROUNDS: Final = 30
LIMIT: Final = 50
ANN: Final = Visibility("ann")

LISTS: Final[dict[str, Callable[[View], Any]]] = {
    "sessions": lambda view: view.sessions(within=ANN, limit=LIMIT),
    "runs": lambda view: view.runs(within=ANN, limit=LIMIT),
    "newest runs": lambda view: view.runs(within=ANN, order="newest", limit=LIMIT),
    "completed runs": lambda view: view.runs(within=ANN, status=RunStatus.COMPLETED, limit=LIMIT),
    "requests": lambda view: view.requests(within=ANN, limit=LIMIT),
    "pending requests": lambda view: view.requests(within=ANN, status="pending", limit=LIMIT),
    "an administrator's pending requests": lambda view: view.requests(
        within=EVERYTHING, status="pending", limit=OWN
    ),
    "counts of the queue": lambda view: view.live_runs(),
    "head of the log": lambda view: view.feed(
        after=view.feed_head(), sessions=(), within=ANN, limit=LIMIT, size=2**20, until=None
    ),
}


def measure(effort: Effort, directory: Path) -> list[Figure]:
    directory.mkdir(parents=True)
    others = effort.of(full=100_000, quick=20_000, smoke=100)
    few, many = anyio.run(partial(_times, directory, others))
    ratios = {name: many[name] / few[name] for name in LISTS}
    worst = max(ratios, key=lambda name: ratios[name])
    return [
        Figure(
            name=f"lists of a principal with {OWN} sessions beside {others:,} of another one / alone",
            value=ratios[worst],
            bound=1.5,
            detail=f"{worst}: {many[worst] * 1e6:,.0f} µs / {few[worst] * 1e6:,.0f} µs, the worst of {len(LISTS)}",
        )
    ]


async def _times(directory: Path, others: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the processor seconds of each list, without the other principal's rows and beside them."""
    async with SqliteStore(directory / "few.db") as few, SqliteStore(directory / "many.db") as many:
        for store, count in ((few, 0), (many, others)):
            for start in range(0, OWN // 2 * 2, 2):
                await store.transact(partial(_fill, "ann", 1))
                share = count * (start + 2) // OWN - count * start // OWN
                for left in range(share, 0, -500):
                    await store.transact(partial(_fill, "bob", min(left, 500)))
                await store.transact(partial(_fill, "ann", 1))
        taken: list[dict[str, list[float]]] = [{name: [] for name in LISTS} for _ in range(2)]
        for _ in range(ROUNDS + 1):
            for name, query in LISTS.items():
                found = []
                for place, store in enumerate((few, many)):
                    seconds, answer = await store.read(partial(_timed, query))
                    taken[place][name].append(seconds)
                    found.append(len(answer))
                check(found[0] == found[1], f"{name}: {found} rows")
        return tuple({name: median(all_[1:]) for name, all_ in one.items()} for one in taken)  # type: ignore[return-value]


def _timed(query: Callable[[View], Any], view: View) -> tuple[float, Any]:
    started = time.thread_time()
    answer = query(view)
    return time.thread_time() - started, answer


def _fill(owner: str, count: int, tx: Transaction) -> None:
    for _ in range(count):
        session = a_session(owner=owner)
        tx.add_session(session)
        result = RunResult("done")
        tx.add_run(a_run(session.id, status=RunStatus.COMPLETED, result=result, finished_at=NOW))
        queued = a_run(session.id)
        tx.add_run(queued)
        tx.add_request(a_request(queued))
        tx.append(session.id, drafts("hello"), NOW)

"""The workers: a bounded number of runs executed at once, first come first served."""

import heapq
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
import anyio.abc
from attrs import define, field

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.tokens import RUN_TOKEN_PREFIX, new_token, token_hash
from agent_orchestrator.engine import ledger
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.worker import Assignment, Live, execute, give_up
from agent_orchestrator.ports import Transaction

logger = logging.getLogger("agent_orchestrator.pool")

TAKE_RETRY_S = 1.0
"""Pause after the store could not hand out a run."""


@define
class Pool:
    """Executes queued runs, at most ``max_concurrency`` at once."""

    core: Core
    live: dict[str, Live] = field(factory=dict)
    """What is being executed now, by run id."""
    _spare: list[int] = field(factory=list)
    """The numbers up to the highest that no worker has, as a heap: many more runs than there are
    workers may stand still, and none of them is to be looked at for a new one's name."""
    _highest: int = 0
    _numbers: dict[str, int] = field(factory=dict)
    """Of the workers, by the run each executes."""
    _stopping: bool = False
    _stopped: anyio.Event = field(factory=anyio.Event)
    _ended: anyio.Event = field(factory=anyio.Event)

    @property
    def alive_workers(self) -> int:
        """How many workers there are, busy or not."""
        return 0 if self._stopping else self.core.config.max_concurrency

    @contextmanager
    def lent(self, run_id: str) -> Iterator[None]:
        """Lend a run's worker to others while it waits for another run, or for its own request.

        Otherwise a tree as deep as there are workers would wait for a child that none can take.
        """
        live = self.live.get(run_id)
        if live is None:
            yield
            return
        live.wait_for_run(1)
        self.core.bells.ring([ledger.QUEUE_TOPIC])
        try:
            yield
        finally:
            live.wait_for_run(-1)

    @property
    def _free(self) -> int:
        """How many more runs may be executed: one that stands still takes no worker."""
        busy = sum(not live.stands_still for live in self.live.values())
        return max(0, self.core.config.max_concurrency - busy)

    def _take_number(self) -> int:
        """Return the smallest number no worker has."""
        if self._spare:
            return heapq.heappop(self._spare)
        self._highest += 1
        return self._highest

    async def stop_taking(self) -> None:
        """Take no further run; those under way go on. Returns when none is about to be taken."""
        self._stopping = True
        self.core.bells.ring([ledger.QUEUE_TOPIC])
        await self._stopped.wait()

    def release(self, reason: str) -> Sequence[Live]:
        """Have every run under way given back to the queue; return them."""
        released = tuple(self.live.values())
        for live in released:
            live.stop(reason, self.core.now())
        return released

    async def idle(self) -> None:
        """Wait until nothing is being executed."""
        while self.live:
            await self._ended.wait()

    async def work(self, tasks: anyio.abc.TaskGroup) -> None:
        """Take runs and start workers on them until :meth:`stop_taking`."""
        try:
            with self.core.bells.take(ledger.QUEUE_TOPIC) as bell:
                while not self._stopping:
                    bell.hush()
                    free = self._free
                    try:
                        taken = await self._take(free) if free else []
                    except Unavailable as error:
                        logger.warning("no run can be taken now, trying again: %s", error)
                        with anyio.move_on_after(TAKE_RETRY_S):
                            await bell.wait()
                        continue
                    for live in taken:
                        for observer in self.core.config.observers:
                            observer.started(live.run, live.assignment.session)
                        tasks.start_soon(self._run, live)
                    if not taken or len(taken) < free:
                        await bell.wait()
        finally:
            self._stopped.set()

    async def _take(self, free: int) -> list[Live]:
        numbers = [self._take_number() for _ in range(free)]
        workers = [f"{self.core.instance}/worker-{number}" for number in numbers]
        # Without an address to use it at, an agent needs no token.
        tokens = [
            new_token(RUN_TOKEN_PREFIX) if self.core.config.url is not None else None
            for _ in workers
        ]
        # A run that has moved on from an attempt here is not taken before that has ended.
        ending = frozenset(self.live)

        def change(tx: Transaction) -> list[Assignment]:
            if self._stopping:
                return []
            taken = []
            found = tx.next_runs(free + len(ending))
            runs = [run for run in found if run.id not in ending]
            for worker, token, run in zip(workers, tokens, runs, strict=False):
                kept = token and token_hash(token)
                started = ledger.start(tx, run, worker, self.core.now(), token_hash=kept)
                session = tx.session(run.session_id)
                assert session is not None
                taken.append(Assignment(started, session, tx.run_messages(run.id), token))
            return taken

        # Shielded: a run that the store says is running must have a worker.
        taken: list[Live] = []
        try:
            with anyio.CancelScope(shield=True):
                assignments = await self.core.store.transact(change)
            taken = list(map(Live, assignments))
        finally:
            self._numbers |= {
                live.run.id: number for live, number in zip(taken, numbers, strict=False)
            }
            for number in numbers[len(taken) :]:
                heapq.heappush(self._spare, number)
        self.live |= {live.run.id: live for live in taken}
        return taken

    async def _run(self, live: Live) -> None:
        try:
            await execute(self.core, live)
        except ledger.StaleAttempt:
            logger.warning("run %s went on without attempt %d", live.run.id, live.run.attempt)
        except Exception:
            # A fault of ours in one run must not end the others.
            logger.exception("run %s could not be brought to its end", live.run.id)
            await give_up(self.core, live)
        finally:
            was_full = not self._free
            del self.live[live.run.id]
            heapq.heappush(self._spare, self._numbers.pop(live.run.id))
            self._ended.set()
            self._ended = anyio.Event()
            for observer in self.core.config.observers:
                observer.ended(live.run, live.left)
            # Otherwise there were workers for all that is queued, as far as it could be taken.
            if was_full or live.ended is None or not is_terminal(live.ended):
                self.core.bells.ring([ledger.QUEUE_TOPIC])

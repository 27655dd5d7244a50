"""The workers: a bounded number of runs executed at once, first come first served."""

import heapq
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar, cast

import anyio
import anyio.abc
from attrs import define, field, frozen

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import ACTIVE, is_terminal
from agent_orchestrator.domain.tokens import RUN_TOKEN_PREFIX, new_token, token_hash
from agent_orchestrator.engine import run_changes, steering, transitions
from agent_orchestrator.engine.attempt_end import give_up
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.engine.running_attempt import Assignment, RunningAttempt
from agent_orchestrator.engine.worker import execute
from agent_orchestrator.ports import Transaction, Transactions

logger = logging.getLogger("agent_orchestrator.pool")

T = TypeVar("T")

START_RETRY_S = 1.0
"""Pause after the store could not hand out a run."""


@frozen
class _Slot:
    """What a worker is about to begin with."""

    number: int
    worker: str
    token: str | None = field(repr=False)
    """By which its agent may act as the run."""


def _assigning_slots(
    made: Sequence[Assignment], slots: Sequence[_Slot]
) -> list[tuple[RunningAttempt, _Slot]]:
    return [(RunningAttempt(one), slot) for one, slot in zip(made, slots, strict=False)]


@define
class _Deferred(Generic[T]):
    """What one task does for another, who may leave before it is done."""

    _done: anyio.Event = field(factory=anyio.Event)
    _value: T | None = None
    _error: BaseException | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work, and keep how it ended for whoever waits."""
        try:
            self._value = await work()
        except Exception as error:  # noqa: BLE001 - it is of whoever waits
            self._error = error
        except BaseException:
            self._error = Unavailable("the engine is stopping")
            raise
        finally:
            self._done.set()

    async def result(self) -> T:
        """Wait for the work to be done, and answer or raise what it did."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


@define
class WorkerPool:
    """Executes queued runs, at most ``max_concurrency`` at once."""

    core: Core
    running: dict[str, RunningAttempt] = field(factory=dict)
    """What is being executed now, by run id."""
    _free_numbers: list[int] = field(factory=list)
    """The numbers up to the highest that no worker has, as a heap: many more runs than there are
    workers may stand still, and none of them is to be looked at for a new one's name."""
    _highest_number: int = 0
    _worker_numbers: dict[str, int] = field(factory=dict)
    """Of the workers, by the run each executes."""
    _reserved: int = 0
    """Workers for whom a run may be on its way through the store."""
    _reservations_settled: anyio.Event = field(factory=anyio.Event)
    """Set when a promise was kept, or came to nothing."""
    _may_have_queued: bool = False
    """Whether a run was looked for in vain as no worker was free."""
    _tasks: anyio.abc.TaskGroup | None = None
    """Where workers are started, while they may be."""
    _stopping: bool = False
    _stopped: anyio.Event = field(factory=anyio.Event)
    _ended: anyio.Event = field(factory=anyio.Event)

    @property
    def alive_workers(self) -> int:
        """How many workers there are, busy or not."""
        return 0 if self._stopping else self.core.config.max_concurrency

    @contextmanager
    def released(self, run_id: str) -> Iterator[None]:
        """Lend a run's worker to others while it waits for another run, or for its own request.

        Otherwise a tree as deep as there are workers would wait for a child that none can take.
        """
        running = self.running.get(run_id)
        if running is None:
            yield
            return
        running.begin_call()
        self.core.notifier.notify([run_changes.QUEUE_TOPIC])
        try:
            yield
        finally:
            running.end_call()

    @property
    def busy_workers(self) -> int:
        """How many runs take a worker: one that stands still takes none."""
        return sum(not running.is_blocked for running in self.running.values())

    @property
    def _free_slots(self) -> int:
        """How many more runs may be executed."""
        return max(0, self.core.config.max_concurrency - self.busy_workers - self._reserved)

    def _take_slot(self) -> _Slot:
        """Return the place of the worker with the smallest number that none has."""
        if self._free_numbers:
            number = heapq.heappop(self._free_numbers)
        else:
            self._highest_number += 1
            number = self._highest_number
        # Without an address to use it at, an agent needs no token.
        token = new_token(RUN_TOKEN_PREFIX) if self.core.config.url is not None else None
        return _Slot(number, f"{self.core.instance}/worker-{number}", token)

    def _reserve(self, count: int) -> list[_Slot]:
        """Keep so many workers free for the runs that a change may hand out."""
        self._reserved += count
        return [self._take_slot() for _ in range(count)]

    async def stop_starting(self) -> None:
        """Take no further run; those under way go on. Returns when none is about to be taken."""
        self._stopping = True
        self.core.notifier.notify([run_changes.QUEUE_TOPIC])
        await self._stopped.wait()

    def release(self, reason: str) -> Sequence[RunningAttempt]:
        """Have every run under way given back to the queue; return them."""
        released = tuple(self.running.values())
        for running in released:
            running.release(reason, self.core.now())
        return released

    async def wait_idle(self) -> None:
        """Wait until nothing is being executed."""
        while self.running:
            await self._ended.wait()

    async def serve(self, tasks: anyio.abc.TaskGroup) -> None:
        """Take runs and start workers on them until :meth:`stop_starting`."""
        self._tasks = tasks
        try:
            with self.core.notifier.subscribe(run_changes.QUEUE_TOPIC) as waiter:
                while not self._stopping:
                    waiter.clear()
                    free = self._free_slots
                    self._may_have_queued = not free
                    try:
                        started = await self._start_queued(free, tasks) if free else 0
                    except Unavailable as error:
                        logger.warning("no run can be taken now, trying again: %s", error)
                        with anyio.move_on_after(START_RETRY_S):
                            await waiter.wait()
                        continue
                    if not started or started < free:
                        await waiter.wait()
                while self._reserved:
                    await self._reservations_settled.wait()
        finally:
            self._tasks = None
            self._stopped.set()

    async def _start_queued(self, free: int, tasks: anyio.abc.TaskGroup) -> int:
        """Take as many runs as there are, and seats free; return how many."""

        def change(tx: Transaction, slots: Sequence[_Slot]) -> tuple[int, list[Assignment]]:
            started, _ = self._assign_runs(tx, slots)
            return len(started), started

        slots = self._reserve(free)
        return await self._transact_with_slots(self.core.store, change, slots, tasks, reserve=False)

    async def transact(self, store: Transactions, change: Change[T], *, reserve: bool) -> T:
        """Make a change; a run it queues is handed to a worker in the same commit where one is free.

        Otherwise an agent would start one commit, and its wait for the disk, later.
        """
        tasks = self._tasks
        if tasks is None or self._stopping or not self._free_slots:
            return await store.transact(change, reserve=reserve)

        def both(tx: Transaction, slots: Sequence[_Slot]) -> tuple[T, list[Assignment]]:
            answer = change(tx)
            if not tx.suppress(run_changes.QUEUE_TOPIC):
                return answer, []
            started, is_more = self._assign_runs(tx, slots)
            if is_more:
                tx.notify(run_changes.QUEUE_TOPIC)
            return answer, started

        # In a task of the pool's: a caller may leave while the store is at it, but the worker may not.
        deferred = _Deferred[T]()
        change_with_slots = partial(
            self._transact_with_slots, store, both, self._reserve(1), tasks, reserve=reserve
        )
        tasks.start_soon(deferred.run, change_with_slots)
        return await deferred.result()

    def _assign_runs(
        self, tx: Transaction, slots: Sequence[_Slot]
    ) -> tuple[list[Assignment], bool]:
        """Start queued runs on workers; tell also whether there may be more of them."""
        if self._stopping:
            return [], True
        # A run that has moved on from an attempt here is not taken before that has ended. (Read by the
        # writer's thread, in one step of the interpreter.)
        attempt_end = frozenset(self.running)
        found = tx.next_runs(len(slots) + len(attempt_end) + 1)
        runs = [run for run in found if run.id not in attempt_end]
        taken = []
        for slot, run in zip(slots, runs, strict=False):
            kept = slot.token and token_hash(slot.token)
            started = transitions.start(self.core, tx, run, slot.worker, token_hash=kept)
            session = tx.session(run.session_id)
            assert session is not None
            has_thread = run.provider in session.threads
            thread = tx.thread(session.id, run.provider) if has_thread else None
            messages = steering.prompt_messages(self.core, tx, started, thread)
            taken.append(Assignment(started, session, messages, thread, slot.token))
        return taken, len(runs) > len(taken)

    async def _transact_with_slots(
        self,
        store: Transactions,
        change: Callable[[Transaction, Sequence[_Slot]], tuple[T, list[Assignment]]],
        slots: Sequence[_Slot],
        tasks: anyio.abc.TaskGroup,
        *,
        reserve: bool,
    ) -> T:
        """Make a change that hands runs to promised seats, whose workers then begin."""
        made: list[Assignment] = []
        started: list[tuple[RunningAttempt, _Slot]] = []

        def noted(tx: Transaction) -> T:
            answer, made[:] = change(tx, slots)
            return answer

        try:
            # Shielded: a run that the store says is running must have a worker.
            with anyio.CancelScope(shield=True):
                answer = await store.transact(noted, reserve=reserve)
            started = _assigning_slots(made, slots)
        except Unavailable:
            # It may have failed after it had committed.
            if started := _assigning_slots(made, slots):
                tasks.start_soon(self._recover_unsure, started, tasks)
            raise
        finally:
            self._reserved -= len(slots)
            self._return_slots(slots[len(started) :])
            self._reservations_settled.set()
            self._reservations_settled = anyio.Event()
        for running, slot in started:
            self._begin(running, slot, tasks)
        return answer

    async def _recover_unsure(
        self, unsure: Sequence[tuple[RunningAttempt, _Slot]], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Begin what was handed out by a change that the store refused, where it was made all the same."""
        runs = await read_with_retry(
            self.core, lambda view: [view.run(running.run.id) for running, _ in unsure]
        )
        for (running, slot), run in zip(unsure, runs, strict=True):
            if (
                run is not None
                and (run.attempt, run.worker_id) == (running.run.attempt, slot.worker)
                and run.status in ACTIVE
                and not self._stopping  # else the next start takes it up
            ):
                self._begin(running, slot, tasks)
            else:
                self._return_slots([slot])

    def _return_slots(self, slots: Sequence[_Slot]) -> None:
        for slot in slots:
            heapq.heappush(self._free_numbers, slot.number)
        if self._may_have_queued and slots:
            self.core.notifier.notify([run_changes.QUEUE_TOPIC])

    def _begin(self, running: RunningAttempt, slot: _Slot, tasks: anyio.abc.TaskGroup) -> None:
        self._worker_numbers[running.run.id] = slot.number
        self.running[running.run.id] = running
        for observer in self.core.config.observers:
            observer.started(running.run, running.assignment.session)
        tasks.start_soon(self._execute, running)

    async def _execute(self, running: RunningAttempt) -> None:
        try:
            await execute(self.core, running)
        except run_changes.StaleAttempt:
            logger.warning("run %s went on without attempt %d", running.run.id, running.run.attempt)
        except Exception:
            # A fault of ours in one run must not end the others.
            logger.exception("run %s could not be brought to its end", running.run.id)
            await give_up(self.core, running)
        finally:
            was_full = not self._free_slots
            del self.running[running.run.id]
            heapq.heappush(self._free_numbers, self._worker_numbers.pop(running.run.id))
            self._ended.set()
            self._ended = anyio.Event()
            for observer in self.core.config.observers:
                observer.ended(running.run, running.final_run)
            # Otherwise there were workers for all that is queued, as far as it could be taken.
            if was_full or running.final_status is None or not is_terminal(running.final_status):
                self.core.notifier.notify([run_changes.QUEUE_TOPIC])

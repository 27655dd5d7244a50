"""The worker pool: executes a bounded number of runs at once, the oldest first."""

import heapq
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar, cast

import anyio
import anyio.abc
from attrs import define, field, frozen

from agent_orchestrator.domain.access import RunIdentity
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.lifecycle import ACTIVE, is_terminal
from agent_orchestrator.domain.model import Run
from agent_orchestrator.domain.tokens import RUN_TOKEN_PREFIX, new_token, token_hash
from agent_orchestrator.engine import run_changes, steering, transitions
from agent_orchestrator.engine.attempt_end import give_up
from agent_orchestrator.engine.attempt_state import Course
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.persistence import read_with_retry
from agent_orchestrator.engine.running_attempt import Assignment, RunningAttempt
from agent_orchestrator.engine.worker import execute
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import QueueQueries
from agent_orchestrator.ports.store import DAEMONS_TOPIC, Transactions

logger = logging.getLogger("agent_orchestrator.pool")

T = TypeVar("T")

START_RETRY_S = 1.0
"""Seconds until the next try if the store could not assign a run."""


@frozen
class _Slot:
    """A free worker for a run that may be assigned."""

    number: int
    token: str | None = field(repr=False)
    """The bearer token for its agent."""


@frozen
class _Assigned:
    """The runs that a change assigns to slots.

    :param is_more: whether there may be more runs that could be assigned here.
    :param changed_count: number of those that the change itself has queued.
    """

    runs: list[Assignment]
    is_more: bool
    changed_count: int = 0


def _assigning_slots(
    assignments: Sequence[Assignment], slots: Sequence[_Slot]
) -> list[tuple[RunningAttempt, _Slot]]:
    return [
        (RunningAttempt(assignment), slot)
        for assignment, slot in zip(assignments, slots, strict=False)
    ]


@define
class _Deferred(Generic[T]):
    """The result of work in another task. Its waiter may be cancelled before it is done."""

    _done: anyio.Event = field(factory=anyio.Event)
    _value: T | None = None
    _error: BaseException | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work and store its value or exception."""
        try:
            self._value = await work()
        except Exception as error:  # noqa: BLE001 - raised by result()
            self._error = error
        except BaseException:
            self._error = Unavailable("the engine is stopping")
            raise
        finally:
            self._done.set()

    async def result(self) -> T:
        """Wait for the work, and return its value or raise its exception."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._value)


@define
class WorkerPool:
    """Executes queued runs, at most ``max_concurrency`` at once."""

    core: Core
    running: dict[str, RunningAttempt] = field(factory=dict)
    """The attempts being executed, by run id."""
    _free_numbers: list[int] = field(factory=list)
    """Min-heap of free worker numbers. Blocked runs keep theirs, so there can be more numbers than slots."""
    _highest_number: int = 0
    _worker_numbers: dict[str, int] = field(factory=dict)
    """The workers' numbers, by run id."""
    _reserved: int = 0
    """Number of slots reserved for runs that a running transaction may assign."""
    _unconfirmed: int = 0
    """Number of slots whose run may or may not have been started, until that is known."""
    _reservations_settled: anyio.Event = field(factory=anyio.Event)
    """Set when reserved slots were used or returned."""
    _may_have_queued: bool = False
    """Whether there may be a queued run that was not started for lack of a slot."""
    _tasks: anyio.abc.TaskGroup | None = None
    """The task group for workers; None while no worker may start."""
    _stopping: bool = False
    _stopped: anyio.Event = field(factory=anyio.Event)
    _ended: anyio.Event = field(factory=anyio.Event)

    @property
    def alive_workers(self) -> int:
        """The number of workers, busy or not."""
        return 0 if self._stopping else self.core.config.max_concurrency

    @contextmanager
    def released(self, run_id: str) -> Iterator[None]:
        """Release a run's slot while it waits for another run, or for its own request.

        Otherwise a tree deeper than the number of workers would deadlock.
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

    def note_token(self, caller: RunIdentity) -> None:
        """Note that something has authenticated with the token of an attempt."""
        running = self.running.get(caller.run_id)
        if running is not None and running.run.attempt == caller.attempt:
            running.has_used_token = True

    def has_used_token(self, run_id: str) -> bool:
        """Return whether something has authenticated with the token of a run's attempt."""
        running = self.running.get(run_id)
        return running is not None and running.has_used_token

    def is_parking(self, run_id: str) -> bool:
        """Return whether a run's agent is being stopped because the run waits for an answer."""
        running = self.running.get(run_id)
        return running is not None and running.course is Course.PARKING

    @property
    def busy_workers(self) -> int:
        """The number of runs that occupy a slot: those that are not blocked."""
        return sum(not running.is_blocked for running in self.running.values())

    @property
    def _free_slots(self) -> int:
        """The number of runs that may be started now."""
        used = self.busy_workers + self._reserved + self._unconfirmed
        return max(0, self.core.config.max_concurrency - used)

    def _take_slot(self) -> _Slot:
        """Return a slot with the smallest free worker number."""
        if self._free_numbers:
            number = heapq.heappop(self._free_numbers)
        else:
            self._highest_number += 1
            number = self._highest_number
        # Without a URL the agent cannot use a token.
        token = new_token(RUN_TOKEN_PREFIX) if self.core.config.url is not None else None
        return _Slot(number, token)

    def _reserve(self, count: int) -> list[_Slot]:
        """Reserve slots for the runs that a change may assign."""
        self._reserved += count
        return [self._take_slot() for _ in range(count)]

    async def stop_starting(self) -> None:
        """Start no further runs, and wait until none is being started. Active runs continue."""
        self._stopping = True
        self.core.notifier.notify([run_changes.QUEUE_TOPIC])
        await self._stopped.wait()

    def release(self, reason: str) -> Sequence[RunningAttempt]:
        """Release every active run to the queue, and return their attempts."""
        released = tuple(self.running.values())
        for running in released:
            running.release(reason, self.core.now())
        return released

    async def wait_idle(self) -> None:
        """Wait until no run is being executed."""
        while self.running:
            await self._ended.wait()

    async def wait_ended(self, attempts: Collection[RunningAttempt]) -> None:
        """Wait until none of these attempts is executed any more."""
        while any(self.running.get(running.run.id) is running for running in attempts):
            await self._ended.wait()

    async def serve(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start queued runs until :meth:`stop_starting`."""
        self._tasks = tasks
        try:
            # A daemon that has ended may have kept the conversation of a session with queued runs.
            topics = (run_changes.QUEUE_TOPIC, DAEMONS_TOPIC)
            with self.core.notifier.subscribe(*topics) as waiter:
                while not self._stopping:
                    waiter.clear()
                    free = self._free_slots
                    self._may_have_queued = not free
                    try:
                        started = await self._start_queued(free, tasks) if free else 0
                    except Unavailable as error:
                        logger.warning("no run can be started now, trying again: %s", error)
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
        """Start up to ``free`` queued runs, and return their number."""

        def change(tx: Transaction, slots: Sequence[_Slot]) -> tuple[int, list[Assignment]]:
            assigned = self._assign_runs(tx, slots)
            return len(assigned.runs), assigned.runs

        slots = self._reserve(free)
        return await self._transact_with_slots(self.core.store, change, slots, tasks, reserve=False)

    async def transact(self, store: Transactions, change: Change[T], *, reserve: bool) -> T:
        """Make a change. If a worker is free, a run that it queues is assigned in the same commit.

        This saves one commit, and its wait for the disk, before an agent starts.
        """
        tasks = self._tasks
        if tasks is None or self._stopping or not self._free_slots:
            return await store.transact(change, reserve=reserve)

        def both(tx: Transaction, slots: Sequence[_Slot]) -> tuple[T, list[Assignment]]:
            answer = change(tx)
            count = tx.suppress(run_changes.QUEUE_TOPIC)
            if not count:
                return answer, []
            assigned = self._assign_runs(tx, slots)
            # Each notification is for one run at most. Others need not look for those that are assigned here.
            if assigned.is_more or (
                count > assigned.changed_count and self._is_work_for_others(tx)
            ):
                tx.notify(run_changes.QUEUE_TOPIC)
            return answer, assigned.runs

        # In a task of the pool: if the caller is cancelled, the worker must start nevertheless.
        deferred = _Deferred[T]()
        change_with_slots = partial(
            self._transact_with_slots, store, both, self._reserve(1), tasks, reserve=reserve
        )
        tasks.start_soon(deferred.run, change_with_slots)
        return await deferred.result()

    def _assign_runs(self, tx: Transaction, slots: Sequence[_Slot]) -> _Assigned:
        """Assign queued runs to slots."""
        if self._stopping:
            return _Assigned([], is_more=True)
        # A run whose earlier attempt has not ended here must wait for that. The writer's thread reads
        # this dict, in one atomic step.
        executing = frozenset(self.running)
        candidates = self._next_runs(tx, len(slots) + len(executing) + 1)
        runs = [run for run in candidates if run.id not in executing]
        taken = []
        changed_count = 0
        for slot, run in zip(slots, runs, strict=False):
            changed_count += tx.suppress(f"run:{run.id}") > 0  # its start notifies again
            hashed = slot.token and token_hash(slot.token)
            # The lease may have changed since the slot was reserved.
            worker = f"{self.core.instance}/worker-{slot.number}"
            started = transitions.start(self.core, tx, run, worker, token_hash=hashed)
            session = tx.session(run.session_id)
            assert session is not None
            has_thread = run.provider in session.threads
            thread = tx.thread(session.id, run.provider) if has_thread else None
            messages = steering.prompt_messages(self.core, tx, started, thread)
            taken.append(Assignment(started, session, messages, thread, slot.token))
        return _Assigned(taken, len(runs) > len(taken), changed_count)

    def _next_runs(self, tx: QueueQueries, limit: int) -> Sequence[Run]:
        """Return queued runs that may be assigned here.

        In a shared store, a run of another host waits for a daemon of that host, and a run whose provider no
        daemon has for one that has it.
        """
        if self.core.store.lease is None:
            return tx.next_runs(limit)
        return tx.next_runs(
            limit,
            providers=self.core.config.providers,
            daemon_id=self.core.instance,
            host=self.core.config.host.id,
        )

    def _is_work_for_others(self, tx: QueueQueries) -> bool:
        """Return whether other daemons that share the store may start a queued run."""
        if self.core.store.lease is None:
            return False
        executing = self.running
        return any(run.id not in executing for run in tx.next_runs(len(executing) + 1))

    async def _transact_with_slots(
        self,
        store: Transactions,
        change: Callable[[Transaction, Sequence[_Slot]], tuple[T, list[Assignment]]],
        slots: Sequence[_Slot],
        tasks: anyio.abc.TaskGroup,
        *,
        reserve: bool,
    ) -> T:
        """Make a change that assigns runs to reserved slots, and start their workers."""
        assignments: list[Assignment] = []
        started: list[tuple[RunningAttempt, _Slot]] = []

        def noted(tx: Transaction) -> T:
            answer, assignments[:] = change(tx, slots)
            return answer

        try:
            # Shielded, because a run that is ``running`` in the store must have a worker.
            with anyio.CancelScope(shield=True):
                answer = await store.transact(noted, reserve=reserve)
            started = _assigning_slots(assignments, slots)
        except Unavailable:
            # It may have failed after the commit.
            if started := _assigning_slots(assignments, slots):
                self._unconfirmed += len(started)
                tasks.start_soon(self._recover_unsure, started, tasks)
            raise
        finally:
            self._reserved -= len(slots)
            self._return_slots(slots[len(started) :])
            self._reservations_settled.set()
            self._reservations_settled = anyio.Event()
        for running, slot in started:
            # The lease may have been lost between the commit and its answer: another daemon may have the run.
            if self._is_of_lease(running.run):
                self._begin(running, slot, tasks)
            else:
                self._return_slots([slot])
        return answer

    async def _recover_unsure(
        self, unsure: Sequence[tuple[RunningAttempt, _Slot]], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Start the runs of a change that failed but may have been committed, if they were assigned."""
        try:
            runs = await read_with_retry(
                self.core, lambda view: [view.run(running.run.id) for running, _ in unsure]
            )
        finally:
            self._unconfirmed -= len(unsure)
        for (running, slot), run in zip(unsure, runs, strict=True):
            if (
                run is not None
                and (run.attempt, run.worker_id) == (running.run.attempt, running.run.worker_id)
                and run.status in ACTIVE
                and not self._stopping  # else the next start recovers it
                and self._is_of_lease(run)
            ):
                self._begin(running, slot, tasks)
            else:
                self._return_slots([slot])

    def _is_of_lease(self, run: Run) -> bool:
        """Return whether a run was assigned under the present lease. Otherwise it is recovered, here or elsewhere."""
        lease = self.core.store.lease
        is_lost = lease is not None and lease.lost.is_set()
        return not is_lost and run_changes.is_executed_here(self.core, run)

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
            # A bug in one run must not end the others.
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
            # Otherwise every queued run that could start had a slot.
            if was_full or running.final_status is None or not is_terminal(running.final_status):
                self.core.notifier.notify([run_changes.QUEUE_TOPIC])

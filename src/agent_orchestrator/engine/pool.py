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
from agent_orchestrator.engine.persistence import looked
from agent_orchestrator.engine.running_attempt import Assignment, RunningAttempt
from agent_orchestrator.engine.worker import execute
from agent_orchestrator.ports import Transaction, Transactions

logger = logging.getLogger("agent_orchestrator.pool")

T = TypeVar("T")

TAKE_RETRY_S = 1.0
"""Pause after the store could not hand out a run."""


@frozen
class _Seat:
    """What a worker is about to begin with."""

    number: int
    worker: str
    token: str | None = field(repr=False)
    """By which its agent may act as the run."""


def _seating(
    made: Sequence[Assignment], seats: Sequence[_Seat]
) -> list[tuple[RunningAttempt, _Seat]]:
    return [(RunningAttempt(one), seat) for one, seat in zip(made, seats, strict=False)]


@define
class _Errand(Generic[T]):
    """What one task does for another, who may leave before it is done."""

    _done: anyio.Event = field(factory=anyio.Event)
    _answer: T | None = None
    _error: BaseException | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work, and keep how it ended for whoever waits."""
        try:
            self._answer = await work()
        except Exception as error:  # noqa: BLE001 - it is of whoever waits
            self._error = error
        except BaseException:
            self._error = Unavailable("the engine is stopping")
            raise
        finally:
            self._done.set()

    async def outcome(self) -> T:
        """Wait for the work to be done, and answer or raise what it did."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._answer)


@define
class Pool:
    """Executes queued runs, at most ``max_concurrency`` at once."""

    core: Core
    live: dict[str, RunningAttempt] = field(factory=dict)
    """What is being executed now, by run id."""
    _spare: list[int] = field(factory=list)
    """The numbers up to the highest that no worker has, as a heap: many more runs than there are
    workers may stand still, and none of them is to be looked at for a new one's name."""
    _highest: int = 0
    _numbers: dict[str, int] = field(factory=dict)
    """Of the workers, by the run each executes."""
    _promised: int = 0
    """Workers for whom a run may be on its way through the store."""
    _kept: anyio.Event = field(factory=anyio.Event)
    """Set when a promise was kept, or came to nothing."""
    _is_short: bool = False
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
    def lent(self, run_id: str) -> Iterator[None]:
        """Lend a run's worker to others while it waits for another run, or for its own request.

        Otherwise a tree as deep as there are workers would wait for a child that none can take.
        """
        live = self.live.get(run_id)
        if live is None:
            yield
            return
        live.begin_call()
        self.core.notifier.notify([run_changes.QUEUE_TOPIC])
        try:
            yield
        finally:
            live.end_call()

    @property
    def busy_workers(self) -> int:
        """How many runs take a worker: one that stands still takes none."""
        return sum(not live.is_blocked for live in self.live.values())

    @property
    def _free(self) -> int:
        """How many more runs may be executed."""
        return max(0, self.core.config.max_concurrency - self.busy_workers - self._promised)

    def _seat(self) -> _Seat:
        """Return the place of the worker with the smallest number that none has."""
        if self._spare:
            number = heapq.heappop(self._spare)
        else:
            self._highest += 1
            number = self._highest
        # Without an address to use it at, an agent needs no token.
        token = new_token(RUN_TOKEN_PREFIX) if self.core.config.url is not None else None
        return _Seat(number, f"{self.core.instance}/worker-{number}", token)

    def _promise(self, count: int) -> list[_Seat]:
        """Keep so many workers free for the runs that a change may hand out."""
        self._promised += count
        return [self._seat() for _ in range(count)]

    async def stop_taking(self) -> None:
        """Take no further run; those under way go on. Returns when none is about to be taken."""
        self._stopping = True
        self.core.notifier.notify([run_changes.QUEUE_TOPIC])
        await self._stopped.wait()

    def release(self, reason: str) -> Sequence[RunningAttempt]:
        """Have every run under way given back to the queue; return them."""
        released = tuple(self.live.values())
        for live in released:
            live.release(reason, self.core.now())
        return released

    async def idle(self) -> None:
        """Wait until nothing is being executed."""
        while self.live:
            await self._ended.wait()

    async def work(self, tasks: anyio.abc.TaskGroup) -> None:
        """Take runs and start workers on them until :meth:`stop_taking`."""
        self._tasks = tasks
        try:
            with self.core.notifier.subscribe(run_changes.QUEUE_TOPIC) as waiter:
                while not self._stopping:
                    waiter.clear()
                    free = self._free
                    self._is_short = not free
                    try:
                        taken = await self._take(free, tasks) if free else 0
                    except Unavailable as error:
                        logger.warning("no run can be taken now, trying again: %s", error)
                        with anyio.move_on_after(TAKE_RETRY_S):
                            await waiter.wait()
                        continue
                    if not taken or taken < free:
                        await waiter.wait()
                while self._promised:
                    await self._kept.wait()
        finally:
            self._tasks = None
            self._stopped.set()

    async def _take(self, free: int, tasks: anyio.abc.TaskGroup) -> int:
        """Take as many runs as there are, and seats free; return how many."""

        def change(tx: Transaction, seats: Sequence[_Seat]) -> tuple[int, list[Assignment]]:
            taken, _ = self._hand_out(tx, seats)
            return len(taken), taken

        seats = self._promise(free)
        return await self._seated(self.core.store, change, seats, tasks, reserve=False)

    async def transact(self, store: Transactions, change: Change[T], *, reserve: bool) -> T:
        """Make a change; a run it queues is handed to a worker in the same commit where one is free.

        Otherwise an agent would start one commit, and its wait for the disk, later.
        """
        tasks = self._tasks
        if tasks is None or self._stopping or not self._free:
            return await store.transact(change, reserve=reserve)

        def both(tx: Transaction, seats: Sequence[_Seat]) -> tuple[T, list[Assignment]]:
            answer = change(tx)
            if not tx.suppress(run_changes.QUEUE_TOPIC):
                return answer, []
            taken, is_more = self._hand_out(tx, seats)
            if is_more:
                tx.notify(run_changes.QUEUE_TOPIC)
            return answer, taken

        # In a task of the pool's: a caller may leave while the store is at it, but the worker may not.
        errand = _Errand[T]()
        seated = partial(self._seated, store, both, self._promise(1), tasks, reserve=reserve)
        tasks.start_soon(errand.run, seated)
        return await errand.outcome()

    def _hand_out(self, tx: Transaction, seats: Sequence[_Seat]) -> tuple[list[Assignment], bool]:
        """Start queued runs on workers; tell also whether there may be more of them."""
        if self._stopping:
            return [], True
        # A run that has moved on from an attempt here is not taken before that has ended. (Read by the
        # writer's thread, in one step of the interpreter.)
        ending = frozenset(self.live)
        found = tx.next_runs(len(seats) + len(ending) + 1)
        runs = [run for run in found if run.id not in ending]
        taken = []
        for seat, run in zip(seats, runs, strict=False):
            kept = seat.token and token_hash(seat.token)
            started = transitions.start(self.core, tx, run, seat.worker, token_hash=kept)
            session = tx.session(run.session_id)
            assert session is not None
            has_thread = run.provider in session.threads
            thread = tx.thread(session.id, run.provider) if has_thread else None
            messages = steering.prompt_messages(self.core, tx, started, thread)
            taken.append(Assignment(started, session, messages, thread, seat.token))
        return taken, len(runs) > len(taken)

    async def _seated(
        self,
        store: Transactions,
        change: Callable[[Transaction, Sequence[_Seat]], tuple[T, list[Assignment]]],
        seats: Sequence[_Seat],
        tasks: anyio.abc.TaskGroup,
        *,
        reserve: bool,
    ) -> T:
        """Make a change that hands runs to promised seats, whose workers then begin."""
        made: list[Assignment] = []
        taken: list[tuple[RunningAttempt, _Seat]] = []

        def noted(tx: Transaction) -> T:
            answer, made[:] = change(tx, seats)
            return answer

        try:
            # Shielded: a run that the store says is running must have a worker.
            with anyio.CancelScope(shield=True):
                answer = await store.transact(noted, reserve=reserve)
            taken = _seating(made, seats)
        except Unavailable:
            # It may have failed after it had committed.
            if taken := _seating(made, seats):
                tasks.start_soon(self._look_after, taken, tasks)
            raise
        finally:
            self._promised -= len(seats)
            self._give_back(seats[len(taken) :])
            self._kept.set()
            self._kept = anyio.Event()
        for live, seat in taken:
            self._begin(live, seat, tasks)
        return answer

    async def _look_after(
        self, unsure: Sequence[tuple[RunningAttempt, _Seat]], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Begin what was handed out by a change that the store refused, where it was made all the same."""
        runs = await looked(self.core, lambda view: [view.run(live.run.id) for live, _ in unsure])
        for (live, seat), run in zip(unsure, runs, strict=True):
            if (
                run is not None
                and (run.attempt, run.worker_id) == (live.run.attempt, seat.worker)
                and run.status in ACTIVE
                and not self._stopping  # else the next start takes it up
            ):
                self._begin(live, seat, tasks)
            else:
                self._give_back([seat])

    def _give_back(self, seats: Sequence[_Seat]) -> None:
        for seat in seats:
            heapq.heappush(self._spare, seat.number)
        if self._is_short and seats:
            self.core.notifier.notify([run_changes.QUEUE_TOPIC])

    def _begin(self, live: RunningAttempt, seat: _Seat, tasks: anyio.abc.TaskGroup) -> None:
        self._numbers[live.run.id] = seat.number
        self.live[live.run.id] = live
        for observer in self.core.config.observers:
            observer.started(live.run, live.assignment.session)
        tasks.start_soon(self._run, live)

    async def _run(self, live: RunningAttempt) -> None:
        try:
            await execute(self.core, live)
        except run_changes.StaleAttempt:
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
                observer.ended(live.run, live.final_run)
            # Otherwise there were workers for all that is queued, as far as it could be taken.
            if was_full or live.final_status is None or not is_terminal(live.final_status):
                self.core.notifier.notify([run_changes.QUEUE_TOPIC])

"""The workers: a bounded number of runs executed at once, first come first served."""

import logging
from collections.abc import Sequence

import anyio
import anyio.abc
from attrs import define, field, frozen

from agent_orchestrator.domain.model import Message, Run, Session
from agent_orchestrator.engine import ledger
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.worker import Live, execute
from agent_orchestrator.ports import Transaction

logger = logging.getLogger("agent_orchestrator.pool")


@frozen
class Assignment:
    """A run a worker has taken, with what it needs to begin."""

    run: Run
    session: Session
    messages: Sequence[Message]
    slot: int


@define
class Pool:
    """Executes queued runs, at most ``max_concurrency`` at once."""

    core: Core
    live: dict[str, Live] = field(factory=dict)
    """What is being executed now, by run id."""
    _free: list[int] = field(init=False)
    _stopping: bool = False
    _ended: anyio.Event = field(factory=anyio.Event)

    def __attrs_post_init__(self) -> None:
        self._free = list(range(self.core.config.max_concurrency, 0, -1))

    @property
    def alive_workers(self) -> int:
        """How many workers there are, busy or not."""
        return 0 if self._stopping else self.core.config.max_concurrency

    def worker_id(self, slot: int) -> str:
        return f"{self.core.instance}/worker-{slot}"

    def stop_taking(self) -> None:
        """Take no further run; those under way go on."""
        self._stopping = True
        self.core.bells.ring([ledger.QUEUE_TOPIC])

    def release(self, reason: str) -> list[str]:
        """Have every run under way given back to the queue; return which."""
        released = list(self.live)
        for live in self.live.values():
            live.stop(reason)
        return released

    async def idle(self) -> None:
        """Wait until nothing is being executed."""
        while self.live:
            await self._ended.wait()

    async def work(self, task_group: anyio.abc.TaskGroup) -> None:
        """Take runs and start workers on them until :meth:`stop_taking`."""
        with self.core.bells.take(ledger.QUEUE_TOPIC) as bell:
            while not self._stopping:
                bell.hush()
                taken = await self._take() if self._free else []
                for assignment, live in taken:
                    task_group.start_soon(self._run, assignment, live)
                if not taken:
                    await bell.wait()

    async def _take(self) -> list[tuple[Assignment, Live]]:
        slots = self._free[::-1]

        def change(tx: Transaction) -> list[Assignment]:
            taken = []
            for slot, run in zip(slots, tx.next_runs(len(slots)), strict=False):
                started = ledger.start(tx, run, self.worker_id(slot), self.core.now())
                session = tx.session(run.session_id)
                assert session is not None
                taken.append(Assignment(started, session, tx.run_messages(run.id), slot))
            return taken

        assignments = await self.core.store.transact(change)
        taken = []
        for assignment in assignments:
            self._free.remove(assignment.slot)
            live = Live(assignment.run)
            self.live[assignment.run.id] = live
            taken.append((assignment, live))
        return taken

    async def _run(self, assignment: Assignment, live: Live) -> None:
        run = assignment.run
        try:
            await execute(self.core, live, assignment.session, assignment.messages)
        except Exception:
            # A fault of ours in one run must not end the others; the run is found at the next start.
            logger.exception("run %s could not be brought to its end", run.id)
        finally:
            del self.live[run.id]
            self._free.append(assignment.slot)
            self._free.sort(reverse=True)
            self._ended.set()
            self._ended = anyio.Event()
            self.core.bells.ring([ledger.QUEUE_TOPIC])

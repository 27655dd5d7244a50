"""What one attempt says, on its way into the store: in order, many writes in a commit."""

from collections.abc import Callable, Iterable, Sequence
from math import inf

import anyio
import anyio.lowlevel

from agent_orchestrator.domain.model import Run
from agent_orchestrator.engine import run_changes
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import transact_with_retry
from agent_orchestrator.ports import Draft, Transaction
from agent_orchestrator.wire.encoded import Encoded

Write = Callable[[Transaction, Run], None]
"""A change an attempt asks for besides events; it gets the run as the fence found it."""

MAX_PENDING = 2_000
"""Writes an attempt may have under way before its runner is made to wait."""

MAX_PENDING_SIZE = 16 * 2**20
"""Characters of events likewise."""

GROUP_DELAY_S = 0.05
"""Seconds a write waits for others to be committed with, where nobody waits for it: an agent says most
of what it says in one go, the last of it right before its end, whose commit then takes it along."""

IDLE_DELAY_S = 0.5
"""Seconds likewise for what only a person looks up: a commit of its own would cost an agent that is just
starting several milliseconds of the processor and the disk."""

MAX_BATCH = 500
"""Writes in one commit: other callers' changes wait behind it."""

MAX_BATCH_SIZE = 4 * 2**20
"""Characters of events in one commit; a single one may have more."""


def _size(batch: Iterable[Draft | Write]) -> int:
    drafts = (write for write in batch if isinstance(write, Draft))
    return sum(
        len(draft.data.text if isinstance(draft.data, Encoded) else draft.text or "")
        for draft in drafts
    )


class Recorder:
    """Writes what one attempt says, in order, behind the fence of its number.

    Writes gather while a commit is under way and go into the next one together. The attempt counts those
    that are in, in the same commit: a store that fails may have committed what it refused, and what is
    sent again is then left out.
    """

    def __init__(self, core: Core, run: Run) -> None:
        self._core = core
        self._run = run
        self._pending: list[Draft | Write] = []
        self._work = anyio.Event()
        self._due = inf
        """When what is put is to be committed, by :func:`anyio.current_time`."""
        self._settled = anyio.Event()
        self._closed = False
        self._size = 0
        self._written = 0
        """How many writes are committed."""
        self.asking: str | None = None
        """The request whose answer the agent has not got yet."""
        self.is_reported: set[str] = set()
        """The requests whose answers it has got."""
        self.withdrawn: list[str] = []
        """The requests it has given up, or that were stopped together with it."""
        self.last_activity_at = anyio.current_time()
        """When the agent last said something, by :func:`anyio.current_time`."""

    async def put(self, write: Draft | Write, *, within_s: float = GROUP_DELAY_S) -> None:
        """Put a write behind all before it; waits only while too many are under way.

        :param within_s: seconds it may wait for others to be committed with.
        """
        self._pending.append(write)
        self._size += _size([write])
        self._schedule(within_s)
        if len(self._pending) >= MAX_PENDING or self._size >= MAX_PENDING_SIZE:
            await self.settle()
        else:
            # Lets the commits go on even where a runner emits without ever waiting.
            await anyio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Wait until everything put so far is durable, or the attempt is over."""
        # Not what comes after: an agent may go on saying something all the time.
        goal = self._written + len(self._pending)
        while self._written < goal and not self._closed:
            self._schedule(0)
            await self._settled.wait()
        if self._closed:
            # Cancelled, where the run has moved on: nothing may be done for what is not recorded.
            await anyio.lowlevel.checkpoint()

    def _schedule(self, within_s: float) -> None:
        """Have what is put committed in so many seconds, if not before."""
        due = anyio.current_time() + within_s
        if due < self._due:
            self._due = due
            self._work.set()

    async def _wait_due(self) -> None:
        """Wait until something is due."""
        while not self._closed:
            self._work = anyio.Event()
            if self._due <= anyio.current_time():
                return
            with anyio.CancelScope(deadline=self._due):
                await self._work.wait()

    async def write(self) -> None:
        """Commit what is put, until :meth:`close`.

        :raises StaleAttempt: if the run has moved on.
        """
        try:
            while not self._closed:
                await self._wait_due()
                while self._pending and not self._closed:
                    batch = self._next_batch()
                    await transact_with_retry(
                        self._core,
                        lambda tx, batch=batch: self._commit(tx, batch),  # type: ignore[misc]
                    )
                    del self._pending[: len(batch)]
                    self._written += len(batch)
                    self._size -= _size(batch)
                    self._settled.set()
                    self._settled = anyio.Event()
                self._due = inf
        finally:
            self.close()

    def _next_batch(self) -> list[Draft | Write]:
        batch: list[Draft | Write] = []
        size = 0
        for write in self._pending[:MAX_BATCH]:
            size += _size([write])
            if batch and size > MAX_BATCH_SIZE:
                break
            batch.append(write)
        return batch

    def _commit(self, tx: Transaction, batch: Sequence[Draft | Write]) -> None:
        self.apply(tx, batch)

    def close(self) -> None:
        """Write no more; what is pending is for the commit that ends the attempt."""
        self._closed = True
        self._work.set()
        self._settled.set()

    @property
    def pending(self) -> tuple[Draft | Write, ...]:
        """What is put and not yet committed."""
        return tuple(self._pending)

    def apply(self, tx: Transaction, batch: Sequence[Draft | Write]) -> None:
        """Make the next of what is put part of a change, but for what is in already.

        :raises StaleAttempt: if the run has moved on.
        """
        run = run_changes.require_current_attempt(tx, self._run.id, self._run.attempt)
        attempt = run_changes.current_attempt(tx, run)
        assert attempt is not None, "it was recorded as the run was started"
        self._append(tx, batch[attempt.writes - self._written :])
        if batch:
            run_changes.amend_attempt(tx, run, writes=self._written + len(batch))

    def _append(self, tx: Transaction, batch: Iterable[Draft | Write]) -> None:
        now = self._core.now()
        drafts: list[Draft] = []
        for write in batch:
            if isinstance(write, Draft):
                drafts.append(write)
                continue
            if drafts:
                tx.append(self._run.session_id, drafts, now)
                drafts = []
            write(tx, run_changes.require_current_attempt(tx, self._run.id, self._run.attempt))
        if drafts:
            tx.append(self._run.session_id, drafts, now)

"""Recording the writes of an attempt: in order, with many writes per commit."""

from collections.abc import Callable, Iterable, Sequence
from math import inf

import anyio
import anyio.lowlevel

from agent_orchestrator.domain.model import Run
from agent_orchestrator.engine import run_changes
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.persistence import transact_with_retry
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.wire.encoded import Encoded

Write = Callable[[Transaction, Run], None]
"""A change of an attempt other than an event. It gets the run from the fence."""

MAX_PENDING = 2_000
"""Number of pending writes at which the runner has to wait."""

MAX_PENDING_SIZE = 16 * 2**20
"""Number of characters of pending events at which the runner has to wait."""

GROUP_DELAY_S = 0.05
"""Group-commit delay in seconds for writes that nobody awaits."""

IDLE_DELAY_S = 0.5
"""Group-commit delay in seconds for writes that only a diagnosis reads: a separate commit would delay
the start of an agent by milliseconds."""

MAX_BATCH = 500
"""Maximum number of writes in a commit, because other callers' changes wait for it."""

MAX_BATCH_SIZE = 4 * 2**20
"""Maximum characters of events in a commit. A single event may have more."""


def _size(batch: Iterable[Draft | Write]) -> int:
    drafts = (write for write in batch if isinstance(write, Draft))
    return sum(
        len(draft.data.text if isinstance(draft.data, Encoded) else draft.text or "")
        for draft in drafts
    )


class Recorder:
    """Commits the writes of one attempt in order, each checked against the attempt's number.

    Writes that come during a commit go into the next one together. Each commit also stores the number of
    the attempt's writes. A failed commit may have been made: the number shows which writes to skip in
    the next try.
    """

    def __init__(self, core: Core, run: Run) -> None:
        self._core = core
        self._run = run
        self._pending: list[Draft | Write] = []
        self._work = anyio.Event()
        self._due = inf
        """When pending writes must be committed, by :func:`anyio.current_time`."""
        self._settled = anyio.Event()
        self._closed = False
        self._size = 0
        self._written = 0
        """Number of committed writes."""
        self.asking: str | None = None
        """Id of the request whose answer the agent does not have yet."""
        self.reported: set[str] = set()
        """Ids of the requests whose answers the agent has."""
        self.withdrawn: list[str] = []
        """Ids of the requests that the agent has given up, or that were stopped together with it."""
        self.last_activity_at = anyio.current_time()
        """When the agent last had output, by :func:`anyio.current_time`."""

    async def put(self, write: Draft | Write, *, within_s: float = GROUP_DELAY_S) -> None:
        """Add a write. Wait only if too many are pending.

        :param within_s: maximum group-commit delay, in seconds.
        """
        self._pending.append(write)
        self._size += _size([write])
        self._schedule(within_s)
        if len(self._pending) >= MAX_PENDING or self._size >= MAX_PENDING_SIZE:
            await self.settle()
        else:
            # Lets commits proceed even if a runner emits without ever waiting.
            await anyio.lowlevel.checkpoint()

    async def settle(self) -> None:
        """Wait until all writes added so far are durable, or the recorder is closed."""
        # Not for later writes: an agent may have output all the time.
        goal = self._written + len(self._pending)
        while self._written < goal and not self._closed:
            self._schedule(0)
            await self._settled.wait()
        if self._closed:
            # Raises if the attempt is cancelled: its writes may not have been committed.
            await anyio.lowlevel.checkpoint()

    def _schedule(self, within_s: float) -> None:
        """Have pending writes committed within some seconds."""
        due = anyio.current_time() + within_s
        if due < self._due:
            self._due = due
            self._work.set()

    async def _wait_due(self) -> None:
        """Wait until a commit is due."""
        while not self._closed:
            self._work = anyio.Event()
            if self._due <= anyio.current_time():
                return
            with anyio.CancelScope(deadline=self._due):
                await self._work.wait()

    async def write(self) -> None:
        """Commit writes until :meth:`close`.

        :raises StaleAttempt: if the run has a later attempt, or has ended.
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
        """Stop committing. The commit that ends the attempt takes the pending writes."""
        self._closed = True
        self._work.set()
        self._settled.set()

    @property
    def pending(self) -> tuple[Draft | Write, ...]:
        """The writes that are not committed."""
        return tuple(self._pending)

    def apply(self, tx: Transaction, batch: Sequence[Draft | Write]) -> None:
        """Apply the next writes in a transaction, except those that are committed already.

        :raises StaleAttempt: if the run has a later attempt, or has ended.
        """
        run = run_changes.require_current_attempt(self._core, tx, self._run.id, self._run.attempt)
        attempt = run_changes.current_attempt(tx, run)
        assert attempt is not None, "the start of a run records it"
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
            write(
                tx,
                run_changes.require_current_attempt(
                    self._core, tx, self._run.id, self._run.attempt
                ),
            )
        if drafts:
            tx.append(self._run.session_id, drafts, now)

"""The writer thread, which commits the changes of many callers together and answers them after the commit."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.registry import OnCommit

BATCH: Final = 64
"""Maximum number of changes in one commit. A larger batch delays its callers more than it saves."""

_GATHER_ROUNDS: Final = 2
"""Iterations of the event loop without a new change after which a batch is complete: one to receive a
request, one for the task that handles it."""


class Pending:
    """A change that waits for the writer, and later its result.

    :param reserve: see :meth:`agent_orchestrator.ports.store.Store.transact`.
    """

    __slots__ = ("change", "done", "error", "reserve", "value")

    def __init__(self, change: Callable[[Transaction], Any], *, reserve: bool = False) -> None:
        self.change = change
        self.reserve = reserve
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class GroupWriter(ABC):
    """Commits queued changes in batches.

    While one commit waits for the disk, the next batch fills up. The more callers there are, the
    less each change costs.
    """

    def __init__(self, listeners: CommitListeners, on_commit: OnCommit | None = None) -> None:
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._listeners = listeners
        self._on_commit = on_commit
        self._arriving: list[Pending] = []
        self._arrived = anyio.Event()
        self._is_gathering = False
        """True if the last commit had changes of more than one caller."""
        self._finishing = False
        self.committed = anyio.Event()
        """Set after a commit. A task that waits for the next commit first replaces it."""

    def submit(self, pending: Pending) -> None:
        """Queue a change, without waiting."""
        if self._is_gathering:
            self._arriving.append(pending)
            self._arrived.set()
        else:
            self._queue.put(pending)

    async def gather(self) -> None:
        """Wake the writer once per batch while there are many callers. Returns after :meth:`finish`.

        The writer thread and the event loop share the interpreter lock. A thread that wants it can
        wait for ``sys.getswitchinterval()`` at every statement. With more than one caller, the
        writer therefore sleeps until the loop has delivered all changes that are ready.
        """
        # Shielded: changes that are queued at a cancellation are still written.
        with anyio.CancelScope(shield=True):
            while not self._finishing:
                await self._arrived.wait()
                self._arrived = anyio.Event()
                count = 0
                while count < len(self._arriving) < BATCH:
                    count = len(self._arriving)
                    for _ in range(_GATHER_ROUNDS):
                        await anyio.lowlevel.checkpoint()
                self._flush_arriving()

    def _flush_arriving(self) -> None:
        for pending in self._arriving:
            self._queue.put(pending)
        self._arriving.clear()

    def finish(self) -> None:
        """End the writer after it has written the changes that are queued now."""
        self._finishing = True
        self._arrived.set()
        self._flush_arriving()
        self._queue.put(None)

    def run(self) -> None:
        """Write until :meth:`finish` is called. Must run in a worker thread of the event loop."""
        finishing = False
        while not finishing:
            finishing = self._write_batch()

    def _write_batch(self) -> bool:
        """Write the next batch, and return whether it was the last.

        In a method, because variables of a loop would keep a long value of a batch until the next one.
        """
        batch, finishing = self._gather()
        if batch:
            began = perf_counter()
            topics = self._commit(batch)
            if self._on_commit is not None:
                self._on_commit(len(batch), perf_counter() - began)
            anyio.from_thread.run_sync(self._answer, topics, batch)
        return finishing

    def _gather(self) -> tuple[list[Pending], bool]:
        batch: list[Pending] = []
        entry = self._queue.get()
        try:
            while entry is not None:
                batch.append(entry)
                if len(batch) == BATCH:
                    return batch, False
                entry = self._queue.get_nowait()
        except Empty:
            return batch, False
        return batch, True

    def _answer(self, topics: frozenset[str], batch: list[Pending]) -> None:
        self._is_gathering = len(batch) > 1
        self.committed.set()
        try:
            self._listeners.notify(topics)
        finally:
            for pending in batch:
                pending.done.set()

    def refuse_queued(self) -> None:
        """Refuse all changes left in the queue after the writer's end. Must run in the event loop."""
        self.finish()
        while not self._queue.empty():
            if (pending := self._queue.get_nowait()) is not None:
                pending.error = Unavailable("the store is closed")
                pending.done.set()

    @abstractmethod
    def _commit(self, batch: list[Pending]) -> frozenset[str]:
        """Commit the changes that can be made, answer all of them, and return the topics to notify."""

"""The writer thread: it commits the changes of many callers together, and answers after the commit."""

import contextlib
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel
import apsw

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.sqlite.health import Fault, Health
from agent_orchestrator.stores.sqlite.transaction import SqliteTransaction
from agent_orchestrator.stores.sqlite.watermark import COUNT_COMMIT

BATCH: Final = 64
"""Maximum number of changes in one commit. A larger batch delays its callers more than it saves."""

_GATHER_ROUNDS: Final = 2
"""Turns of the event loop without a new change after which a batch is complete: one to receive a
request, one for the task that answers it."""


OnCommit = Callable[[int, float], None]
"""Called after a commit with the number of its changes and its duration in seconds."""


class Pending:
    """A change that waits for the writer, and later its answer."""

    __slots__ = ("change", "done", "error", "reserve", "value")

    def __init__(self, change: Callable[[Transaction], Any], *, reserve: bool = False) -> None:
        self.change = change
        self.reserve = reserve
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class GroupWriter:
    """Commits queued changes in batches.

    While one commit waits for the disk, the next batch fills up. The more callers there are, the
    less each change costs.
    """

    def __init__(
        self, listeners: CommitListeners, health: Health, on_commit: OnCommit | None = None
    ) -> None:
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._listeners = listeners
        self._health = health
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
        """End the writer after the changes that are queued now."""
        self._finishing = True
        self._arrived.set()
        self._flush_arriving()
        self._queue.put(None)

    def run(self) -> None:
        """Write until :meth:`finish` is called. Must run in a worker thread of the event loop."""
        finishing = False
        while not finishing:
            batch, finishing = self._gather()
            if batch:
                began = perf_counter()
                topics = self._commit(batch)
                if self._on_commit is not None:
                    self._on_commit(len(batch), perf_counter() - began)
                anyio.from_thread.run_sync(self._answer, topics, batch)

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

    def _commit(self, batch: list[Pending]) -> frozenset[str]:
        """Commit the changes that can be made, answer all of them, and return the topics to notify."""
        if self._health.fault is not None or self._health.check_files(is_written=False):
            batch = _allowed_in_fault(batch, self._health.recheck())
        notified: set[str] = set()
        if not self._transact(batch, notified):
            # A change that failed on a full disk is retried if it may use the reserved space.
            self._transact(_allowed_in_fault(batch, self._health.fault), notified)
        return frozenset(notified)

    def _transact(self, batch: list[Pending], notified: set[str]) -> bool:
        """Run the changes in one transaction, and fill in their answers.

        :param notified: receives the topics to notify, also if a committed change is refused afterwards.
        :return: False if the database failed. Every change then has its refusal.
        """
        if not batch:
            return True
        connection = self._health.writer
        is_committing = False
        try:
            written = connection.total_changes()
            connection.execute("BEGIN IMMEDIATE")
            topics = self._apply_together(connection, batch)
            if topics is None:
                _roll_back(connection)
                connection.execute("BEGIN IMMEDIATE")
                topics = set()
                for pending in batch:
                    topics |= self._apply_apart(connection, pending)
            counts = connection.total_changes() != written
            if counts:
                connection.execute(COUNT_COMMIT)
            is_committing = True
            connection.execute("COMMIT")
            notified |= topics
            if counts:
                self._health.note_commit()
                if self._health.check_files(is_written=True):
                    _refuse(batch, self._health.fault)
                    return False
        except apsw.Error as error:
            fault = self._health.note_failure(error, is_outcome_known=not is_committing)
            with contextlib.suppress(apsw.Error):
                _roll_back(connection)
            # Even a refusal may depend on another change of the batch, which was rolled back.
            _refuse(batch, fault, error)
            return False
        return True

    def _apply_together(self, connection: apsw.Connection, batch: list[Pending]) -> set[str] | None:
        """Run the changes one after the other. Return None if one of them must be undone.

        Nearly all changes succeed, or are refused before they write. A savepoint that can undo one
        change alone costs a fifth of an accept, so it is used only in a second attempt.
        """
        topics: set[str] = set()
        for pending in batch:
            transaction = SqliteTransaction(connection, self._health.epoch)
            written = connection.total_changes()
            try:
                pending.value = pending.change(transaction)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                if is_failure(error) or connection.total_changes() != written:
                    return None
                pending.error = error
            else:
                topics |= transaction.topics
        return topics

    def _apply_apart(self, connection: apsw.Connection, pending: Pending) -> set[str]:
        """Run one change in a savepoint, so that its refusal does not affect the others.

        :raises apsw.Error: if the database fails, which ends the whole transaction.
        """
        pending.value = pending.error = None
        connection.execute("SAVEPOINT change")
        transaction = SqliteTransaction(connection, self._health.epoch)
        try:
            pending.value = pending.change(transaction)
        except BaseException as error:
            if isinstance(error, apsw.FullError | apsw.IOError) or not connection.in_transaction:
                raise  # SQLite may have rolled back the whole transaction
            if is_failure(error):
                pending.error = self._health.note_unreadable(error)
                pending.error.__cause__ = error
            else:
                pending.error = error
            connection.execute("ROLLBACK TO change")
            connection.execute("RELEASE change")
            return set()
        connection.execute("RELEASE change")
        return transaction.topics


def _allowed_in_fault(batch: list[Pending], fault: Fault | None) -> list[Pending]:
    """Return the changes that may be tried despite the fault. The others get its refusal."""
    if fault is None:
        return batch
    admitted = []
    for pending in batch:
        if pending.reserve and fault.code == "disk_full":
            pending.value = pending.error = None
            admitted.append(pending)
        elif pending.error is None:
            pending.error = fault.refusal()
    return admitted


def _refuse(batch: list[Pending], fault: Fault | None, cause: BaseException | None = None) -> None:
    assert fault is not None
    for pending in batch:
        pending.error = fault.refusal()
        pending.error.__cause__ = cause


def is_failure(error: BaseException) -> bool:
    """Return True for a failure of the database, False for a mistake in its use."""
    return isinstance(error, apsw.Error) and not isinstance(
        error, apsw.SQLError | apsw.ConstraintError | apsw.MismatchError | apsw.TooBigError
    )


def _roll_back(connection: apsw.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")

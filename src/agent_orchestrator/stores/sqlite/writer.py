"""The commits of an SQLite database."""

import contextlib

import apsw

from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.registry import OnCommit
from agent_orchestrator.stores.sql.faults import Fault
from agent_orchestrator.stores.sql.search import Entry
from agent_orchestrator.stores.sql.writer import GroupWriter, Pending
from agent_orchestrator.stores.sqlite.health import Health
from agent_orchestrator.stores.sqlite.transaction import SqliteTransaction, add_words
from agent_orchestrator.stores.sqlite.watermark import COUNT_COMMIT


class SqliteWriter(GroupWriter):
    """Commits queued changes in batches to one file."""

    def __init__(
        self, listeners: CommitListeners, health: Health, on_commit: OnCommit | None = None
    ) -> None:
        super().__init__(listeners, on_commit)
        self._health = health

    def _commit(self, batch: list[Pending]) -> frozenset[str]:
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
            unindexed: list[Entry] = []
            topics = self._apply_together(connection, batch, unindexed)
            if topics is None:
                _roll_back(connection)
                connection.execute("BEGIN IMMEDIATE")
                topics = set()
                unindexed.clear()
                for pending in batch:
                    topics |= self._apply_apart(connection, pending, unindexed)
            add_words(connection, unindexed)
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

    def _apply_together(
        self, connection: apsw.Connection, batch: list[Pending], unindexed: list[Entry]
    ) -> set[str] | None:
        """Run the changes one after the other. Return None if one of them must be undone.

        Nearly all changes succeed, or are refused before they write. A savepoint that can undo one
        change alone costs a fifth of an accept, so it is used only in a second attempt.
        """
        topics: set[str] = set()
        for pending in batch:
            transaction = SqliteTransaction(connection, self._health.epoch, unindexed)
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

    def _apply_apart(
        self, connection: apsw.Connection, pending: Pending, unindexed: list[Entry]
    ) -> set[str]:
        """Run one change in a savepoint, so that its refusal does not affect the others.

        :raises apsw.Error: if the database fails, which ends the whole transaction.
        """
        pending.value = pending.error = None
        add_words(connection, unindexed)
        connection.execute("SAVEPOINT change")
        transaction = SqliteTransaction(connection, self._health.epoch, unindexed)
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
            unindexed.clear()
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

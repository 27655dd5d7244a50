"""Commits changes to a PostgreSQL database."""

import json
import time
from collections.abc import Iterable
from typing import Final

import psycopg

from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.ports.store import ANY_TOPIC
from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.postgres import daemons
from agent_orchestrator.stores.postgres.connection import (
    Connection,
    NotChanged,
    is_end_of_session,
    is_failure,
)
from agent_orchestrator.stores.postgres.prefetch import Prefetch
from agent_orchestrator.stores.postgres.primary import Primary
from agent_orchestrator.stores.postgres.row_cache import RowCache
from agent_orchestrator.stores.postgres.transaction import (
    Head,
    PostgresTransaction,
    savepoint,
)
from agent_orchestrator.stores.registry import OnCommit
from agent_orchestrator.stores.sql.faults import Fault
from agent_orchestrator.stores.sql.writer import GroupWriter, Pending

_MAX_PAYLOAD: Final = 7_999
"""Maximum bytes of a notification's payload in PostgreSQL."""


class PostgresWriter(GroupWriter):
    """Commits queued changes in batches.

    A transaction first locks the end of the log, so only one runs at a time. Ids that its changes make sort
    after those of all earlier transactions, also of other daemons.
    """

    def __init__(
        self, listeners: CommitListeners, primary: Primary, on_commit: OnCommit | None = None
    ) -> None:
        super().__init__(listeners, on_commit)
        self._primary = primary
        self.ids: SortableIds | None = None
        """The source of the ids that changes make."""

    def _commit(self, batch: list[Pending]) -> frozenset[str]:
        topics = self._try(batch, is_last=False)
        if topics is None:  # the server may only have restarted
            topics = self._try(batch, is_last=True) or set()
        if self._primary.is_recovered:
            self._primary.is_recovered = False
            topics.add(ANY_TOPIC)
        return frozenset(topics)

    def _try(self, batch: list[Pending], *, is_last: bool) -> set[str] | None:
        """Run the changes in one transaction, set their values or errors, and return the topics to notify.

        :param is_last: whether to refuse the changes if the connection is lost.
        :return: None if the connection was lost, nothing was committed, and this is not the last try.
        """
        primary = self._primary
        if (fault := primary.recheck()) is not None:
            _refuse(batch, fault)
            return set()
        commit = primary.daemon.commits + 1
        is_committing = False
        topics: set[str] = set()
        try:
            connection = primary.connection
            topics, asked_at = self._apply(connection, batch, commit)
            if asked_at is None:
                _refuse(batch, primary.note_taken_over())
                return set()
            is_committing = True
            connection.execute("COMMIT")
        except psycopg.Error as error:
            is_lost = primary.connection.is_lost or is_end_of_session(error)
            fault = primary.note_failure(error)
            was_made = primary.was_made(commit) if is_committing and is_lost else False
            if was_made:
                return topics
            if is_lost and was_made is False and not is_last:
                return None
            _refuse(batch, fault, error, is_outcome_known=was_made is False)
            return set()
        primary.note_commit(asked_at)
        return topics

    def _apply(
        self, connection: Connection, batch: list[Pending], commit: int
    ) -> tuple[set[str], float | None]:
        """Begin a transaction, and run the changes and the last statement, but not the COMMIT.

        :param commit: the number of the commit.
        :return: the topics to notify, and a time before the lease was extended, by :func:`time.monotonic`. The
            time is None if the daemon may not commit any more.
        """
        rows = RowCache()
        needed = Prefetch(connection, batch, rows)
        head = self._begin(connection, needed)
        needed.read_rest()
        topics = self._apply_together(connection, head, batch, rows)
        if topics is not None:
            try:
                return topics, self._finish(connection, head, topics, commit)
            except (psycopg.Error, NotChanged) as error:  # a queued statement was refused
                if is_failure(error):
                    raise
        connection.roll_back()
        head = self._begin(connection, Prefetch(connection, [], RowCache()))
        topics = set()
        for pending in batch:
            topics |= self._apply_apart(connection, head, pending)
        return topics, self._finish(connection, head, topics, commit)

    def _begin(self, connection: Connection, needed: Prefetch) -> Head:
        connection.queue("BEGIN", ())
        head = Head(*needed.first_row(daemons.LOCK))
        if self.ids is not None:
            self.ids.follow((head.newest_id,))
        return head

    def _finish(
        self, connection: Connection, head: Head, topics: set[str], commit: int
    ) -> float | None:
        """Run the last statement of a transaction, after the queued ones. See :meth:`_apply`."""
        daemon_id = self._primary.daemon.id
        notice = payload(daemon_id, topics) if topics else None
        newest_id = head.newest_id if self.ids is None else self.ids.newest
        values = (commit, daemon_id, head.position, notice, daemons.lease(), newest_id)
        asked_at = time.monotonic()
        return asked_at if connection.first_row(daemons.COMMIT, values)[0] else None

    def _apply_together(
        self, connection: Connection, head: Head, batch: list[Pending], rows: RowCache
    ) -> set[str] | None:
        """Run the changes one after the other, without savepoints. Some of their statements may still be queued.

        Nearly all changes succeed, or are refused before they write.

        :return: the topics to notify; None if a change must be undone.
        """
        topics: set[str] = set()
        for pending in batch:
            transaction = self._transaction(connection, head, rows, survives_errors=False)
            written = connection.writes
            pending.value = pending.error = None  # set by an earlier try
            try:
                pending.value = pending.change(transaction)
            except BaseException as error:
                if is_failure(error):
                    raise
                if connection.writes != written or isinstance(error, psycopg.Error | NotChanged):
                    return None
                pending.error = error
            else:
                if connection.is_in_failed_transaction:
                    return None
                topics |= transaction.topics
        return topics

    def _apply_apart(self, connection: Connection, head: Head, pending: Pending) -> set[str]:
        """Run one change in a savepoint, so that its refusal does not affect the others.

        :raises psycopg.Error: if the database fails, which ends the whole transaction.
        """
        pending.value = pending.error = None
        position = head.position
        transaction = self._transaction(connection, head, None, survives_errors=True)
        try:
            with savepoint(connection, "change"):
                pending.value = pending.change(transaction)
        except BaseException as error:
            if is_failure(error):
                raise
            pending.error = error
            head.position = position
            return set()
        return transaction.topics

    def _transaction(
        self, connection: Connection, head: Head, rows: RowCache | None, *, survives_errors: bool
    ) -> PostgresTransaction:
        epoch = self._primary.daemon.epoch
        return PostgresTransaction(
            connection, epoch, head, survives_errors=survives_errors, rows=rows
        )


def payload(daemon_id: str, topics: Iterable[str]) -> str:
    """Return the payload of a notification: a JSON array of the sender's id and the topics."""
    text = json.dumps([daemon_id, *sorted(topics)])
    return text if len(text) <= _MAX_PAYLOAD else json.dumps([daemon_id, ANY_TOPIC])


def _refuse(
    batch: list[Pending],
    fault: Fault,
    cause: BaseException | None = None,
    *,
    is_outcome_known: bool = True,
) -> None:
    for pending in batch:
        pending.error = fault.refusal()
        if not is_outcome_known:
            pending.error.message += "; it is unknown whether the change was made"
            pending.error.args = (pending.error.message,)
        pending.error.__cause__ = cause

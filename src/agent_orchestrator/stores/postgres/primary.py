"""The writing connection: how it is lost, found again, and what was committed then."""

import contextlib
import logging
import time
from typing import Final

import psycopg
from psycopg import errors

from agent_orchestrator.domain.errors import StoreOpenError
from agent_orchestrator.ports.store import UNREACHABLE
from agent_orchestrator.stores.postgres import daemons
from agent_orchestrator.stores.postgres.connection import Connection, is_end_of_session
from agent_orchestrator.stores.postgres.daemons import Daemon
from agent_orchestrator.stores.postgres.lease import DaemonLease
from agent_orchestrator.stores.sql.faults import Fault

_log = logging.getLogger("agent_orchestrator.store")

RETRY_S: Final = 0.25
"""Seconds between two attempts to connect."""

RESOLVE_S: Final = 10.0
"""Seconds for which the callers of a commit whose answer was lost wait until it is known whether it was made."""

_CODES: Final = (
    (errors.DiskFull, "disk_full", "has no space left"),
    (errors.LockNotAvailable, "database_locked", "is locked by another session"),
    (errors.ReadOnlySqlTransaction, "database_read_only", "cannot be written"),
    (errors.DataCorrupted, "database_damaged", "is damaged"),
    (errors.IndexCorrupted, "database_damaged", "is damaged"),
    (errors.IoError, "disk_error", "cannot be read or written"),
)


class Primary:
    """The writing connection of a store, used by its writer's thread.

    :param url: where to connect.
    :param name: the database in messages.
    :param connection: the open connection.
    :param lease: the lease of the daemon.
    """

    def __init__(
        self, url: str, name: str, connection: Connection, daemon: Daemon, lease: DaemonLease
    ) -> None:
        self._url = url
        self._name = name
        self._connection: Connection | None = connection
        self._new_connection: Connection | None = None
        self._place = daemons.place_of(connection)
        self._next_try = 0.0
        self.daemon = daemon
        self.lease = lease
        self.fault: Fault | None = None
        self.is_recovered = False
        """True after a connection was found again, until the writer has notified of it."""

    @property
    def connection(self) -> Connection:
        """The connection. Call :meth:`recheck` before."""
        assert self._connection is not None, "there is no connection"
        return self._connection

    def recheck(self) -> Fault | None:
        """Return the fault that prevents a try to write; None if there may be none.

        Connects again, if the connection was lost.
        """
        if self.fault is not None and self.fault.is_final:
            return self.fault
        if self._connection is not None and not self._connection.is_lost:
            return None
        if time.monotonic() < self._next_try:
            return self.fault
        try:
            self._reconnect()
        except psycopg.Error as error:
            self._lose(error)
            self._next_try = time.monotonic() + RETRY_S
        return self.fault

    def _reconnect(self) -> None:
        """Connect again.

        :raises psycopg.Error: if that fails.
        """
        self._close()
        connection = self._new_connection = Connection(self._url)
        try:
            self._adopt(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            self._new_connection = None
        self._connection = connection

    def _adopt(self, connection: Connection) -> None:
        row = daemons.row_of(connection, self.daemon.id)
        if row is not None:
            self.daemon.commits = row.commits
        if row is None or not row.is_valid:
            self.fault = Fault(
                "lease_lost",
                f"{self._name} was taken over by another daemon while this one could not reach it;"
                " this one begins anew",
                is_final=True,
            )
            self.lease.lose()
            return
        place = daemons.place_of(connection)
        if place != self._place:  # another server, which may lack commits
            connection.execute("BEGIN")
            connection.execute(daemons.LOCK)
            self.daemon.epoch = daemons.begin_epoch(connection)
            connection.execute("COMMIT")
            self._place = place
        if self.fault is not None:
            _log.warning("%s can be used again", self._name)
        self.fault = None
        self.is_recovered = True

    def was_made(self, commit: int) -> bool | None:
        """Return whether a commit was made whose answer was lost; None if that is not known in time.

        :param commit: the number of the commit.
        """
        daemon = self.daemon  # another one may begin as soon as this one has lost its lease
        deadline = time.monotonic() + RESOLVE_S
        while True:
            try:
                self._reconnect()
            except psycopg.Error as error:
                self._lose(error)
                if time.monotonic() > deadline:
                    return None
                time.sleep(RETRY_S)
            else:
                return daemon.commits >= commit

    def note_failure(self, error: psycopg.Error) -> Fault:
        """Record a failed transaction, which was not committed, and return the fault."""
        if self.connection.is_lost or is_end_of_session(error):
            return self._lose(error)
        with contextlib.suppress(psycopg.Error):
            self.connection.roll_back()
        return self._set(self.fault_of(error))

    def note_taken_over(self) -> Fault:
        """Record that another daemon has ended this one's row."""
        self.connection.roll_back()
        text = f"{self._name} was taken over by another daemon; this one begins anew"
        fault = self._set(Fault("lease_lost", text, is_final=True))
        self.lease.lose()
        return fault

    def begin_anew(self, daemon: Daemon, lease: DaemonLease) -> None:
        """Continue as another daemon after :meth:`note_taken_over`.

        The writer uses nothing of a daemon whose fault is final, so the fault ends last.
        """
        daemons.forget(self.daemon)
        lease.clock_offset_s = self.lease.clock_offset_s
        self.daemon, self.lease = daemon, lease
        self.is_recovered = True
        self.fault = None

    def _lose(self, error: psycopg.Error) -> Fault:
        self._close()
        return self._set(self.unreachable(error))

    def unreachable(self, error: psycopg.Error) -> Fault:
        """Return the fault of a server that does not answer."""
        text = f"{self._name} cannot be reached: {reason(error)}"
        return Fault(UNREACHABLE, text)

    def _set(self, fault: Fault) -> Fault:
        if self.fault is None:
            _log.error("%s", fault.message)
        self.fault = fault
        return fault

    def fault_of(self, error: psycopg.Error) -> Fault:
        """Return the fault that a failure of the database means."""
        for kind, code, text in _CODES:
            if isinstance(error, kind):
                return Fault(code, f"{self._name} {text}: {reason(error)}", 5)
        return Fault("database_failed", f"{self._name} failed: {reason(error)}", 5)

    def note_commit(self, asked_at: float) -> None:
        """Record a commit, which has extended the lease.

        :param asked_at: the time before it was sent, by :func:`time.monotonic`.
        """
        self.lease.extend(asked_at)
        self.daemon.commits += 1
        self.fault = None

    def give_up_after(self, seconds: float) -> None:
        """Do what :meth:`.Connection.give_up_after` does, if there is a connection."""
        for connection in (self._connection, self._new_connection):
            if connection is not None:
                connection.give_up_after(seconds)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def leave(self) -> None:
        """End this daemon's row and close the connection."""
        with contextlib.suppress(psycopg.Error):
            self.recheck()
            daemons.leave(self._connection, self.daemon)
        self._close()


def reason(error: psycopg.Error) -> str:
    """Return the first line of the message of the server or of libpq. Neither has a password."""
    text = error.diag.message_primary or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open_error(name: str, error: psycopg.Error) -> StoreOpenError:
    """Return the error of a database that cannot be opened."""
    return StoreOpenError(f"cannot open {name}: {reason(error)}")

"""The connection that writes: its faults, its reconnections, and whether a lost commit was made."""

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
"""Maximum seconds to find out whether a commit was made whose answer was lost. Its callers wait meanwhile."""

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

    :param name: the name of the database in messages.
    :param connection: the open connection.
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
        """Whether the store can write again, and the writer has not notified the listeners of it yet."""

    @property
    def connection(self) -> Connection:
        """The connection. Call :meth:`recheck` first."""
        assert self._connection is not None, "there is no connection"
        return self._connection

    def recheck(self) -> Fault | None:
        """Reconnect if the connection was lost. Return the fault that prevents writing; None if a write can be tried."""
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
        """Replace the connection by a new one.

        :raises psycopg.Error: if the server cannot be reached.
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
        """Check this daemon's row through a new connection. End the fault, or set a final one."""
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
        """Return whether a commit was made whose answer was lost; None if the server cannot be reached in time.

        :param commit: the number of the commit.
        """
        daemon = self.daemon  # it is replaced at any time after it has lost its lease
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
        """Record that a transaction failed, and return the fault. Roll back, unless the connection is lost."""
        if self.connection.is_lost or is_end_of_session(error):
            return self._lose(error)
        with contextlib.suppress(psycopg.Error):
            self.connection.roll_back()
        return self._set(self.fault_of(error))

    def note_taken_over(self) -> Fault:
        """Record that another daemon has ended this one's row, and return the fault."""
        self.connection.roll_back()
        text = f"{self._name} was taken over by another daemon; this one begins anew"
        fault = self._set(Fault("lease_lost", text, is_final=True))
        self.lease.lose()
        return fault

    def begin_anew(self, daemon: Daemon, lease: DaemonLease) -> None:
        """Continue as a new daemon after the lease was lost."""
        daemons.forget(self.daemon)
        lease.clock_offset_s = self.lease.clock_offset_s
        self.daemon, self.lease = daemon, lease
        self.is_recovered = True
        # Last, because the writer's thread uses none of these while there is a final fault.
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
        """Return the fault for an error of the database."""
        for kind, code, text in _CODES:
            if isinstance(error, kind):
                return Fault(code, f"{self._name} {text}: {reason(error)}", retry_after_s=5)
        return Fault("database_failed", f"{self._name} failed: {reason(error)}", retry_after_s=5)

    def note_commit(self, asked_at: float) -> None:
        """Record a commit, which also extends the lease.

        :param asked_at: a time before its last statement was sent, by :func:`time.monotonic`.
        """
        self.lease.extend(asked_at)
        self.daemon.commits += 1
        self.fault = None

    def give_up_after(self, seconds: float) -> None:
        """Call :meth:`.Connection.give_up_after` for each connection that there is."""
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
    """Return the first line of the server's or libpq's message. Neither contains a password."""
    text = error.diag.message_primary or str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open_error(name: str, error: psycopg.Error) -> StoreOpenError:
    """Return the error of a database that cannot be opened."""
    return StoreOpenError(f"cannot open {name}: {reason(error)}")

"""The PostgreSQL store."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import psycopg

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.errors import Conflict, StoreOpenError, Unavailable
from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.clock import Clock
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.postgres import daemons, inquiries
from agent_orchestrator.stores.postgres.connection import Connection, is_end_of_session, is_failure
from agent_orchestrator.stores.postgres.lease import DaemonLease
from agent_orchestrator.stores.postgres.notifications import NO_NOTIFICATIONS, Listener
from agent_orchestrator.stores.postgres.primary import Primary, open_error
from agent_orchestrator.stores.postgres.schema import check_database, prepare, schema_version
from agent_orchestrator.stores.postgres.view import PostgresView
from agent_orchestrator.stores.postgres.writer import PostgresWriter, payload
from agent_orchestrator.stores.registry import OnCommit
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.store import SqlStore
from agent_orchestrator.stores.urls import check_userinfo, without_secrets

T = TypeVar("T")

READERS: Final = 4

SILENT_LIMIT_S: Final = 15.0
"""Seconds without an answer to a heartbeat after which no connection is expected to have another answer. It is
longer than a wait for a lock."""

_NOTIFY: Final = f"SELECT pg_notify('{daemons.CHANNEL}', ?)"


class Reader:
    """A connection for reads, which is opened when it is needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._has_ended = False

    def connection(self) -> Connection:
        """Return an open connection.

        :raises psycopg.Error: if there is none.
        """
        if self._has_ended:
            raise psycopg.InterfaceError("the store is closed")
        if self._connection is None or self._connection.is_lost:
            self.close()
            self._connection = Connection(self._url)
        return self._connection

    def give_up_after(self, seconds: float) -> None:
        """Do what :meth:`.Connection.give_up_after` does, if there is a connection."""
        connection = self._connection
        if connection is not None:
            connection.give_up_after(seconds)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def end(self) -> None:
        """Close the connection, and open no other."""
        self._has_ended = True
        self.close()


class PostgresStore(SqlStore[Reader]):
    """A store in one PostgreSQL database, in the schema ``agent_orchestrator``.

    Several daemons may use the database at once.

    :param url: ``postgresql://…``, as libpq has it. What it does not give comes from the service file, the
        password file and the environment.
    :param listen: the URL for notifications, if they cannot come through the other one: past a connection
        pooler, to the server itself.
    :param on_commit: called in the writer's thread after each commit, with the number of its
        changes and its duration in seconds. It must not block or raise.
    :raises ConfigError: if a URL cannot be read.
    """

    def __init__(
        self, url: str, *, listen: str | None = None, on_commit: OnCommit | None = None
    ) -> None:
        super().__init__()
        for one in (url, listen):
            if one is not None:
                check_userinfo(one)
        self._url = url
        self._listen_url = listen or url
        self._location = without_secrets(url)
        self._on_commit = on_commit
        self._clock: Clock = lambda: datetime.now(UTC)

    @property
    def backend(self) -> str:
        return "postgresql"

    @property
    def location(self) -> str | None:
        return self._location

    @property
    def schema_version(self) -> int:
        return schema_version()

    @property
    def lease(self) -> DaemonLease:
        return self._primary.lease

    async def __aenter__(self) -> Self:
        """Open the database. Make the tables if there are none.

        :raises StoreOpenError: a subclass of it, if the database cannot or must not be used.
        """
        self._long_values = LongValues()
        await anyio.to_thread.run_sync(self._open, anyio.Event(), limiter=anyio.CapacityLimiter(1))
        writer = PostgresWriter(self._listeners, self._primary, self._on_commit)
        self._ordering = writer
        self._all_readers = [Reader(self._url) for _ in range(READERS)]
        self._lease_reader = Reader(self._url)
        self._has_closed = anyio.Event()
        self._answered_at = time.monotonic()
        """When the last heartbeat was answered."""
        self._lease_thread = anyio.CapacityLimiter(1)
        self._lease_lock = threading.Lock()
        """Held by whoever uses that reader: the store may be closed meanwhile."""
        tasks = {
            "listener": self._hear,
            "lease": self._extend_lease,
            "silence": self._watch_silence,
        }
        await self._begin(writer, self._all_readers, tasks)
        return self

    def _open(self, lost: anyio.Event) -> None:
        connection = self._connect()
        try:
            prepare(connection)
            daemon = daemons.join(connection)
            lease = DaemonLease.of(daemon, lost)
            self._primary = Primary(self._url, self._location, connection, daemon, lease)
            self._listener = Listener(self._listen_url, daemon.id, self._listeners.notify)
            self._listener.connect()
        except psycopg.Error as error:
            connection.close()
            raise open_error(self._location, error) from error
        except BaseException:
            connection.close()
            raise

    def synchronize(self, clock: Clock, ids: SortableIds | None) -> None:
        self._clock = clock
        self._ordering.ids = ids

    async def join(self, profile: DaemonProfile) -> DaemonLease:
        joining = partial(self._join, profile, anyio.Event())
        return await anyio.to_thread.run_sync(joining, limiter=self._lease_thread)

    def _join(self, profile: DaemonProfile, lost: anyio.Event) -> DaemonLease:
        primary = self._primary
        with self._lease_lock:
            try:
                connection = self._lease_reader.connection()
                if primary.lease.lost.is_set():
                    daemon = daemons.join_again(connection, profile, self._clock)
                    self._listener.daemon_id = daemon.id
                    primary.begin_anew(daemon, DaemonLease.of(daemon, lost))
                else:
                    daemons.describe(connection, primary.daemon, profile, self._clock)
                primary.lease.clock_offset_s = primary.daemon.clock_offset_s
                daemons.adopt(connection, profile.host)
            except psycopg.Error as error:
                raise self._refusal(error) from error
        return primary.lease

    async def ask(self, daemon_id: str, question: str) -> str:
        return await self._inquire(
            lambda connection, own: inquiries.ask(connection, own, daemon_id, question)
        )

    async def inquiries(self) -> Sequence[tuple[str, str]]:
        return await self._inquire(inquiries.open_inquiries)

    async def answer(self, inquiry_id: str, text: str) -> None:
        await self._inquire(
            lambda connection, own: inquiries.answer(connection, own, inquiry_id, text)
        )

    async def take_answer(self, inquiry_id: str) -> str | None:
        return await self._inquire(
            lambda connection, _: inquiries.take_answer(connection, inquiry_id)
        )

    async def _inquire(self, call: Callable[[Connection, str], T]) -> T:
        """Call a function with the connection of the lease, and the id of this daemon.

        :raises Unavailable: if the database fails.
        """

        def work() -> T:
            with self._lease_lock:
                try:
                    return call(self._lease_reader.connection(), self._primary.daemon.id)
                except psycopg.Error as error:
                    self._lease_reader.close()
                    raise self._refusal(error) from error

        return await anyio.to_thread.run_sync(work, limiter=self._lease_thread)

    async def reach(self) -> str:
        return await anyio.to_thread.run_sync(self._reach, limiter=anyio.CapacityLimiter(1))

    def _reach(self) -> str:
        connection = self._connect()
        try:
            found = check_database(connection)
            server = connection.info.server_version // 10_000
        except psycopg.Error as error:
            raise open_error(self._location, error) from error
        finally:
            connection.close()
        tables = "no tables yet" if found is None else f"schema {found}"
        return f"PostgreSQL {server}, {tables}"

    def _connect(self) -> Connection:
        """Return a new connection.

        :raises StoreOpenError: if there is none.
        """
        try:
            return Connection(self._url)
        except psycopg.ProgrammingError:
            # Its message repeats a part of the URL, which may be the password.
            text = "the store's URL cannot be read: write postgresql://USER@HOST:PORT/DATABASE"
            raise StoreOpenError(text) from None
        except psycopg.Error as error:
            raise open_error(self._location, error) from None

    async def _hear(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listener.run)
            tasks.start_soon(self._listener.watch, self._ring)
            await self._closing.wait()
            tasks.cancel_scope.cancel()

    async def _ring(self) -> None:
        await anyio.to_thread.run_sync(self._notify_self, limiter=self._lease_thread)

    def _notify_self(self) -> None:
        notice = payload(self._primary.daemon.id, ())
        with self._lease_lock:
            try:
                self._lease_reader.connection().execute(_NOTIFY, (notice,))
            except psycopg.Error:
                self._lease_reader.close()
                raise

    async def _extend_lease(self) -> None:
        """Extend the lease now and then, whatever the writer does."""
        while True:
            with anyio.move_on_after(daemons.HEARTBEAT_S):
                await self._closing.wait()
                return
            is_well = await anyio.to_thread.run_sync(
                self._send_heartbeat, limiter=self._lease_thread
            )
            if not is_well:
                # This reports what is wrong. Without a connection, it is also what connects again.
                # The writer may be busy for longer than until the next heartbeat.
                with contextlib.suppress(Unavailable), anyio.move_on_after(daemons.HEARTBEAT_S):
                    await self.transact(lambda _: None)

    async def _watch_silence(self) -> None:
        """Give up connections that wait for an answer while heartbeats have had none for too long.

        The system notices a server that is gone, but not one behind a proxy that keeps the connection and forwards
        nothing. Then what waits for an answer would wait forever.
        """
        while not self._has_closed.is_set():
            with anyio.move_on_after(daemons.HEARTBEAT_S):
                await self._has_closed.wait()
            if time.monotonic() - self._answered_at <= SILENT_LIMIT_S:
                continue
            self._primary.give_up_after(SILENT_LIMIT_S)
            for reader in (*self._all_readers, self._lease_reader):
                reader.give_up_after(SILENT_LIMIT_S)
            if not self._primary.lease.lost.is_set():  # else there are no heartbeats
                self._listener.give_up()

    async def _write(self) -> None:
        try:
            await super()._write()
        finally:
            self._has_closed.set()

    def _send_heartbeat(self) -> bool:
        """Extend the lease once. Return False if the writer should look what is wrong."""
        primary = self._primary
        if primary.lease.lost.is_set():
            return True
        asked_at = time.monotonic()
        lease = primary.lease
        with self._lease_lock:
            try:
                connection = self._lease_reader.connection()
                if not daemons.send_heartbeat(connection, primary.daemon, self._clock):
                    return False
            except psycopg.Error:
                self._lease_reader.close()
                return False
        self._answered_at = time.monotonic()
        lease.extend(asked_at)
        lease.clock_offset_s = primary.daemon.clock_offset_s
        return primary.fault is None

    def _close_database(self) -> None:
        with self._lease_lock:
            for reader in (*self._all_readers, self._lease_reader):
                with contextlib.suppress(psycopg.Error):
                    reader.end()
        self._primary.leave()

    def _query(self, reader: Reader, query: Callable[[View], T]) -> T:
        try:
            try:
                return self._look(reader, query)
            except psycopg.Error as error:
                if not is_end_of_session(error):
                    raise
            return self._look(reader, query)  # the connection was lost since the last read
        except psycopg.Error as error:
            if is_end_of_session(error) or is_failure(error):
                raise self._refusal(error) from error
            raise

    def _refusal(self, error: psycopg.Error) -> Unavailable:
        """Return the error of a call that the database failed."""
        is_lost = is_end_of_session(error)
        fault = self._primary.unreachable(error) if is_lost else self._primary.fault_of(error)
        return fault.refusal()

    def _look(self, reader: Reader, query: Callable[[View], T]) -> T:
        connection = reader.connection()
        connection.queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ())
        try:
            return query(PostgresView(connection, self._primary.daemon.epoch, self._long_values))
        finally:
            if not connection.is_lost:
                connection.roll_back_soon()

    async def problems(self) -> Sequence[Problem]:
        if self._primary.fault is not None:
            with contextlib.suppress(Unavailable):
                await self.transact(lambda _: None)  # ends the fault if it is over
        fault = self._primary.fault
        found = [] if fault is None else [Problem(fault.code, fault.message)]
        if self._listener.misses_notifications:
            found.append(Problem("notifications_late", NO_NOTIFICATIONS))
        return tuple(found)

    async def back_up(self, path: Path, *, replace: bool) -> int:  # noqa: ARG002
        """Refuse.

        :raises Conflict: always.
        """
        raise Conflict(
            "a PostgreSQL database cannot be backed up by agentd: use pg_dump", {"path": str(path)}
        )

    async def check(self) -> Sequence[str]:
        """Check that the log has no gap. PostgreSQL's own tools check its files."""
        return await self.read(_gaps)


def _gaps(view: View) -> list[str]:
    """Return what is wrong with the positions of the log."""
    assert isinstance(view, PostgresView)
    count, first, last, head, deleted = view.log_bounds()
    if first >= 1 and count + deleted == last == head:
        return []
    found = f"there are {count}, from {first} to {last}, and {deleted} were deleted"
    return [f"the log's positions are not 1 … {head}: {found}"]

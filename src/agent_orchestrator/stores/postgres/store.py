"""The PostgreSQL store."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import psycopg

from agent_orchestrator.domain.errors import Conflict, StoreOpenError, Unavailable
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.postgres import daemons
from agent_orchestrator.stores.postgres.connection import Connection, is_end_of_session, is_failure
from agent_orchestrator.stores.postgres.notifications import Listener
from agent_orchestrator.stores.postgres.primary import Primary, open_error
from agent_orchestrator.stores.postgres.schema import check_database, prepare, schema_version
from agent_orchestrator.stores.postgres.view import PostgresView
from agent_orchestrator.stores.postgres.writer import PostgresWriter
from agent_orchestrator.stores.registry import OnCommit
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.store import SqlStore
from agent_orchestrator.stores.urls import check_userinfo, without_secrets

T = TypeVar("T")

READERS: Final = 4


class Reader:
    """A connection for reads, which is opened when it is needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """Return an open connection.

        :raises psycopg.Error: if there is none.
        """
        if self._connection is None or self._connection.is_lost:
            self.close()
            self._connection = Connection(self._url)
        return self._connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresStore(SqlStore[Reader]):
    """A store in one PostgreSQL database, in the schema ``agent_orchestrator``.

    One daemon at a time may use the database.

    :param url: ``postgresql://…``, as libpq has it. What it does not give comes from the service file, the
        password file and the environment.
    :param on_commit: called in the writer's thread after each commit, with the number of its
        changes and its duration in seconds. It must not block or raise.
    :raises ConfigError: if the URL cannot be read.
    """

    def __init__(self, url: str, *, on_commit: OnCommit | None = None) -> None:
        super().__init__()
        check_userinfo(url)
        self._url = url
        self._location = without_secrets(url)
        self._on_commit = on_commit

    @property
    def backend(self) -> str:
        return "postgresql"

    @property
    def location(self) -> str | None:
        return self._location

    @property
    def schema_version(self) -> int:
        return schema_version()

    async def __aenter__(self) -> Self:
        """Open the database. Make the tables if there are none.

        :raises StoreOpenError: a subclass of it, if the database cannot or must not be used.
        """
        self._long_values = LongValues()
        await anyio.to_thread.run_sync(self._open, limiter=anyio.CapacityLimiter(1))
        writer = PostgresWriter(self._listeners, self._primary, self._on_commit)
        self._all_readers = [Reader(self._url) for _ in range(READERS)]
        tasks = {"listener": self._hear, "lease": self._extend_lease}
        await self._begin(writer, self._all_readers, tasks)
        return self

    def _open(self) -> None:
        connection = self._connect()
        try:
            prepare(connection)
            daemon = daemons.join(connection)
            self._primary = Primary(self._url, self._location, connection, daemon)
            self._listener = Listener(self._url, daemon.id, self._listeners.notify)
            self._listener.connect()
        except psycopg.Error as error:
            connection.close()
            raise open_error(self._location, error) from error
        except BaseException:
            connection.close()
            raise

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
            await self._closing.wait()
            tasks.cancel_scope.cancel()

    async def _extend_lease(self) -> None:
        """Commit now and then. Without a connection, this is also what connects again."""
        while True:
            with anyio.move_on_after(daemons.BEAT_S):
                await self._closing.wait()
                return
            with contextlib.suppress(Unavailable):
                await self.transact(lambda _: None)

    def _close_database(self) -> None:
        for reader in self._all_readers:
            with contextlib.suppress(psycopg.Error):
                reader.close()
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
            if is_end_of_session(error):
                raise self._primary.unreachable(error).refusal() from error
            if is_failure(error):
                raise self._primary.fault_of(error).refusal() from error
            raise

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
        return () if fault is None else (Problem(fault.code, fault.message),)

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
    count, first, last, head = view.log_bounds()
    if (first, last, head) == (1, count, count):
        return []
    return [f"the log's positions are not 1 … {head}: there are {count}, from {first} to {last}"]

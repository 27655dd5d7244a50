"""A connection to a PostgreSQL server.

Statements are sent by libpq's blocking calls, from threads. A cursor of psycopg takes three to five times as
much processor time for a small statement, and a store's transaction has many of them.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
from attrs import frozen
from psycopg import abc, errors, pq
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict

from agent_orchestrator.stores.postgres.translation import translated
from agent_orchestrator.stores.postgres.values import parameter, row_of

SCHEMA: Final = "agent_orchestrator"
"""The schema with the tables."""

IDLE_LIMIT_S: Final = 5
"""Seconds that a transaction may be idle before the server ends it, so that a stopped daemon does not keep
its locks."""

_OPENING_S: Final = 10.0
"""Seconds until the first answers of a server that has accepted a connection."""

_SLOWEST: Final = 1_000_000
"""Bytes per second that a connection is expected to take at least."""

LOCK_LIMIT_S: Final = 10
"""Seconds to wait for a lock of another session."""

_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "application_name": "agentd",
}
"""Connection parameters that the URL does not set: they notice a peer that vanished."""

_SETTINGS: Final = (
    f"SET search_path = {SCHEMA}; SET default_transaction_isolation = 'read committed';"
    " SET default_transaction_read_only = off; SET statement_timeout = 0;"
    f" SET lock_timeout = '{LOCK_LIMIT_S}s';"
    f" SET idle_in_transaction_session_timeout = '{IDLE_LIMIT_S}s'; SET jit = off;"
    " SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 3; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = 15000;"
    " SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)
"""A role or database may have other settings. An acknowledged change is on the server's disk.

The server notices as well that this machine vanished, or that this process was stopped. While statements or rows are
sent, no other limit ends its transaction, whose locks stop all daemons.
"""

_LOCAL_SETTINGS: Final = (
    f"SELECT set_config('search_path', '{SCHEMA}', true), set_config('statement_timeout', '0', true),"
    f" set_config('lock_timeout', '{LOCK_LIMIT_S}s', true),"
    f" set_config('idle_in_transaction_session_timeout', '{IDLE_LIMIT_S}s', true),"
    " set_config('jit', 'off', true), set_config('synchronous_commit', CASE"
    " WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'"
    " ELSE current_setting('synchronous_commit') END, true)"
).encode()
"""The same for one transaction. Through a pooler, the next transaction may be in another session."""

_IDLE_LIMIT: Final = b"SET LOCAL idle_in_transaction_session_timeout = %d"
"""For the rest of a transaction, in milliseconds."""

_BEGIN: Final = b"BEGIN"
_BEGIN_WRITING: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_COMMIT: Final = b"COMMIT"

MAX_QUEUED: Final = 200
"""Statements after which a queue is sent, and its results are awaited.

They are not sent one by one without waiting, though the server could then work meanwhile: a transaction counts as idle only
when all results were asked for. If the daemon were stopped before, no limit would end it, and its locks would stay.
"""

LARGE: Final = 256 * 1024
"""Bytes of a statement's values from which it is not queued: a queue would hold many of them in memory."""

_DONE: Final = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})
_BINARY: Final = 1


class NotChanged(Exception):
    """A queued statement that must change a row has changed none."""


@frozen
class _Prepared:
    """A statement to send.

    :param name: its name in the session; None if it has none, because there is a pooler.
    :param must_change: whether it must change a row.
    """

    sql: bytes
    name: bytes | None
    cells: list[Any]
    formats: list[int] | None
    must_change: bool = False

    @property
    def size(self) -> int:
        """The bytes of its values."""
        return sum(map(len, filter(None, self.cells)))

    @property
    def is_large(self) -> bool:
        """Whether it is sent alone."""
        return self.size > LARGE


def _plain(sql: bytes) -> _Prepared:
    """Return a statement without values and without a name."""
    return _Prepared(sql, None, [], None)


class Connection:
    """A connection in autocommit mode. Through a pooler, it uses nothing of a session.

    Statements are in SQLite's SQL, or in PostgreSQL's with ``?``.

    :raises psycopg.Error: if it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        parameters = {**_DEFAULTS, **conninfo_to_dict(url), "client_encoding": "utf8"}
        self._connection = psycopg.connect(**parameters, autocommit=True)  # type: ignore[arg-type]
        self.pgconn = self._connection.pgconn
        """The connection of libpq."""
        self.pgconn.nonblocking = 0
        self._transformer: abc.Transformer = Transformer(self._connection)
        self._prepared: dict[str, bytes] = {}
        self._queue: list[_Prepared] = []
        self._is_ending = False
        self._has_idle_limit = True
        self._readable = select.poll()
        self._readable.register(self.pgconn.socket, select.POLLIN)
        self.writes = 0
        """How many statements were sent that change rows."""
        self.waits_since: float | None = None
        """Since when an answer of the server is waited for, by :func:`time.monotonic`."""
        # Its own descriptor, which no other thread closes while this one uses it.
        self._socket = socket.socket(fileno=os.dup(self.pgconn.socket))
        silence = threading.Timer(_OPENING_S, self.give_up)
        silence.start()
        try:
            self.is_pooled = self._session_process() != self.pgconn.backend_pid
            """Whether there is a pooler between here and the server, such as PgBouncer."""
            if not self.is_pooled:
                self.run_script(_SETTINGS)
        except BaseException:
            self.close()
            raise
        finally:
            silence.cancel()

    def _session_process(self) -> int:
        """Return the id of the server's process that serves the session. A pooler gives another one."""
        result = self._run(self.pgconn.exec_, b"SELECT pg_backend_pid()")
        return int(result.fetchone()[0])

    @property
    def is_lost(self) -> bool:
        """True if nothing can be sent any more."""
        return self.pgconn.status != pq.ConnStatus.OK

    @property
    def is_in_failed_transaction(self) -> bool:
        """True if an error has ended the transaction, except for its rollback."""
        return self.pgconn.transaction_status == pq.TransactionStatus.INERROR

    @property
    def in_transaction(self) -> bool:
        """True within a transaction, also a failed one."""
        states = {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}
        return self.pgconn.transaction_status in states

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Facts about the connection."""
        return self._connection.info

    def execute(self, sql: str, values: Sequence[Any] = ()) -> "Result":
        """Run a statement with its values, after the queued ones. Values of any type of the model may be given.

        :raises psycopg.Error: if that, or a queued statement, fails.
        :raises NotChanged: if a queued statement did not change a row that it must change.
        :raises UnicodeEncodeError: if a text contains a lone surrogate.
        """
        statement = translated(sql)
        if statement.is_control:  # a single message, and nothing to prepare
            self._await_end()
            self.flush()
            return self._control(statement.sql)
        prepared = self._ready(sql, values)
        if self.is_pooled and not self._queue and not self.in_transaction:
            return self._send([*self._begin(_BEGIN), prepared, _plain(_COMMIT)], place=2)
        if prepared.is_large:
            return self._send_large(prepared)
        if self._queue:
            return self._send([*self._queue, prepared])
        return self._send_alone(prepared)

    def execute_all(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list["Result"]:
        """Run small statements of a transaction, after the queued ones, in one round trip. Return their results.

        :raises psycopg.Error: if one of them fails, or a queued one.
        :raises NotChanged: if a queued statement did not change a row that it must change.
        """
        prepared = [self._ready(sql, values) for sql, values in statements]
        return self._results([*self._queue, *prepared])[-len(prepared) :]

    def queue(self, sql: str, values: Sequence[Any], *, must_change: bool = False) -> None:
        """Send a statement together with the next one that is run: many need one round trip.

        Errors of the database come then, except those of its preparation.

        :raises UnicodeEncodeError: if a text contains a lone surrogate.
        """
        prepared = self._ready(sql, values, must_change=must_change)
        if self.is_pooled and prepared.sql.startswith(_BEGIN):
            self._queue += self._begin(prepared.sql)
            return
        if prepared.is_large:
            self._send_large(prepared)
            return
        self._queue.append(prepared)
        if len(self._queue) >= MAX_QUEUED:
            self.flush()

    def _begin(self, sql: bytes) -> list[_Prepared]:
        """Return the statements that begin a transaction through a pooler."""
        return [_plain(_BEGIN_WRITING if sql == _BEGIN else sql), _plain(_LOCAL_SETTINGS)]

    def _control(self, sql: bytes) -> "Result":
        """Begin or end a transaction or a part of one."""
        if self.is_pooled and sql.startswith(_BEGIN):
            return self._send(self._begin(sql))
        return self._run(self.pgconn.exec_, sql)

    def roll_back(self) -> None:
        """Forget the queued statements, and end the transaction if there is one.

        :raises psycopg.Error: if that fails.
        """
        self._queue = []
        if self.in_transaction:
            self.execute("ROLLBACK")

    def roll_back_soon(self) -> None:
        """Do what :meth:`roll_back` does, without waiting for the server. The next statement waits.

        :raises psycopg.Error: if nothing can be sent.
        """
        self._queue = []
        if self.in_transaction:
            self.pgconn.send_query(b"ROLLBACK")
            self._is_ending = True

    def _await_end(self) -> None:
        """Wait for the end of the transaction that :meth:`roll_back_soon` ends."""
        if self._is_ending:
            self._is_ending = False
            while self._next_result() is not None:
                pass

    def flush(self) -> None:
        """Send the queued statements.

        :raises psycopg.Error: if one of them fails.
        :raises NotChanged: if one did not change a row that it must change.
        """
        if self._queue:
            self._send(self._queue)

    def _ready(self, sql: str, values: Sequence[Any], *, must_change: bool = False) -> _Prepared:
        self._await_end()
        statement = translated(sql)
        self.writes += statement.writes
        cells: list[Any] = list(map(parameter, values))
        formats = None
        if bytes in map(type, values):
            formats = [_BINARY if type(value) is bytes else 0 for value in values]
        name = None
        if not self.is_pooled:
            name = self._prepared.get(sql) or self._prepare(sql, statement.sql)
        return _Prepared(statement.sql, name, cells, formats, must_change)

    def _send_large(self, one: _Prepared) -> "Result":
        """Send the queued statements, and then one that may take long to arrive.

        The server takes a transaction for idle until it has the whole of the next statement.
        """
        self.flush()
        if not (self._has_idle_limit and self.in_transaction):
            return self._send_alone(one)
        seconds = IDLE_LIMIT_S + one.size / _SLOWEST
        self._run(self.pgconn.exec_, _IDLE_LIMIT % round(1000 * seconds))
        result = self._send_alone(one)
        self._queue.append(_plain(_IDLE_LIMIT % (1000 * IDLE_LIMIT_S)))
        return result

    def _send_alone(self, one: _Prepared) -> "Result":
        if one.name is None:
            exec_params = self.pgconn.exec_params
            result = self._run(exec_params, one.sql, one.cells, None, one.formats, _BINARY)
        else:
            exec_prepared = self.pgconn.exec_prepared
            result = self._run(exec_prepared, one.name, one.cells, one.formats, _BINARY)
        if one.must_change and not result.rowcount:
            raise NotChanged
        return result

    def _send(self, statements: Sequence[_Prepared], *, place: int = -1) -> "Result":
        """Send statements in one go, and return the result of one of them, by default of the last."""
        return self._results(statements)[place]

    def _results(self, statements: Sequence[_Prepared]) -> list["Result"]:
        """Send statements in one go, and return their results."""
        self._queue = []
        pgconn = self.pgconn
        pgconn.enter_pipeline_mode()
        for one in statements:
            if one.name is None:
                pgconn.send_query_params(one.sql, one.cells, None, one.formats, _BINARY)
            else:
                pgconn.send_query_prepared(one.name, one.cells, one.formats, _BINARY)
        pgconn.pipeline_sync()
        results = []
        for _ in statements:
            results.append(self._next_result())
            self._next_result()  # the end of the statement
        self._next_result()  # the end of the pipeline
        pgconn.exit_pipeline_mode()
        finished = []
        for one, result in zip(statements, results, strict=True):
            finished.append(self._finished(result))  # raises at the first that failed
            if one.must_change and not finished[-1].rowcount:
                raise NotChanged
        return finished

    def _next_result(self) -> pq.abc.PGresult | None:
        # libpq would wait itself, but would keep the interpreter lock meanwhile.
        while self.pgconn.is_busy():
            self.waits_since = time.monotonic()
            self._readable.poll()
            self.waits_since = None
            self.pgconn.consume_input()
        return self.pgconn.get_result()

    def _prepare(self, sql: str, translation: bytes) -> bytes:
        name = b"s%d" % len(self._prepared)
        self._run(self.pgconn.prepare, name, translation)
        self._prepared[sql] = name
        return name

    def first_row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement and return the first row, or None."""
        return self.execute(sql, values).fetchone()

    def run_script(self, sql: str) -> None:
        """Run several statements without values."""
        self._run(self.pgconn.exec_, sql.encode())

    def _run(self, send: Callable[..., pq.abc.PGresult], *values: Any) -> "Result":
        """Call a function of libpq that waits for the answer."""
        self.waits_since = time.monotonic()
        try:
            result = send(*values)
        finally:
            self.waits_since = None
        return self._finished(result)

    def _finished(self, result: pq.abc.PGresult | None) -> "Result":
        if result is None:
            raise psycopg.OperationalError("the connection was lost")
        if result.status in _DONE:
            return Result(result, self._transformer)
        if result.error_field(pq.DiagnosticField.SQLSTATE) is None:  # of libpq, not of the server
            raise psycopg.OperationalError(result.get_error_message())
        raise errors.error_from_result(result, encoding="utf-8")

    def allow_idle(self) -> None:
        """Let transactions be idle for any time."""
        self.run_script("SET idle_in_transaction_session_timeout = 0")
        self._has_idle_limit = False

    def close(self) -> None:
        self._socket.close()
        self._connection.close()

    def give_up_after(self, seconds: float) -> None:
        """Give up if an answer is waited for since longer than that."""
        since = self.waits_since
        if since is not None and time.monotonic() - since > seconds:
            self.give_up()

    def give_up(self) -> None:
        """End the wait of another thread for an answer: to that thread the connection is lost."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Result:
    """The result of a statement. Its rows are converted when they are fetched."""

    __slots__ = ("_result", "_transformer")

    def __init__(self, result: pq.abc.PGresult, transformer: abc.Transformer) -> None:
        self._result = result
        self._transformer = transformer

    @property
    def rowcount(self) -> int:
        """The number of rows that were changed."""
        return self._result.command_tuples or 0

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        self._transformer.set_pgresult(self._result)
        return self._transformer.load_rows(0, self._result.ntuples, row_of)

    def fetchone(self) -> Any:
        """Return the first row, or None."""
        if not self._result.ntuples:
            return None
        self._transformer.set_pgresult(self._result)
        return self._transformer.load_rows(0, 1, row_of)[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())


def is_failure(error: BaseException) -> bool:
    """Return True for a failure of the database, False for a mistake in its use."""
    return isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError
    ) and not isinstance(error, errors.ProgramLimitExceeded | errors.InFailedSqlTransaction)


def is_end_of_session(error: psycopg.Error) -> bool:
    """Return True if the server has ended the session, or will have at once."""
    state = error.sqlstate
    return (
        isinstance(error, psycopg.InterfaceError)
        or (state is None and isinstance(error, psycopg.OperationalError))
        or (state is not None and state.startswith(("08", "57P", "25P03", "25P04")))
    )

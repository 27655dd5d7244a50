"""A connection to a PostgreSQL server."""

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8BinaryDumper

from agent_orchestrator.stores.postgres.translation import Translated, translated
from agent_orchestrator.stores.postgres.values import cell, row_of

SCHEMA: Final = "agent_orchestrator"
"""The schema with the tables."""

LARGE: Final = 16 * 2**20
"""Characters or bytes of a statement's values from which they are sent in one blocking call. psycopg sends
in steps, and copies what remains at each of them."""

IDLE_LIMIT_S: Final = 5
"""Seconds that a transaction may be idle before the server ends it, so that a stopped daemon does not keep
its locks."""

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
    " SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)
"""A role or database may have other settings. An acknowledged change is on the server's disk."""


class Connection:
    """A connection in autocommit mode. Statements are in SQLite's SQL, or in PostgreSQL's with ``?``.

    :raises psycopg.Error: if it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(
            **{**_DEFAULTS, **conninfo_to_dict(url)},  # type: ignore[arg-type]
            autocommit=True,
            cursor_factory=psycopg.RawCursor,
            prepare_threshold=1,
            client_encoding="utf8",
        )
        try:
            self._connection.prepared_max = 500
            # One type for all sizes of integers, so that each statement is prepared once.
            self._connection.adapters.register_dumper(int, Int8BinaryDumper)
            self._connection.execute(_SETTINGS, prepare=False)
        except BaseException:
            self._connection.close()
            raise
        self.writes = 0
        """How many statements were sent that change rows."""

    @property
    def pgconn(self) -> pq.abc.PGconn:
        """The connection of libpq."""
        return self._connection.pgconn

    @property
    def is_lost(self) -> bool:
        """True if nothing can be sent any more."""
        return self._connection.closed or self.pgconn.status != pq.ConnStatus.OK

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

    def execute(self, sql: str, values: Sequence[Any] = ()) -> "psycopg.Cursor[Any]":
        """Run a statement with its values. Values of any type of the model may be given.

        :raises psycopg.Error: if that fails.
        :raises UnicodeEncodeError: if a text contains a lone surrogate.
        """
        statement = translated(sql)
        if statement.is_control:  # a single message, and nothing to prepare
            return self._connection.execute(statement.sql, prepare=False)
        cells = [cell(value) for value in values]
        self.writes += statement.writes
        if statement.writes and sum(len(one) for one in cells if type(one) in {str, bytes}) > LARGE:
            return self._send_large(statement, cells)
        cursor = self._connection.cursor(binary=True, row_factory=row_of)
        return cursor.execute(statement.sql, cells)

    def first_row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement and return the first row, or None."""
        return self.execute(sql, values).fetchone()

    def run_script(self, sql: str) -> None:
        """Run several statements without values."""
        self._connection.execute(sql, prepare=False)

    def _send_large(self, statement: Translated, cells: Sequence[Any]) -> "psycopg.Cursor[Any]":
        values, formats = zip(*map(_parameter, cells), strict=True)
        pgconn = self.pgconn
        pgconn.nonblocking = 0
        try:
            result = pgconn.exec_params(statement.sql.encode(), values, None, formats)
        finally:
            if pgconn.status == pq.ConnStatus.OK:
                pgconn.nonblocking = 1
        if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
            raise errors.error_from_result(result)
        return _Done(result.command_tuples or 0)  # type: ignore[return-value]

    def close(self) -> None:
        self._connection.close()


class _Done:
    """The outcome of a large statement, which returns no rows."""

    def __init__(self, rowcount: int) -> None:
        self.rowcount = rowcount


def _parameter(value: Any) -> tuple[bytes | None, int]:
    """Return a parameter of libpq, and whether it is binary."""
    match value:
        case None:
            return None, 0
        case bool():
            return b"t" if value else b"f", 0
        case bytes():
            return value, 1
    return str(value).encode(), 0


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

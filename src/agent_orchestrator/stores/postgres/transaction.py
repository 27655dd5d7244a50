"""Transactions of a PostgreSQL database."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import psycopg
from attrs import define
from psycopg import errors

from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.stores.postgres.connection import Connection, Result
from agent_orchestrator.stores.postgres.translation import translated
from agent_orchestrator.stores.postgres.view import PostgresView
from agent_orchestrator.stores.sql.transaction import SqlTransaction

_ADVANCE: Final = """
    UPDATE sessions SET last_seq = last_seq + ?1, updated_at = ?2, last_position = ?4
    WHERE id = ?3 RETURNING number, last_seq, last_position"""
_ADD_IMAGE: Final = "INSERT INTO images (digest, data) VALUES (?, ?)"
_PUT_LONG_RESULT: Final = """
    INSERT INTO long_results (run_id, result) VALUES (?, ?)
    ON CONFLICT (run_id) DO UPDATE SET result = excluded.result"""


@define
class Head:
    """The end of the log of all sessions in the current transaction."""

    position: int


class PostgresTransaction(PostgresView, SqlTransaction):
    """A transaction on the writing connection, managed by the writer.

    :param head: the end of the log, which the transaction advances.
    :param survives_errors: after an error, PostgreSQL refuses everything but the end of the transaction.
        True: each statement that may break a rule has a savepoint, so that a change which handles the
        error can go on. This costs two more round trips for each. False: statements without a result are
        sent with the next query, so their errors come late, and as the database's.
    """

    _max_long_rows = 1  # a message to the server has at most 1 GiB

    def __init__(
        self, connection: Connection, epoch: str | None, head: Head, *, survives_errors: bool
    ) -> None:
        super().__init__(connection, epoch)
        self._head = head
        self._survives_errors = survives_errors
        if not survives_errors:
            self._execute = self._execute_or_queue  # type: ignore[assignment]

    def _execute_or_queue(self, sql: str, values: Sequence[Any]) -> Result | None:
        """Run a query. Queue a statement that returns nothing: it is sent with the next query."""
        statement = translated(sql)
        if statement.writes and not statement.returns:
            self._connection.queue(sql, values)
            return None
        return self._connection.execute(sql, values)

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        if self._survives_errors:
            self._changed_rows(sql, values)
        else:
            self._connection.queue(sql, values)

    def _replace(self, sql: str, values: tuple[Any, ...]) -> None:
        if self._survives_errors:
            super()._replace(sql, values)
        else:
            self._connection.queue(sql, values, must_change=True)

    def _changed_rows(self, sql: str, values: Sequence[Any]) -> int:
        try:
            with self._step():
                return self._connection.execute(sql, values).rowcount
        except errors.ForeignKeyViolation as error:
            raise NotFound("the session or run that this refers to does not exist") from error
        except errors.ProgramLimitExceeded as error:
            raise Conflict(f"this is too long to be stored: {_message(error)}") from error
        except errors.IntegrityError as error:
            raise Conflict(f"this conflicts with a stored row: {_message(error)}") from error

    def _step(self) -> AbstractContextManager[object]:
        return savepoint(self._connection, "step") if self._survives_errors else nullcontext()

    def _advance(self, session_id: str, count: int, when: str) -> tuple[int, int, int] | None:
        position = self._head.position + count
        row: tuple[int, int, int] | None = self._first_row(
            _ADVANCE, count, when, session_id, position
        )
        if row is not None:
            self._head.position = position
        return row

    def _blob(self, data: bytes) -> Any:
        return data

    def _fill(self, table: str, column: str, row: int, data: str | bytes) -> None:
        """Do nothing: the value was sent with its row."""

    def _add_image_data(self, digest: str, data: bytes) -> None:
        self._execute(_ADD_IMAGE, (digest, data))

    def _put_long_result(self, run_id: str, text: str) -> None:
        self._execute(_PUT_LONG_RESULT, (run_id, text.encode()))


class savepoint:  # noqa: N801 - used as a statement
    """A part of a transaction that is undone alone if it raises."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def __enter__(self) -> None:
        self._connection.execute(f"SAVEPOINT {self._name}")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._connection.execute(f"ROLLBACK TO SAVEPOINT {self._name}")
        self._connection.execute(f"RELEASE SAVEPOINT {self._name}")


def _message(error: psycopg.Error) -> str:
    """Return the server's message without the values of the row, which its detail has."""
    return error.diag.message_primary or type(error).__name__

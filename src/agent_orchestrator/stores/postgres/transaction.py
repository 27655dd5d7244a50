"""Transactions of a PostgreSQL database."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, Final

import psycopg
from attrs import define, frozen
from psycopg import errors

from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Attempt, Run, Session, Thread
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import PastEvent
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.postgres.connection import Connection, Result
from agent_orchestrator.stores.postgres.row_cache import RowCache
from agent_orchestrator.stores.postgres.translation import translated
from agent_orchestrator.stores.postgres.view import POSTGRES, PostgresView
from agent_orchestrator.stores.sql.rows import (
    ATTEMPTS,
    RECORDS,
    RUNS,
    SESSIONS,
    TOKENS,
    is_long_result,
)
from agent_orchestrator.stores.sql.transaction import SqlTransaction
from agent_orchestrator.stores.sql.view import Statements

_ADVANCE: Final = """
    UPDATE sessions SET last_seq = last_seq + ?1, updated_at = ?2, last_position = ?4
    WHERE id = ?3 RETURNING number, last_seq, last_position, owner"""
_FROM: Final = " FROM sessions"
_SET_LAST: Final = (
    "UPDATE sessions SET last_seq = ?, updated_at = ?, last_position = ? WHERE id = ?"
)
SESSION: Final = f"{Statements.of(POSTGRES).session.removesuffix(_FROM)}, number{_FROM}"
"""The beginning of a query of sessions with their numbers."""
RUN: Final = Statements.of(POSTGRES).run
ATTEMPTS_OF: Final = f"SELECT {ATTEMPTS.columns} FROM attempts"
TOKEN: Final = f"SELECT {TOKENS.columns} FROM access_tokens"
RECORD: Final = f"SELECT {RECORDS.columns} FROM idempotency"
ATTEMPTS_OF_RUNS: Final = f"{ATTEMPTS_OF} WHERE run_id = ANY(?) ORDER BY attempt"
_ATTEMPTS_OF_RUN: Final = f"{ATTEMPTS_OF} WHERE run_id = ? ORDER BY attempt"
_SESSION_OF_RUN: Final = f"{SESSION} WHERE id = (SELECT session_id FROM runs WHERE runs.id = ?)"
_SESSIONS_OF_RUNS: Final = (
    f"{SESSION} WHERE id IN (SELECT session_id FROM runs WHERE runs.id = ANY(?))"
)
_ADD_IMAGE: Final = "INSERT INTO images (digest, data) VALUES (?, ?)"
_PUT_LONG_RESULT: Final = """
    INSERT INTO long_results (run_id, result) VALUES (?, ?)
    ON CONFLICT (run_id) DO UPDATE SET result = excluded.result"""


@frozen
class Read:
    """A query of rows for the cache.

    :param fill: receives its rows.
    """

    sql: str
    values: tuple[Any, ...]
    fill: Callable[[list[Any]], None]


def related_reads(run_ids: Sequence[str], rows: RowCache) -> list[Read]:
    """Return the queries of runs, and of their attempts and sessions."""
    ids = list(run_ids)
    if len(ids) == 1:  # with a list, the server would plan each of these anew each time
        return [
            Read(f"{RUN} WHERE id = ?", (ids[0],), rows.add_runs),
            Read(_ATTEMPTS_OF_RUN, (ids[0],), partial(rows.add_attempts, ids)),
            Read(_SESSION_OF_RUN, (ids[0],), rows.add_sessions),
        ]
    return [
        Read(f"{RUN} WHERE id = ANY(?)", (ids,), rows.add_runs),
        Read(ATTEMPTS_OF_RUNS, (ids,), partial(rows.add_attempts, ids)),
        Read(_SESSIONS_OF_RUNS, (ids,), rows.add_sessions),
    ]


@define
class Head:
    """The end of the log of all sessions in the current transaction.

    :param newest_id: the newest id of all earlier changes.
    """

    position: int
    newest_id: str = ""


class PostgresTransaction(PostgresView, SqlTransaction):
    """A transaction on the writing connection, managed by the writer.

    :param head: the end of the log, which the transaction advances.
    :param rows: the rows that earlier changes of the same transaction have read or written; None to read
        each again.
    :param survives_errors: after an error, PostgreSQL refuses everything but the end of the transaction.
        True: each statement that may break a rule has a savepoint, so that a change which handles the
        error can go on. This costs two more round trips for each. False: statements without a result are
        sent with the next query, so their errors come late, and as the database's.
    """

    _max_long_rows = 1  # a message to the server has at most 1 GiB

    def __init__(
        self,
        connection: Connection,
        epoch: str | None,
        head: Head,
        *,
        survives_errors: bool,
        rows: RowCache | None = None,
    ) -> None:
        super().__init__(connection, epoch)
        self._head = head
        self._rows = rows
        self._survives_errors = survives_errors
        if not survives_errors:
            self._execute = self._execute_or_queue

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

    def _session_row(self, rows: RowCache, session_id: str) -> list[Any] | None:
        row = rows.sessions.get(session_id)
        if (
            row is None
            and (found := self._first_row(f"{SESSION} WHERE id = ?", session_id)) is not None
        ):
            row = rows.sessions[session_id] = list(found)
        return row

    def session(self, session_id: str) -> Session | None:
        if self._rows is None:
            return super().session(session_id)
        row = self._session_row(self._rows, session_id)
        return None if row is None else SESSIONS.read(tuple(row[:-1]))

    def put_session(self, session: Session) -> None:
        super().put_session(session)
        if self._rows is not None:
            self._rows.put_session(SESSIONS.values(session))

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None:
        super().put_thread(session_id, provider, thread)
        if self._rows is not None:
            self._rows.sessions.pop(session_id, None)

    def forget_threads(self, session_id: str) -> None:
        super().forget_threads(session_id)
        if self._rows is not None:
            self._rows.sessions.pop(session_id, None)

    def _put_last_line(self, session_id: str, line: str) -> None:
        super()._put_last_line(session_id, line)
        if self._rows is not None:
            self._rows.put_last_line(session_id, line)

    def add_past(
        self,
        session_id: str,
        events: Sequence[PastEvent],
        *,
        oldest_cursor: int = 0,
        digest: str = "",
    ) -> None:
        super().add_past(session_id, events, oldest_cursor=oldest_cursor, digest=digest)
        if self._rows is not None:  # its oldest cursor may be another
            self._rows.sessions.pop(session_id, None)

    def delete_events(
        self, session_id: str, *, through: int = 0, seqs: Sequence[int] = (), digest: str = ""
    ) -> int:
        if self._rows is not None:
            self._rows.sessions.pop(session_id, None)
        return super().delete_events(session_id, through=through, seqs=seqs, digest=digest)

    def run(self, run_id: str) -> Run | None:
        if self._rows is None:
            return super().run(run_id)
        row = self._rows.runs.get(run_id)
        if row is None:
            self._read_run(self._rows, run_id)
            row = self._rows.runs.get(run_id)
        return None if row is None else self._run(row)

    def _read_run(self, rows: RowCache, run_id: str) -> None:
        """Read a run with its attempts and its session, which most changes of a run need, too."""
        reads = related_reads([run_id], rows)
        results = self._connection.execute_all([(one.sql, one.values) for one in reads])
        for one, result in zip(reads, results, strict=True):
            one.fill(result.fetchall())

    def add_run(self, run: Run) -> None:
        super().add_run(run)
        self._note_run(run)

    def put_run(self, run: Run) -> None:
        super().put_run(run)
        self._note_run(run)

    def _note_run(self, run: Run) -> None:
        if self._rows is not None:
            is_long = run.result is not None and is_long_result(run.result.text)
            self._rows.put_run(RUNS.values(run), is_long=is_long)
            if self._rows.max_queued is not None and run.status is RunStatus.QUEUED:
                self._rows.max_queued += 1

    def queue_is_full(self, limit: int) -> bool:
        rows = self._rows
        if rows is None:
            return super().queue_is_full(limit)
        if rows.max_queued is None or rows.max_queued >= limit:
            rows.max_queued = self._queued_count()
        return rows.max_queued >= limit

    def attempts(self, run_id: str) -> list[Attempt]:
        if self._rows is None:
            return super().attempts(run_id)
        if (rows := self._rows.attempts.get(run_id)) is None:
            rows = self._rows.attempts[run_id] = list(self._execute(_ATTEMPTS_OF_RUN, (run_id,)))
        return [ATTEMPTS.read(row) for row in rows]

    def put_attempt(self, attempt: Attempt) -> None:
        super().put_attempt(attempt)
        if self._rows is not None:
            self._rows.put_attempt(ATTEMPTS.values(attempt))

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        if self._rows is None or (caller, call, key) not in self._rows.records:
            return super().idempotency(caller, call, key)
        row = self._rows.records[caller, call, key]
        return None if row is None else RECORDS.read(row)

    def add_record(self, record: IdempotencyRecord, *, max_count: int, max_size: int) -> None:
        if self._rows is not None:
            self._rows.records.pop((record.caller, record.call, record.key), None)
        super().add_record(record, max_count=max_count, max_size=max_size)

    def _last_of_caller(self, caller: str) -> tuple[int, int] | None:
        if self._rows is not None and (last := self._rows.last_records.get(caller)) is not None:
            return last
        return super()._last_of_caller(caller)

    def _note_last(self, caller: str, place: int, total: int) -> None:
        if self._rows is not None:
            self._rows.last_records[caller] = place, total

    def delete_records(self, *, before: datetime, limit: int) -> int:
        self._forget_records()
        return super().delete_records(before=before, limit=limit)

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        self._forget_records()
        return super().delete_records_of(caller, limit=limit)

    def _forget_records(self) -> None:
        if self._rows is not None:
            self._rows.last_records.clear()
            self._rows.records.clear()

    def token(self, token_id: str) -> AccessToken | None:
        if self._rows is None:
            return super().token(token_id)
        row = self._rows.tokens.get(token_id)
        if row is None:
            row = self._first_row(f"{TOKEN} WHERE id = ?", token_id)
            if row is None:
                return None
            self._rows.tokens[token_id] = row
        return TOKENS.read(row)

    def put_token(self, token: AccessToken) -> None:
        self._forget_token(token.id)
        super().put_token(token)

    def mark_token_used(self, token_id: str, at: datetime) -> None:
        self._forget_token(token_id)
        super().mark_token_used(token_id, at)

    def remove_token(self, token_id: str) -> None:
        self._forget_token(token_id)
        super().remove_token(token_id)

    def _forget_token(self, token_id: str) -> None:
        if self._rows is not None:
            self._rows.tokens.pop(token_id, None)

    def _advance(self, session_id: str, count: int, when: str) -> tuple[int, int, int, str] | None:
        position = self._head.position + count
        if self._rows is not None:
            found = self._session_row(self._rows, session_id)
            if found is None:
                return None
            number, last_seq, owner = self._rows.advance(found, count, when)
            self._connection.queue(
                _SET_LAST, (last_seq, when, position, session_id), must_change=True
            )
            self._head.position = position
            return number, last_seq, position, owner
        row: tuple[int, int, int, str] | None = self._first_row(
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

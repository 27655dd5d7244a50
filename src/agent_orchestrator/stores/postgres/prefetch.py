"""Reading what the changes of a group need in one query for all of them.

A change is a function, so its reads are known only when it runs. Therefore each change is first run up to its first
read of a row that is not there yet, or its first write. The rows are then read together, and the changes run again.
A change may be run again at any time: it has no effects but those on its transaction.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from attrs import define, field

from agent_orchestrator.domain.model import Attempt, Run, Session
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.row_cache import RecordKey, RowCache
from agent_orchestrator.stores.postgres.transaction import (
    ATTEMPTS_OF,
    RECORD,
    RUN,
    SESSION,
    Head,
    PostgresTransaction,
)
from agent_orchestrator.stores.sql.rows import ATTEMPTS
from agent_orchestrator.stores.sql.writer import Pending

MIN_CHANGES: Final = 4
"""Changes of a group from which on it pays to run them twice."""

_ROUNDS: Final = 2
"""Maximum number of reads of rows: an accepted message needs a record of its key, and then its session."""

_RECORDS: Final = (
    f"{RECORD} WHERE (caller, call, key) IN (SELECT * FROM unnest(?::text[], ?::text[], ?::text[]))"
)
_RUN_ID: Final = ATTEMPTS.columns.split(", ").index("run_id")


class _Stop(BaseException):
    """The change goes on only with rows that are not there yet, or with a write."""


@define
class _Needs:
    """The rows that changes need."""

    sessions: set[str] = field(factory=set)
    runs: set[str] = field(factory=set)
    attempts: set[str] = field(factory=set)
    records: set[RecordKey] = field(factory=set)

    @property
    def count(self) -> int:
        return len(self.sessions) + len(self.runs) + len(self.attempts) + len(self.records)


class _Scout(PostgresTransaction):
    """A transaction that only finds out what a change needs."""

    def __init__(self, connection: Connection, rows: RowCache, needs: _Needs) -> None:
        super().__init__(connection, None, Head(0), survives_errors=False, rows=rows)
        self._cache = rows
        self._needs = needs
        self._execute = self._stop

    def _stop(self, *_: object) -> NoReturn:
        raise _Stop

    def _write(self, *_: object) -> NoReturn:
        raise _Stop

    def _replace(self, *_: object) -> NoReturn:
        raise _Stop

    def _changed_rows(self, *_: object) -> NoReturn:
        raise _Stop

    def _advance(self, *_: object) -> NoReturn:
        raise _Stop

    def session(self, session_id: str) -> Session | None:
        if session_id not in self._cache.sessions:
            self._needs.sessions.add(session_id)
        return super().session(session_id)

    def run(self, run_id: str) -> Run | None:
        if run_id not in self._cache.runs:
            self._needs.runs.add(run_id)
        return super().run(run_id)

    def attempts(self, run_id: str) -> list[Attempt]:
        if run_id not in self._cache.attempts:
            self._needs.attempts.add(run_id)
        return super().attempts(run_id)

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        if (caller, call, key) not in self._cache.records:
            self._needs.records.add((caller, call, key))
        return super().idempotency(caller, call, key)


def prefetch(connection: Connection, batch: Sequence[Pending], rows: RowCache) -> None:
    """Read rows that the changes of a group need.

    :param rows: receives them.
    :raises psycopg.Error: if the database fails.
    """
    waiting = list(batch)
    for _ in range(_ROUNDS):
        needs = _Needs()
        waiting = [pending for pending in waiting if _needs_more(connection, pending, rows, needs)]
        if needs.count < MIN_CHANGES:
            return
        _read(connection, needs, rows)


def _needs_more(connection: Connection, pending: Pending, rows: RowCache, needs: _Needs) -> bool:
    before = needs.count
    with suppress(BaseException):  # a refusal comes again when the change runs
        pending.change(_Scout(connection, rows, needs))
    return needs.count > before


def _read(connection: Connection, needs: _Needs, rows: RowCache) -> None:
    def found(sql: str, *values: Any) -> list[Any]:
        return connection.execute(sql, values).fetchall()

    if needs.records:
        rows.records.update(dict.fromkeys(needs.records))
        columns = [list(column) for column in zip(*needs.records, strict=True)]
        rows.records.update({row[:3]: row for row in found(_RECORDS, *columns)})
    if needs.sessions:
        read = found(f"{SESSION} WHERE id = ANY(?)", list(needs.sessions))
        rows.sessions.update({row[0]: list(row) for row in read})
    if needs.runs:
        rows.runs.update(
            {row[0]: row for row in found(f"{RUN} WHERE id = ANY(?)", list(needs.runs))}
        )
    if needs.attempts:
        rows.attempts.update({run_id: [] for run_id in needs.attempts})
        sql = f"{ATTEMPTS_OF} WHERE run_id = ANY(?) ORDER BY attempt"
        for row in found(sql, list(needs.attempts)):
            rows.attempts[row[_RUN_ID]].append(row)

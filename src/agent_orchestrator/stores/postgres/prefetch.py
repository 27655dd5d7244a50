"""Reading what the changes of a group need in one query for all of them.

A change is a function, so its reads are known only when it runs. Therefore each change is first run up to its first
read of a row that is not there yet, or its first write. The rows are then read together, and the changes run again.
A change may be run again at any time: it has no effects but those on its transaction.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from attrs import define, field

from agent_orchestrator.domain.model import Attempt, Run, Session
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.postgres.connection import Connection, Result
from agent_orchestrator.stores.postgres.row_cache import RecordKey, RowCache
from agent_orchestrator.stores.postgres.transaction import (
    ATTEMPTS_OF_RUNS,
    RECORD,
    SESSION,
    TOKEN,
    Head,
    PostgresTransaction,
    Read,
    related_reads,
)
from agent_orchestrator.stores.sql.writer import Pending

MIN_CHANGES: Final = 4
"""Changes of a group from which on it pays to run them twice."""

_ROUNDS: Final = 2
"""Maximum number of further reads."""

_RECORDS: Final = (
    f"{RECORD} WHERE (caller, call, key) IN (SELECT * FROM unnest(?::text[], ?::text[], ?::text[]))"
)


class _Stop(BaseException):
    """The change goes on only with rows that are not there yet, or with a write."""


@define
class _Needs:
    """The rows that changes need."""

    sessions: set[str] = field(factory=set)
    runs: set[str] = field(factory=set)
    attempts: set[str] = field(factory=set)
    records: set[RecordKey] = field(factory=set)
    tokens: set[str] = field(factory=set)

    @property
    def count(self) -> int:
        rows = len(self.sessions) + len(self.runs) + len(self.attempts)
        return rows + len(self.records) + len(self.tokens)

    def reads(self, rows: RowCache) -> Iterator[Read]:
        """Yield the queries of these rows.

        :param rows: receives them.
        """
        if self.records:
            columns = tuple(list(column) for column in zip(*self.records, strict=True))
            rows.records.update(dict.fromkeys(self.records))
            yield Read(
                _RECORDS,
                columns,
                lambda found: rows.records.update({row[:3]: row for row in found}),
            )
        if self.tokens:
            yield Read(
                f"{TOKEN} WHERE id = ANY(?)",
                (list(self.tokens),),
                lambda found: rows.tokens.update({row[0]: row for row in found}),
            )
        if self.sessions:
            sql = f"{SESSION} WHERE id = ANY(?)"
            yield Read(sql, (list(self.sessions),), rows.add_sessions)
        if self.runs:
            yield from related_reads(list(self.runs), rows)
        if self.attempts:
            ids = list(self.attempts)
            yield Read(ATTEMPTS_OF_RUNS, (ids,), lambda found: rows.add_attempts(ids, found))


class _Scout(PostgresTransaction):
    """A transaction that only finds out what a change needs."""

    def __init__(self, connection: Connection, rows: RowCache, needs: _Needs) -> None:
        super().__init__(connection, None, Head(0), survives_errors=False, rows=rows)
        self._cache = rows
        self._needs = needs
        self._execute = self._stop
        self.needs_more = False
        """Whether the change will need further rows when it has those that are to be read."""

    def _want(
        self, wanted: set[Any], key: object, known: Container[object], *, is_first: bool = False
    ) -> None:
        """Note a row that is needed, if it is not there.

        :param is_first: whether a change that has it needs further rows.
        """
        if key not in known:
            wanted.add(key)
            self.needs_more |= is_first

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

    def _read_run(self, *_: object) -> NoReturn:
        raise _Stop

    def session(self, session_id: str) -> Session | None:
        self._want(self._needs.sessions, session_id, self._cache.sessions)
        return super().session(session_id)

    def run(self, run_id: str) -> Run | None:
        self._want(self._needs.runs, run_id, self._cache.runs)
        return super().run(run_id)

    def attempts(self, run_id: str) -> list[Attempt]:
        self._want(self._needs.attempts, run_id, self._cache.attempts)
        return super().attempts(run_id)

    def token(self, token_id: str) -> AccessToken | None:
        self._want(self._needs.tokens, token_id, self._cache.tokens, is_first=True)
        return super().token(token_id)

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        record = caller, call, key
        self._want(self._needs.records, record, self._cache.records, is_first=True)
        return super().idempotency(caller, call, key)


class Prefetch:
    """The reads that the changes of a group need first.

    :param connection: where the changes will run.
    :param rows: receives the rows.
    """

    def __init__(self, connection: Connection, batch: Sequence[Pending], rows: RowCache) -> None:
        self._connection = connection
        self._rows = rows
        self._waiting = list(batch) if len(batch) >= MIN_CHANGES else []
        self._needs = self._next_needs()

    def _next_needs(self) -> _Needs:
        """Run the changes that need more rows, and return what they need next."""
        needs = _Needs()
        self._waiting = [
            pending
            for pending in self._waiting
            if _needs_more(self._connection, pending, self._rows, needs)
        ]
        return needs

    def first_row(self, sql: str) -> Any:
        """Run a query, read the rows that were found out before the transaction, and return the query's first row.

        All of it is one round trip.

        :raises psycopg.Error: if the database fails.
        """
        reads = list(self._needs.reads(self._rows))
        first, *results = self._connection.execute_all(
            [(sql, ()), *((one.sql, one.values) for one in reads)]
        )
        _fill(reads, results)
        return first.fetchone()

    def read_rest(self) -> None:
        """Read the rows that the changes need next, if many changes wait for them.

        An accepted message needs the token of its caller, a record of its key, and then its session.

        :raises psycopg.Error: if the database fails.
        """
        for _ in range(_ROUNDS):
            if len(self._waiting) < MIN_CHANGES:
                return
            needs = self._next_needs()
            if needs.count < MIN_CHANGES:
                return
            reads = list(needs.reads(self._rows))
            _fill(reads, self._connection.execute_all([(one.sql, one.values) for one in reads]))


def _needs_more(connection: Connection, pending: Pending, rows: RowCache, needs: _Needs) -> bool:
    scout = _Scout(connection, rows, needs)
    with suppress(BaseException):  # a refusal comes again when the change runs
        pending.change(scout)
    return scout.needs_more


def _fill(reads: Sequence[Read], results: Sequence[Result]) -> None:
    for one, result in zip(reads, results, strict=True):
        one.fill(result.fetchall())

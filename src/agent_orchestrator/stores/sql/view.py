"""Queries as SQL. Statements are constants where possible, because each connection keeps those compiled."""

import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from heapq import heappop, heappush
from itertools import chain
from typing import Any, ClassVar, Final, Protocol, TypeVar

from attrs import evolve, frozen

from agent_orchestrator.domain.access import EVERYTHING, Grant, GrantRole, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.daemons import DaemonRecord, HostRecord
from agent_orchestrator.domain.lifecycle import TERMINAL, RunStatus
from agent_orchestrator.domain.model import (
    MANUAL,
    Attempt,
    Event,
    Message,
    PrunedLog,
    Request,
    Run,
    RunResult,
    Session,
    Thread,
)
from agent_orchestrator.domain.notices import Notice, NoticeState, PushSubscription
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.long_work import short_turns
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.operations.options import ListOrder, RequestOrder
from agent_orchestrator.ports.queries import Growth, IdempotencyRecord
from agent_orchestrator.stores.encoding import (
    events_gone,
    feed_cursor,
    mark_of,
    position_after,
)
from agent_orchestrator.stores.sql.dialect import Dialect
from agent_orchestrator.stores.sql.epochs import NO_END, end_of
from agent_orchestrator.stores.sql.listing import (
    GRANTED,
    LINEAGE,
    ORDERINGS,
    TREE,
    Ordering,
    Statement,
    in_order,
    rows_within,
    sessions_within,
    visibility_conditions,
    where_all,
)
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.rows import (
    ATTEMPTS,
    AUDIT,
    LONG_RESULT,
    MESSAGES,
    NOTICES,
    RECORDS,
    REQUESTS,
    RUNS,
    SESSIONS,
    SUBSCRIPTIONS,
    TOKENS,
    event_columns,
    event_from,
    event_size,
    run_size,
    text_size,
)
from agent_orchestrator.stores.sql.search import SqlSearches
from agent_orchestrator.stores.sql.tables import Row
from agent_orchestrator.wire.codec import format_time, parse_time
from agent_orchestrator.wire.encoded import Encoded

T = TypeVar("T")

MESSAGE: Final = f"SELECT {MESSAGES.columns} FROM messages"
_CHILD_MESSAGE_COUNT: Final = """
    SELECT count(*) FROM (
        SELECT 1 FROM messages WHERE source_kind = 'child' AND source_run_id = ? LIMIT ?) AS found"""
_REQUEST: Final = f"SELECT {REQUESTS.columns} FROM requests"
_ENDED_STATUSES: Final = ", ".join(f"'{status}'" for status in sorted(TERMINAL))
_ENDED_CALLERS: Final = f"""
    WITH RECURSIVE callers (caller) AS (  -- each caller once: one index lookup finds the next one
        SELECT min(caller) FROM idempotency
        UNION ALL
        SELECT (SELECT min(caller) FROM idempotency WHERE caller > callers.caller)
        FROM callers WHERE caller IS NOT NULL
    )
    SELECT caller FROM callers CROSS JOIN runs ON runs.id = caller
    WHERE runs.status IN ({_ENDED_STATUSES}) LIMIT ?"""
_FOR_PARENT: Final = "status = 'pending' AND audience = 'parent'"
_TO_WARN: Final = "status = 'pending' AND warned = 0"
_NEXT_DUE: Final = f"""
    SELECT min(moment) FROM (
        SELECT min(expires_at) AS moment FROM requests INDEXED BY requests_to_expire
        WHERE status = 'pending'
        UNION ALL
        SELECT min(people_at) FROM requests INDEXED BY requests_for_people WHERE {_FOR_PARENT}
        UNION ALL
        SELECT min(warn_at) FROM requests INDEXED BY requests_to_warn WHERE {_TO_WARN}
    ) AS moments"""
_NOTICE: Final = f"SELECT {NOTICES.columns} FROM notices"
_SUBSCRIPTION: Final = f"SELECT {SUBSCRIPTIONS.columns} FROM push_subscriptions"
_NEXT_POSITION: Final = (  # deleted events leave gaps
    "SELECT position, seq FROM events WHERE session = ? AND seq >= ? ORDER BY seq LIMIT 1"
)
_OLDEST_CURSOR: Final = "coalesce((SELECT seq FROM pruned_logs WHERE session = sessions.number), 0)"
_PRUNED: Final = """
    SELECT seq, count, digest, audited_count FROM pruned_logs
    WHERE session = (SELECT number FROM sessions WHERE id = ?)"""
_LOG_SIZE: Final = """
    SELECT coalesce(sum(octet_length(data) + coalesce(octet_length(long_data), 0)), 0) FROM events
    WHERE session = (SELECT number FROM sessions WHERE id = ?)"""
_NEWEST_EVENTS: Final = """
    SELECT count(CASE WHEN created_at >= ?2 THEN 1 END),
        coalesce(sum(CASE WHEN created_at >= ?2
            THEN octet_length(data) + coalesce(octet_length(long_data), 0) END), 0),
        min(created_at)
    FROM events WHERE position > (SELECT coalesce(max(position), 0) FROM events) - ?1"""
_UNAUDITED: Final = """
    SELECT s.id FROM pruned_logs p CROSS JOIN sessions s ON s.number = p.session
    WHERE p.count <> p.audited_count LIMIT ?"""
_IS_LIMITED: Final = "(retain_days > 0 OR retain_events > 0 OR retain_bytes > 0)"
_LAST_MARK: Final = "SELECT coalesce(max(mark), 0) FROM pruned_logs"
_PRUNED_SINCE: Final = """
    SELECT s.id FROM pruned_logs p CROSS JOIN sessions s ON s.number = p.session
    WHERE p.mark > ? AND p.position > ?"""
_SCAN_PER_SESSION: Final = 64
"""Maximum events to scan in the whole log for each session with new events. Beyond that, a search in
each session's log is cheaper. It takes about twenty lookups."""


# SQLite uses a partial index only if the query repeats its condition.
_ACTIVE: Final = "status IN ('running', 'waiting')"
_FOR_WORKERS: Final = f"status = 'queued' AND provider <> '{MANUAL}'"

_IS_LIVE: Final = (
    "EXISTS (SELECT 1 FROM runs r WHERE r.session_id = s.id"
    " AND r.status IN ('queued', 'running', 'waiting'))"
)

_STARTABLE: Final = """(
    NOT EXISTS (SELECT 1 FROM runs a WHERE a.session_id = r.session_id
                AND a.status IN ('running', 'waiting'))
    AND NOT EXISTS (SELECT 1 FROM runs q WHERE q.session_id = r.session_id
                    AND q.status = 'queued'
                    AND (NOT q.interrupts, q.id) < (NOT r.interrupts, r.id)))"""

_NEXT_RUNS: Final = f"""
    SELECT {RUNS.of("r")} FROM runs r INDEXED BY runs_for_workers
    WHERE r.status = 'queued' AND r.provider <> '{MANUAL}' AND {_STARTABLE}{{filters}}
    ORDER BY r.id LIMIT {{limit}}"""

_COUNT_BEFORE: Final = f"""
    SELECT count(*) FROM runs r
    WHERE r.status = 'queued' AND r.provider <> '{MANUAL}' AND r.id < ?
      AND (r.session_id = ? OR {_STARTABLE}){{of_host}}"""


@frozen
class Statements:
    """The queries that depend on the database."""

    session: str
    run: str
    latest_runs: str
    event: str
    feed: str
    feed_at: str
    feed_after: str
    searched: str

    @classmethod
    def of(cls, dialect: Dialect) -> "Statements":
        """Return the queries for a database."""
        cut_columns = RUNS.select(result=dialect.cut_result, error_message=dialect.cut_error)
        columns = event_columns(dialect.event_data)
        feed_from = (
            f"SELECT {columns}, s.id FROM events e CROSS JOIN sessions s ON s.number = e.session"
        )
        return cls(
            session=(
                f"SELECT {SESSIONS.columns}, last_seq, last_line, {dialect.threads}, {_OLDEST_CURSOR}"
                " FROM sessions"
            ),
            run=f"SELECT {RUNS.select(result=dialect.result)} FROM runs",
            latest_runs=f"""
                SELECT {cut_columns},
                    {dialect.result_size} + coalesce(octet_length(error_message), 0)
                FROM runs WHERE session_id = ?2 ORDER BY id DESC LIMIT ?3""",
            event=f"SELECT {columns} FROM events e",
            feed=f"{feed_from} WHERE e.position > ? AND e.position <= ?",
            feed_at=f"{feed_from} WHERE e.position = ?",
            feed_after=f"{feed_from} WHERE e.position > ?",
            searched=(
                f"SELECT {columns}, s.id, s.number, s.title, s.owner"
                " FROM events e CROSS JOIN sessions s ON s.number = e.session"
            ),
        )


class Rows(Protocol):
    """The rows that a statement returns."""

    def __iter__(self) -> Iterator[Any]: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> Any: ...


Execute = Callable[[str, Sequence[Any]], Rows]
"""Runs a statement with its values."""


class SqlView(SqlSearches):
    """Queries through one connection, consistent within the caller's transaction.

    :param execute: runs a statement on that connection.
    :param epoch: the id of the log's current epoch, which cursors contain. See
        :mod:`agent_orchestrator.stores.sql.epochs`.
    :param long_values: the cache that readers share. None in a transaction, because its values may never
        be committed.
    """

    _sql: ClassVar[Statements]
    _is_free: ClassVar[str | None] = None
    """The condition that a daemon may start a run ``r``, with its id as the parameter. None if there is only
    one daemon."""
    _is_of_host: ClassVar[str] = (
        "EXISTS (SELECT 1 FROM sessions s WHERE s.id = r.session_id AND s.host = ?)"
    )
    """The condition that a run ``r`` is of a host, with that as the parameter."""

    def __init__(
        self, execute: Execute, epoch: str | None = None, long_values: LongValues | None = None
    ) -> None:
        self._execute = execute
        self._epoch = epoch
        self._long_values = long_values

    @abstractmethod
    def _read_long_data(self, position: int) -> bytes:
        """Return the long data of the event at a position."""

    @abstractmethod
    def _read_long_result(self, run_id: str) -> RunResult:
        """Return the long result of a run."""

    @abstractmethod
    def _rows_of_sessions(
        self,
        table: str,
        sessions: Statement,
        ordering: Ordering,
        after: str | None,
        conditions: Mapping[str, Any],
    ) -> Statement:
        """Return a statement (see :data:`.listing.Merge`)."""

    def _in_list(self, column: str, values: Sequence[Any]) -> Statement:
        """Return a condition that a column has one of the values, and its parameters."""
        return f"{column} IN (SELECT value FROM json_each(?))", (json.dumps(list(values)),)

    def _rows_by_id(
        self,
        select: str,
        ids: Sequence[str],
        size: int | None,
        size_of: Callable[[Row], int],
    ) -> Iterable[Any]:
        """Return the rows with these ids, in this order, up to a size (see :func:`up_to`).

        :param select: the beginning of a query, up to the table that it reads.
        """
        rows = (self._first_row(f"{select} WHERE id = ?", row_id) for row_id in ids)
        return up_to(size, rows, size_of)

    def _messages(self, where: str, values: Sequence[Any], size: int | None) -> list[Message]:
        return [MESSAGES.read(row) for row in up_to(size, self._execute(MESSAGE + where, values))]

    @property
    def _searched_event(self) -> str:
        return self._sql.searched

    def _first_row(self, sql: str, *values: Any) -> Any:
        return self._execute(sql, values).fetchone()

    def session(self, session_id: str) -> Session | None:
        row = self._first_row(self._sql.session + " WHERE id = ?", session_id)
        return None if row is None else SESSIONS.read(row)

    def sessions(
        self,
        *,
        within: Visibility = EVERYTHING,
        status: str | None = None,
        parent_session_id: str | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Session]:
        ordering = ORDERINGS[order]
        start = ordering.start if after is None else after
        if parent_session_id is not None:
            # A session has few children, so the index by parent is used.
            conditions = {
                "parent_session_id = ?": parent_session_id,
                "+status = ?": status,
                ordering.after_key(): start,
            }
            statements = self._filtered("sessions", ordering, conditions, within, "id")
        elif within == EVERYTHING:
            conditions = {"status = ?": status, ordering.after_key(): start}
            statements = self._filtered("sessions", ordering, conditions, within, "id")
        else:
            statements = sessions_within(within, status, ordering, after)
        rows = self._page(self._sql.session, statements, ordering, limit, size)
        return [SESSIONS.read(row) for row in rows]

    def limited_sessions(self, *, after: str | None = None, limit: int) -> list[Session]:
        rows = self._execute(
            f"{self._sql.session} WHERE {_IS_LIMITED} AND id > ? ORDER BY id LIMIT ?",
            (after or "", limit),
        )
        return [SESSIONS.read(row) for row in rows]

    def _filtered(
        self,
        table: str,
        ordering: Ordering,
        conditions: Mapping[str, Any],
        within: Visibility,
        column: str,
        *,
        can_write: bool = False,
    ) -> tuple[Statement, ...]:
        """Return statements for the visible rows that meet the conditions.

        If visibility is restricted, the conditions should select few rows.

        :param column: the column with the session id.
        :param can_write: exclude sessions that the principal may only read.
        """
        return tuple(
            in_order(table, ordering, {**conditions, **alternative})
            for alternative in visibility_conditions(within, column, can_write=can_write)
        )

    def _page(
        self,
        select: str,
        statements: Iterable[Statement],
        ordering: Ordering,
        limit: int,
        size: int | None,
        size_of: Callable[[Row], int] = text_size,
    ) -> Iterable[Any]:
        """Return the first rows in order among those found by any of the statements.

        :param statements: they select keys.
        """
        keys: set[str] = set()
        for statement, values in statements:
            keys.update(row[0] for row in self._execute(statement, (*values, limit)))
        first = sorted(keys, reverse=ordering.newest)[:limit]
        ids = [key.rpartition("/")[2] for key in first]
        return self._rows_by_id(select, ids, size, size_of)

    def _is_visible(self, within: Visibility, session_id: str, *, can_write: bool = False) -> bool:
        """Return whether a caller may see the content of a session.

        :param can_write: return False if the principal may only read it.
        """
        if (
            within.tree is not None
            and not self._first_row(f"SELECT ? IN ({LINEAGE})", within.tree, session_id)[0]
        ):
            return False
        if within.principal is None:
            return True
        row = self._first_row("SELECT owner FROM sessions WHERE id = ?", session_id)
        if row is not None and row[0] == within.principal:
            return True
        role = self.role(session_id, within.principal)
        return role is not None and not (can_write and role == "reader")

    def message(self, message_id: str) -> Message | None:
        row = self._first_row(MESSAGE + " WHERE id = ?", message_id)
        return None if row is None else MESSAGES.read(row)

    def image(self, digest: str) -> bytes | None:
        row = self._first_row("SELECT data FROM images WHERE digest = ?", digest)
        return None if row is None else row[0]

    def image_space(self) -> int:
        return int(self._first_row("SELECT bytes FROM image_space WHERE id = 1")[0])

    def messages(
        self, session_id: str, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[Message]:
        where = " WHERE session_id = ? AND id > ? ORDER BY id LIMIT ?"
        return self._messages(where, (session_id, after or "", limit), size)

    def run_messages(self, run_id: str) -> list[Message]:
        rows = self._execute(MESSAGE + " WHERE run_id = ? ORDER BY id", (run_id,))
        return [MESSAGES.read(row) for row in rows]

    def child_message_count(self, run_id: str, *, limit: int) -> int:
        return int(self._first_row(_CHILD_MESSAGE_COUNT, run_id, limit)[0])

    def waiting_messages(
        self, session_id: str, *, limit: int, size: int | None = None
    ) -> list[Message]:
        where = (
            " WHERE session_id = ? AND run_id IS NULL AND delivery = 'queued' ORDER BY id LIMIT ?"
        )
        return self._messages(where, (session_id, limit), size)

    def run(self, run_id: str) -> Run | None:
        row = self._first_row(self._sql.run + " WHERE id = ?", run_id)
        return None if row is None else self._run(row)

    def runs(
        self,
        *,
        within: Visibility = EVERYTHING,
        session_id: str | None = None,
        status: RunStatus | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Run]:
        ordering = ORDERINGS[order]
        statements: tuple[Statement, ...]
        if session_id is not None or within == EVERYTHING:
            if session_id is not None and not self._is_visible(within, session_id):
                return []
            conditions = {
                "session_id = ?": session_id,
                "status = ?": status,
                ordering.after_key(): ordering.start if after is None else after,
            }
            statements = self._filtered("runs", ordering, conditions, EVERYTHING, "session_id")
        else:
            statements = rows_within(
                "runs", within, status, ordering, after, merge=self._rows_of_sessions
            )
        rows = self._page(self._sql.run, statements, ordering, limit, size, run_size)
        return [self._run(row) for row in rows]

    def latest_runs(
        self, session_id: str, *, limit: int, cut: int, size: int
    ) -> tuple[list[Run], int]:
        runs: list[Run] = []
        size_read = 0
        for row in self._execute(self._sql.latest_runs, (cut, session_id, limit)):
            run = RUNS.read(row)
            if run.result is not None and len(run.result.text) > cut:
                run = evolve(run, result=RunResult(run.result.text[:cut]))
            if run.error is not None and len(run.error.message) > cut:
                run = evolve(run, error=evolve(run.error, message=run.error.message[:cut]))
            runs.append(run)
            size_read += row[-1]
            if size_read >= size:
                break
        return runs[::-1], size_read

    def run_count(self, session_id: str) -> int:
        return int(self._first_row("SELECT count(*) FROM runs WHERE session_id = ?", session_id)[0])

    def child_count(self, session_id: str, within: Visibility = EVERYTHING) -> int:
        clauses = [
            where_all({"parent_session_id = ?": session_id, **alternative})
            for alternative in visibility_conditions(within, "id")
        ]
        children = " UNION ".join(f"SELECT id FROM sessions{where}" for where, _ in clauses)
        values = chain.from_iterable(values for _, values in clauses)
        return int(self._first_row(f"SELECT count(*) FROM ({children}) AS children", *values)[0])

    def active_run(self, session_id: str) -> Run | None:
        row = self._first_row(f"{self._sql.run} WHERE session_id = ? AND {_ACTIVE}", session_id)
        return None if row is None else self._run(row)

    def request(self, request_id: str) -> Request | None:
        row = self._first_row(_REQUEST + " WHERE id = ?", request_id)
        return None if row is None else REQUESTS.read(row)

    def requests(
        self,
        *,
        within: Visibility = EVERYTHING,
        status: str | None = None,
        session_id: str | None = None,
        root_session_id: str | None = None,
        run_id: str | None = None,
        resolvable: bool = False,
        order: RequestOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Request]:
        ordering = ORDERINGS[order]
        status = None if ordering.index_condition else status
        # An agent can resolve requests of its descendants, except those that only people may resolve.
        agent_session = within.tree if resolvable else None
        agent_conditions = {
            "session_id <> ?": agent_session,
            "approvals <> ?": None if agent_session is None else "ask-human",
        }
        if run_id is not None and (run := self.run(run_id)) is not None:
            session_id = session_id or run.session_id
        statements: tuple[Statement, ...]
        if (session_id, root_session_id) == (None, None) and within != EVERYTHING:
            statements = rows_within(
                "requests",
                within,
                status,
                ordering,
                after,
                agent_conditions,
                merge=self._rows_of_sessions,
                can_write=resolvable,
            )
        else:
            if session_id is not None:
                if not self._is_visible(within, session_id, can_write=resolvable):
                    return []
                within = EVERYTHING
            conditions = {
                # A plus sign disables the index on a column, in favor of a narrower condition.
                "run_id = ?": run_id,
                "session_id = ?" if run_id is None else "+session_id = ?": session_id,
                "root_session_id = ?": root_session_id,
                "status = ?": status,
                ordering.after_key(): ordering.start if after is None else after,
                **agent_conditions,
            }
            statements = self._filtered(
                "requests", ordering, conditions, within, "session_id", can_write=resolvable
            )
        rows = self._page(_REQUEST, statements, ordering, limit, size)
        return [REQUESTS.read(row) for row in rows]

    def open_request_count(self, session_id: str) -> int:
        query = "SELECT count(*) FROM requests WHERE session_id = ? AND status = 'pending'"
        return int(self._first_row(query, session_id)[0])

    def last_resolved(
        self, run_id: str, attempt: int, *, statuses: Collection[str], excluding: Collection[str]
    ) -> Request | None:
        rows = self._execute(
            "SELECT id, status FROM requests INDEXED BY requests_resolved WHERE run_id = ? AND attempt = ?"
            " AND resolved_at IS NOT NULL ORDER BY resolved_at DESC, id DESC",
            (run_id, attempt),
        )
        matching = (row[0] for row in rows if row[1] in statuses and row[0] not in excluding)
        request_id = next(matching, None)
        return None if request_id is None else self.request(request_id)

    def expired_requests(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            _REQUEST + " INDEXED BY requests_to_expire WHERE status = 'pending'"
            " AND expires_at <= ? ORDER BY expires_at LIMIT ?",
            (format_time(now), limit),
        )
        return [REQUESTS.read(row) for row in rows]

    def requests_to_escalate(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_for_people WHERE {_FOR_PARENT}"
            " AND people_at <= ? ORDER BY people_at LIMIT ?",
            (format_time(now), limit),
        )
        return [REQUESTS.read(row) for row in rows]

    def requests_to_warn(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_to_warn WHERE {_TO_WARN}"
            " AND warn_at <= ? ORDER BY warn_at LIMIT ?",
            (format_time(now), limit),
        )
        return [REQUESTS.read(row) for row in rows]

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_for_parent WHERE {_FOR_PARENT}"
            " AND parent_session_id = ? ORDER BY id LIMIT ?",
            (session_id, limit),
        )
        return [REQUESTS.read(row) for row in rows]

    def next_due(self) -> datetime | None:
        row = self._first_row(_NEXT_DUE)
        return None if row is None or row[0] is None else parse_time(row[0])

    def child_runs(self, run_id: str) -> list[Run]:
        rows = self._execute(self._sql.run + " WHERE parent_run_id = ? ORDER BY id", (run_id,))
        return [self._run(row) for row in rows]

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        return int(
            self._first_row(
                f"SELECT count(*) FROM sessions s WHERE s.parent_session_id = ?"
                f" AND s.parent_run_id IS ? AND {_IS_LIVE}",
                session_id,
                parent_run_id,
            )[0]
        )

    def live_descendants(self, session_id: str) -> int:
        return int(
            self._first_row(
                f"SELECT count(*) FROM sessions s WHERE s.id IN ({TREE}) AND s.id <> ? AND {_IS_LIVE}",
                session_id,
                session_id,
            )[0]
        )

    def next_runs(
        self,
        limit: int,
        *,
        providers: Collection[str] | None = None,
        daemon_id: str | None = None,
        host: str | None = None,
    ) -> list[Run]:
        filters: list[str] = []
        values: list[Any] = []
        if providers is not None:
            condition, listed = self._in_list("r.provider", sorted(providers))
            filters.append(condition)
            values += listed
        if daemon_id is not None and self._is_free is not None:
            filters.append(self._is_free)
            values.append(daemon_id)
        if host is not None:
            filters.append(self._is_of_host)
            values.append(host)
        limit_text, limit_values = self._limited(limit)
        query = _NEXT_RUNS.format(
            filters="".join(f" AND {one}" for one in filters), limit=limit_text
        )
        rows = list(self._execute(query, (*values, *limit_values)))
        return [RUNS.read(row) for row in rows[:limit]]

    def _limited(self, limit: int) -> tuple[str, tuple[int, ...]]:
        """Return the limit of a statement and its parameters. It may be a larger one."""
        return "?", (limit,)

    def queue_is_full(self, limit: int) -> bool:
        return self._queued_count() >= limit

    def _queued_count(self) -> int:
        """Return the number of queued runs for workers."""
        # Triggers keep the count: counting a long queue takes longer than accepting a message.
        query = f"SELECT coalesce(sum(count), 0) FROM run_counts WHERE {_FOR_WORKERS}"
        return int(self._first_row(query)[0])

    def queue_position(self, run: Run, *, host: str | None = None) -> int | None:
        if not self._is_queued(run):
            return None
        of_host, values = ("", ()) if host is None else (f" AND {self._is_of_host}", (host,))
        query = _COUNT_BEFORE.format(of_host=of_host)
        return int(self._first_row(query, run.id, run.session_id, *values)[0]) + 1

    def queued_before(self, run: Run) -> Run | None:
        if not self._is_queued(run):
            return None
        if active := self.active_run(run.session_id):
            return active
        row = self._first_row(
            self._sql.run + " WHERE session_id = ? AND status = 'queued'"
            " AND (NOT interrupts, id) < (?, ?) ORDER BY NOT interrupts DESC, id DESC LIMIT 1",
            run.session_id,
            not run.priority,
            run.id,
        )
        return None if row is None else self._run(row)

    def _is_queued(self, run: Run) -> bool:
        return (
            self._first_row("SELECT 1 FROM runs WHERE id = ? AND status = 'queued'", run.id)
            is not None
        )

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        by_provider: dict[str, dict[RunStatus, int]] = {}
        for provider, status, count in self._execute(
            "SELECT provider, status, count FROM run_counts WHERE count > 0", ()
        ):
            by_provider.setdefault(provider, {})[RunStatus(status)] = count
        return by_provider

    def lost_runs(self, instance: str) -> list[Run]:
        rows = self._execute(
            f"{self._sql.run} WHERE {_ACTIVE} AND provider <> '{MANUAL}' AND worker_id IS NOT NULL"
            " AND substr(worker_id, 1, ?) <> ? ORDER BY id",
            (len(instance) + 1, f"{instance}/"),
        )
        return [self._run(row) for row in rows]

    def daemons(self) -> list[DaemonRecord]:
        return []

    def lost_daemons(self) -> list[DaemonRecord]:
        return []

    def hosts(self) -> list[HostRecord]:
        return []

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        rows = self._execute(
            self._sql.event + " WHERE session = (SELECT number FROM sessions WHERE id = ?)"
            " AND seq > ? ORDER BY seq LIMIT ?",
            (session_id, after, limit),
        )
        return [
            event_from(row, session_id, self._long_data) for row in up_to(size, rows, event_size)
        ]

    def pruned_log(self, session_id: str) -> PrunedLog:
        row = self._first_row(_PRUNED, session_id)
        return PrunedLog() if row is None else PrunedLog(*row)

    def log_size(self, session_id: str) -> int:
        return int(self._first_row(_LOG_SIZE, session_id)[0])

    def newest_events(self, *, since: datetime, limit: int) -> Growth:
        count, size, first = self._first_row(_NEWEST_EVENTS, limit, format_time(since))
        return Growth(count, int(size), since if first is None else max(since, parse_time(first)))

    def unaudited_logs(self, *, limit: int) -> list[str]:
        return [row[0] for row in self._execute(_UNAUDITED, (limit,))]

    def job_due(self, name: str) -> datetime | None:
        row = self._first_row("SELECT next_at FROM jobs WHERE name = ?", name)
        return None if row is None else parse_time(row[0])

    def last_event_at(self, run: Run) -> datetime | None:
        row = self._first_row(
            "SELECT event_at FROM activity WHERE run_id = ? ORDER BY last_seq DESC LIMIT 1", run.id
        )
        return None if row is None else parse_time(row[0])

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        where, values = where_all({"run_id = ?": run.id, "attempt = ?": attempt})
        row = self._first_row(
            f"SELECT output_at FROM activity{where} AND output_at IS NOT NULL"
            " ORDER BY last_seq DESC LIMIT 1",
            *values,
        )
        return None if row is None else parse_time(row[0])

    def feed(
        self,
        *,
        after: str | None,
        until: str | None = None,
        sessions: Sequence[str] = (),
        within: Visibility = EVERYTHING,
        limit: int,
        size: int | None = None,
    ) -> list[StreamItem]:
        head = self.event_count()
        position = position_after(after, head, self._end_of)
        last = head if until is None else position_after(until, head, self._end_of)
        if after is not None:
            self._require_kept(after, position, sessions, within)
        if not sessions and within == EVERYTHING:
            rows = self._execute(
                self._sql.feed + " ORDER BY e.position LIMIT ?", (position, last, limit)
            )
            return self._items(up_to(size, rows, event_size))
        # Sessions without new events are excluded first, so that an idle reader costs little.
        numbers = self._sessions_with_events(position, sessions, within)
        if not numbers:
            return []
        if last - position > _SCAN_PER_SESSION * len(numbers):
            merged = self._merged(numbers, position, last, limit)
            return self._items(up_to(size, merged, event_size))
        # The plus sign disables the index by session. It would read all matching events to sort them; a
        # scan by position can stop at the limit.
        condition, listed = self._in_list("+e.session", list(numbers))
        rows = self._execute(
            f"{self._sql.feed} AND {condition} ORDER BY e.position LIMIT ?",
            (position, last, *listed, limit),
        )
        return self._items(up_to(size, rows, event_size))

    def _require_kept(
        self, cursor: str, position: int, sessions: Sequence[str], within: Visibility
    ) -> None:
        """Raise ``Gone`` if events after a cursor were deleted since it was read."""
        since, mark = mark_of(cursor), self._last_mark()
        if since >= mark:
            return
        for (session_id,) in self._execute(_PRUNED_SINCE, (since, position)).fetchall():
            if (not sessions or session_id in sessions) and (
                within == EVERYTHING or self._is_visible(within, session_id)
            ):
                raise events_gone(cursor, position, self._epoch, mark)

    def _last_mark(self) -> int:
        return int(self._first_row(_LAST_MARK)[0])

    def _merged(
        self, sessions: Mapping[int, int], position: int, last: int, limit: int
    ) -> Iterator[Any]:
        """Yield events of some sessions in log order, without scanning the log.

        :param sessions: the last ``seq`` by session number.
        """
        heads: list[tuple[int, int, int]] = []
        for number, last_seq in sessions.items():
            self._add_head(heads, number, self._first_after(number, last_seq, position))
        while heads and limit:
            next_position, number, seq = heappop(heads)
            if next_position > last:
                return
            yield self._first_row(self._sql.feed_at, next_position)
            limit -= 1
            self._add_head(heads, number, seq + 1)

    def _add_head(self, heads: list[tuple[int, int, int]], number: int, seq: int) -> None:
        if (row := self._first_row(_NEXT_POSITION, number, seq)) is not None:
            heappush(heads, (row[0], number, row[1]))

    def _first_after(self, session: int, last_seq: int, position: int) -> int:
        """Return the first ``seq`` of a session after a position in the log of all sessions."""
        return 1 + bisect_right(
            range(1, last_seq + 1),
            position,
            key=lambda seq: self._first_row(_NEXT_POSITION, session, seq)[0],
        )

    def _items(self, rows: Iterable[Any]) -> list[StreamItem]:
        mark = self._last_mark()
        return [
            StreamItem(
                feed_cursor(row[5], self._epoch, mark), event_from(row, row[7], self._long_data)
            )
            for row in rows
        ]

    def _long_data(self, position: int) -> Encoded:
        return self._read_once(position, lambda: Encoded(self._read_long_data(position)))

    def _run(self, row: Row) -> Run:
        run = RUNS.read(row)
        if run.result is not LONG_RESULT:
            return run
        result = self._read_once(run.id, lambda: self._read_long_result(run.id))
        return evolve(run, result=result)

    def _read_once(self, key: Hashable, read: Callable[[], T]) -> T:
        with short_turns():
            return read() if self._long_values is None else self._long_values.get(key, read)

    def _sessions_with_events(
        self, position: int, sessions: Sequence[str], within: Visibility
    ) -> dict[int, int]:
        """Return the last ``seq``, by session number, of sessions with events after a position."""
        if sessions:
            condition, [listed] = self._in_list("id", sessions)
            alternatives = [
                {condition: listed, "+last_position > ?": position, **alternative}
                for alternative in visibility_conditions(within, "id")
            ]
        else:
            new = {f"id IN ({TREE})": within.tree, "last_position > ?": position}
            alternatives = [{"owner = ?": within.principal, **new}]
            if within.principal is not None:
                alternatives.append({f"id IN ({GRANTED})": within.principal, **new})
        last_seqs: dict[int, int] = {}
        for alternative in alternatives:
            where, values = where_all(alternative)
            last_seqs.update(self._execute(f"SELECT number, last_seq FROM sessions{where}", values))
        return last_seqs

    def feed_of_types(
        self, types: Collection[str], *, after: str | None, limit: int, size: int | None = None
    ) -> list[StreamItem]:
        position = position_after(after, self.event_count(), self._end_of)
        condition, listed = self._in_list("e.event_type", sorted(types))
        rows = self._execute(
            f"{self._sql.feed_after} AND {condition} ORDER BY e.position LIMIT ?",
            (position, *listed, limit),
        )
        return self._items(up_to(size, rows, event_size))

    def feed_head(self) -> str:
        return feed_cursor(self.event_count(), self._epoch, self._last_mark())

    def epoch(self) -> str | None:
        return self._epoch

    def last_common_seq(self, session_id: str, epoch: str) -> int:
        session = self.session(session_id)
        end = self._end_of(epoch)
        if session is None or end is None:
            return 0
        if end >= NO_END:
            return session.last_seq
        number = self._first_row("SELECT number FROM sessions WHERE id = ?", session_id)[0]
        return self._first_after(number, session.last_seq, end) - 1

    def _end_of(self, epoch: str) -> int | None:
        return NO_END if epoch == self._epoch else end_of(self._execute, epoch)

    def event_count(self) -> int:
        # Every event has the next position, and the newest of a session is never deleted. So the last one is
        # the count. ``count(*)`` would read the whole table.
        return int(self._first_row("SELECT coalesce(max(position), 0) FROM events")[0])

    def newest_ids(self) -> list[str]:
        tables = ("sessions", "messages", "runs", "requests")
        rows = [self._first_row(f"SELECT max(id) FROM {table}") for table in tables]
        return [row[0] for row in rows if row[0] is not None]

    def attempts(self, run_id: str) -> list[Attempt]:
        rows = self._execute(
            f"SELECT {ATTEMPTS.columns} FROM attempts WHERE run_id = ? ORDER BY attempt", (run_id,)
        )
        return [ATTEMPTS.read(row) for row in rows]

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        row = self._first_row(
            f"SELECT {ATTEMPTS.columns} FROM attempts WHERE token_hash = ?", token_hash
        )
        return None if row is None else ATTEMPTS.read(row)

    def thread(self, session_id: str, provider: str) -> Thread | None:
        row = self._first_row(
            "SELECT thread_id, state FROM threads WHERE session_id = ? AND provider = ?",
            session_id,
            provider,
        )
        return None if row is None else Thread(row[0], json.loads(row[1]))

    def session_of_thread(self, thread_id: str) -> str | None:
        found: str | None
        query = "SELECT min(session_id) FROM threads WHERE thread_id = ?"
        (found,) = self._first_row(query, thread_id)
        return found

    def grants(self, session_id: str) -> list[Grant]:
        rows = self._execute(
            "SELECT principal, role FROM grants WHERE session_id = ? ORDER BY principal",
            (session_id,),
        )
        return [Grant(*row) for row in rows]

    def seen(self, reader: str, session_id: str) -> int:
        query = "SELECT seq FROM seen WHERE reader = ? AND session_id = ?"
        row = self._first_row(query, reader, session_id)
        return 0 if row is None else int(row[0])

    def role(self, session_id: str, principal: str) -> GrantRole | None:
        query = "SELECT role FROM grants WHERE session_id = ? AND principal = ?"
        row = self._first_row(query, session_id, principal)
        return None if row is None else row[0]

    def notice(self, notice_id: str) -> Notice | None:
        row = self._first_row(f"{_NOTICE} WHERE id = ?", notice_id)
        return None if row is None else NOTICES.read(row)

    def notices(
        self,
        *,
        principal: str | None = None,
        state: NoticeState | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Notice]:
        ordering = ORDERINGS[order]
        conditions, values = [ordering.after_key()], [ordering.start if after is None else after]
        if principal is not None:
            conditions.append("principal = ?")
            values.append(principal)
        if state is not None:
            conditions.append("state = ?" if principal is None else "+state = ?")
            values.append(state)
        where = " AND ".join(conditions)
        rows = self._execute(
            f"{_NOTICE} WHERE {where} ORDER BY id {ordering.direction} LIMIT ?", (*values, limit)
        )
        return [NOTICES.read(row) for row in up_to(size, rows)]

    def notices_about(self, subject: str) -> list[Notice]:
        rows = self._execute(f"{_NOTICE} WHERE subject = ? ORDER BY id", (subject,))
        return [NOTICES.read(row) for row in rows]

    def next_notice(self, now: datetime, *, excluding: Collection[str]) -> Notice | None:
        condition, listed = self._in_list("target", sorted(excluding))
        row = self._first_row(
            f"{_NOTICE} WHERE next_at IS NOT NULL AND next_at <= ? AND NOT {condition}"
            " ORDER BY deadline IS NULL, deadline, id LIMIT 1",
            format_time(now),
            *listed,
        )
        return None if row is None else NOTICES.read(row)

    def next_notice_at(self, *, excluding: Collection[str]) -> datetime | None:
        condition, listed = self._in_list("target", sorted(excluding))
        row = self._first_row(
            f"SELECT next_at FROM notices WHERE next_at IS NOT NULL AND NOT {condition}"
            " ORDER BY next_at LIMIT 1",
            *listed,
        )
        return None if row is None else parse_time(row[0])

    def push_subscription(self, subscription_id: str) -> PushSubscription | None:
        row = self._first_row(f"{_SUBSCRIPTION} WHERE id = ?", subscription_id)
        return None if row is None else SUBSCRIPTIONS.read(row)

    def push_subscription_of(self, endpoint: str) -> PushSubscription | None:
        row = self._first_row(f"{_SUBSCRIPTION} WHERE endpoint = ?", endpoint)
        return None if row is None else SUBSCRIPTIONS.read(row)

    def push_subscriptions(
        self,
        *,
        principal: str | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[PushSubscription]:
        ordering = ORDERINGS[order]
        start = ordering.start if after is None else after
        where, values = where_all({"principal = ?": principal, ordering.after_key(): start})
        rows = self._execute(
            f"{_SUBSCRIPTION}{where} ORDER BY id {ordering.direction} LIMIT ?", (*values, limit)
        )
        return [SUBSCRIPTIONS.read(row) for row in up_to(size, rows)]

    def notice_cursor(self) -> str | None:
        row = self._first_row("SELECT cursor FROM notice_cursor WHERE id = 1")
        return None if row is None else row[0]

    def token(self, token_id: str) -> AccessToken | None:
        row = self._first_row(f"SELECT {TOKENS.columns} FROM access_tokens WHERE id = ?", token_id)
        return None if row is None else TOKENS.read(row)

    def token_of_hash(self, token_hash: str) -> AccessToken | None:
        query = f"SELECT {TOKENS.columns} FROM access_tokens WHERE token_hash = ?"
        row = self._first_row(query, token_hash)
        return None if row is None else TOKENS.read(row)

    def tokens(
        self,
        *,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AccessToken]:
        ordering = ORDERINGS[order]
        rows = self._execute(
            f"SELECT {TOKENS.columns} FROM access_tokens WHERE {ordering.after_key()}"
            f" ORDER BY id {ordering.direction} LIMIT ?",
            (ordering.start if after is None else after, limit),
        )
        return [TOKENS.read(row) for row in up_to(size, rows)]

    def audit(
        self,
        *,
        order: ListOrder = "oldest",
        after: int | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AuditEntry]:
        ordering = ORDERINGS[order]
        start = 2**63 - 1 if ordering.newest else 0
        rows = self._execute(
            f"SELECT {AUDIT.columns} FROM audit WHERE {ordering.after_key('seq')}"
            f" ORDER BY seq {ordering.direction} LIMIT ?",
            (start if after is None else after, limit),
        )
        return [AUDIT.read(row) for row in up_to(size, rows)]

    def last_audit(self) -> AuditEntry | None:
        row = self._first_row(
            f"SELECT {AUDIT.columns} FROM audit WHERE seq = (SELECT max(seq) FROM audit)"
        )
        return None if row is None else AUDIT.read(row)

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        row = self._first_row(
            f"SELECT {RECORDS.columns} FROM idempotency WHERE caller = ? AND call = ? AND key = ?",
            caller,
            call,
            key,
        )
        return None if row is None else RECORDS.read(row)

    def oldest_record_at(self) -> datetime | None:
        row = self._first_row("SELECT created_at FROM idempotency ORDER BY number LIMIT 1")
        return None if row is None else parse_time(row[0])

    def ended_callers(self, *, limit: int) -> list[str]:
        return [caller for (caller,) in self._execute(_ENDED_CALLERS, (limit,))]


def up_to(
    size: int | None, rows: Iterable[Any], size_of: Callable[[Row], int] = text_size
) -> Iterable[Any]:
    """Return rows until their texts have ``size`` characters in total. Later rows are not read."""
    return rows if size is None else _until_full(size, rows, size_of)


def _until_full(size: int, rows: Iterable[Any], size_of: Callable[[Row], int]) -> Iterator[Any]:
    for row in rows:
        yield row
        size -= size_of(row)
        if size <= 0:
            return

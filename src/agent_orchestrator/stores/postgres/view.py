"""Queries of a PostgreSQL database."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from agent_orchestrator.domain.daemons import DaemonProfile, DaemonRecord, HostRecord
from agent_orchestrator.domain.model import MANUAL, Message, Run, RunResult
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.daemons import HEARTBEAT_S, lease
from agent_orchestrator.stores.postgres.search import WORDS
from agent_orchestrator.stores.postgres.values import MARK_SQL
from agent_orchestrator.stores.sql.dialect import Dialect
from agent_orchestrator.stores.sql.listing import Ordering, Statement, where_all
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.rows import MESSAGES, text_from, text_size
from agent_orchestrator.stores.sql.tables import Row
from agent_orchestrator.stores.sql.view import MESSAGE, SqlView, Statements, up_to

_LONG_RESULT: Final = "(SELECT {} FROM long_results WHERE run_id = runs.id)"
_LONG_RESULT_BYTES: Final = _LONG_RESULT.format("octet_length(long_results.result)")


def _text_or_json(column: str) -> str:
    """Return the expression for a text as JSON. Marked texts (see :mod:`.values`) are stored as JSON."""
    return (
        f"CASE WHEN left({column}, 1) = {MARK_SQL} THEN substr({column}, 2)::json"
        f" ELSE to_json({column}) END"
    )


def _cut(column: str) -> str:
    """Return the expression for the first characters of a text. A marked text is not cut, because it is JSON."""
    return f"CASE WHEN left({column}, 1) = {MARK_SQL} THEN {column} ELSE left({column}, ?1::integer) END"


_CUT_LONG_RESULT: Final = (
    f"{MARK_SQL} || 'x' || encode(substr(long_results.result, 1, 4 * ?1::integer), 'hex')"
)

POSTGRES: Final = Dialect(
    threads=(
        f"coalesce((SELECT json_object_agg(provider, {_text_or_json('thread_id')})::text FROM threads"
        " WHERE session_id = sessions.id), '{}')"
    ),
    result=f"coalesce(result, {MARK_SQL} || {_LONG_RESULT_BYTES})",
    result_size=f"coalesce(octet_length(result), {_LONG_RESULT_BYTES}, 0)",
    cut_result=f"coalesce({_cut('result')}, {_LONG_RESULT.format(_CUT_LONG_RESULT)})",
    cut_error=_cut("error_message"),
    event_data=f"coalesce({MARK_SQL} || octet_length(e.long_data), e.data)",
)

_TEXT_BYTES: Final[Mapping[str, str]] = {
    "messages": "octet_length(text)",
    "runs": "coalesce(octet_length(result), 0) + coalesce(octet_length(error_message), 0)",
    "requests": "octet_length(text) + octet_length(detail) + octet_length(options)",
    "sessions": "octet_length(metadata)",
}
"""Expressions for the bytes of a row's large texts, by table. The database does not read a text for that."""

_BOUNDS: Final = """
    SELECT count(*), coalesce(min(position), 1), coalesce(max(position), 0), (SELECT position FROM head),
        (SELECT coalesce(sum(count), 0)::bigint FROM pruned_logs)
    FROM events"""

_LOST_RUNS: Final = f""" WHERE status IN ('running', 'waiting') AND provider <> '{MANUAL}'
    AND worker_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM daemons WHERE id = split_part(worker_id, '/', 1) AND ended_at IS NULL)
    ORDER BY id"""

_MAX_RUNS: Final = 100
"""Maximum number of newest runs of a session among which its last attempt is searched. The newest run need not have
it, because interrupting messages start before older ones."""

_IS_FREE: Final = f"""NOT EXISTS (
        SELECT 1 FROM threads t CROSS JOIN LATERAL (
            SELECT a.worker_id FROM (
                SELECT id, provider FROM runs
                WHERE session_id = t.session_id AND (status <> 'queued' OR attempt > 1)
                ORDER BY id DESC LIMIT {_MAX_RUNS}) AS o
            CROSS JOIN LATERAL (
                SELECT worker_id, provider, started_at, attempt FROM attempts WHERE run_id = o.id OFFSET 0) AS a
            WHERE t.provider IN (o.provider, a.provider)
            ORDER BY a.started_at DESC, a.attempt DESC LIMIT 1) AS last
        JOIN daemons d ON d.id = split_part(last.worker_id, '/', 1)
        WHERE t.session_id = r.session_id AND t.provider = r.provider
            AND d.ended_at IS NULL AND d.id <> ?)"""
"""The condition that no other daemon at work made the last attempt of a run ``r``'s thread. Its agent may keep the
conversation open, and would not see what the agent of this daemon adds. ``OFFSET 0`` makes PostgreSQL read only the
attempts of the selected runs."""

_MAX_LOST_DAEMONS: Final = 100
"""Maximum number of lost daemons in a list."""

_LISTED_HOURS: Final = 24
"""Hours for which a lost daemon is listed."""

_AWAY_AFTER_S: Final = 2 * HEARTBEAT_S
"""Seconds without a heartbeat after which a daemon counts as away."""

_MICROSECONDS: Final = "(extract(epoch FROM {}) * 1000000)::bigint"
_DAEMONS: Final = f"""
    SELECT id, host, pid, {_MICROSECONDS.format("started_at")}, {_MICROSECONDS.format("expires_at")},
        version, url, capacity, providers, serves, labels, draining, spawn_directory,
        (SELECT count(*) FROM runs WHERE status IN ('running', 'waiting')
            AND split_part(worker_id, '/', 1) = daemons.id), clock_offset_s,
        CASE WHEN {{is_away}} THEN {_MICROSECONDS.format("expires_at - ?1::text::interval")} END
    FROM daemons WHERE {{among}}"""
_ACTIVE_DAEMONS: Final = _DAEMONS.format(
    is_away="expires_at < clock_timestamp() + ?1::text::interval - ?2::text::interval",
    among="ended_at IS NULL ORDER BY started_at, id",
)
_LOST_DAEMONS: Final = _DAEMONS.format(
    is_away="true",
    among=f"""is_lost AND ended_at > clock_timestamp() - ?2::text::interval AND version IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM daemons AS later WHERE later.host = daemons.host
            AND later.url IS NOT DISTINCT FROM daemons.url AND later.started_at > daemons.started_at)
    ORDER BY ended_at DESC LIMIT {_MAX_LOST_DAEMONS}""",
)
_HOSTS: Final = f"""
    SELECT serves, CASE WHEN is_away THEN {_MICROSECONDS.format("ended_at")} END, CASE WHEN is_away THEN
        (SELECT count(*) FROM runs WHERE host = serves AND status = 'queued' AND provider <> '{MANUAL}')
        + (SELECT count(*) FROM runs WHERE host = serves AND status IN ('running', 'waiting')
            AND provider <> '{MANUAL}' AND worker_id IS NOT NULL) ELSE 0 END
    FROM (SELECT serves, bool_and(ended_at IS NOT NULL) AS is_away, max(ended_at) AS ended_at
        FROM daemons WHERE serves IS NOT NULL GROUP BY serves) AS hosts ORDER BY serves"""


def _daemon_of(row: Row) -> DaemonRecord:
    daemon_id, node, pid, started, expires, version, url, capacity, providers, *more = row
    host, labels, draining, directory, active, offset_s, away_since = more
    profile = None
    if providers is not None:
        profile = DaemonProfile(
            version,
            url,
            capacity,
            tuple(json.loads(providers)),
            host,
            tuple(json.loads(labels or "[]")),
            bool(draining),
            directory,
        )
    times = (_moment(started), _moment(expires))
    away = None if away_since is None else _moment(away_since)
    return DaemonRecord(daemon_id, node, pid, *times, profile, active, offset_s, away)


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)


_BYTES_PER_CHARACTER: Final = 4


class PostgresView(SqlView):
    """Queries through one connection. See :class:`~agent_orchestrator.stores.sql.view.SqlView`."""

    _sql = Statements.of(POSTGRES)
    _is_free = _IS_FREE
    _is_of_host = "r.host = ?"
    _words = WORDS

    def __init__(
        self,
        connection: Connection,
        epoch: str | None = None,
        long_values: LongValues | None = None,
    ) -> None:
        super().__init__(connection.execute, epoch, long_values)
        self._connection = connection

    def _read_long_data(self, position: int) -> bytes:
        data: bytes = self._first_row("SELECT long_data FROM events WHERE position = ?", position)[
            0
        ]
        return data

    def _read_long_result(self, run_id: str) -> RunResult:
        row = self._first_row("SELECT result FROM long_results WHERE run_id = ?", run_id)
        return RunResult(text_from(row[0]))

    def _in_list(self, column: str, values: Sequence[Any]) -> Statement:
        return f"{column} = ANY(?)", (list(values),)

    def _limited(self, limit: int) -> tuple[str, tuple[int, ...]]:
        """Return a constant, of which there are few: a power of two.

        For any limit at all, the server takes a plan to be much more expensive than one for the given limit. So it
        would plan each execution, which takes several times as long as the execution.
        """
        return str(1 << (limit - 1).bit_length()), ()

    def _rows_by_id(
        self,
        select: str,
        ids: Sequence[str],
        size: int | None,
        size_of: Callable[[Row], int],
    ) -> Iterable[Any]:
        """Return the rows. The query itself is limited by the size, because a client receives all rows of a query."""
        if not ids:
            return ()
        if size is None:
            rows = self._execute(f"{select} WHERE id = ANY(?)", (list(ids),))
            by_id = {row[0]: row for row in rows}  # the id is the first column
            return [by_id[row_id] for row_id in ids]
        table = select.rpartition(" ")[2]
        # The query counts bytes, so it may return more rows than needed. They are then cut by characters.
        query = f"""{select} WHERE id IN (
            SELECT id FROM (
                SELECT id, sum({_TEXT_BYTES[table]}) OVER (ORDER BY array_position(?1::text[], id)
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                FROM {table} WHERE id = ANY(?1::text[])) AS sized
            WHERE coalesce(before, 0) < ?2) ORDER BY array_position(?1::text[], id)"""
        rows = self._execute(query, (list(ids), size * _BYTES_PER_CHARACTER))
        return up_to(size, rows, size_of)

    def _messages(self, where: str, values: Sequence[Any], size: int | None) -> list[Message]:
        if size is None:
            return super()._messages(where, values, size)
        ids = [row[0] for row in self._execute(f"SELECT id FROM messages{where}", values)]
        rows = self._rows_by_id(MESSAGE, ids, size, text_size)
        return [MESSAGES.read(row) for row in rows]

    def log_bounds(self) -> tuple[int, int, int, int, int]:
        """Return the number of events, the first and last position, the last position that was assigned, and
        the number of deleted events.

        Without events, the first position is 1 and the last is 0.
        """
        bounds: tuple[int, int, int, int, int] = self._first_row(_BOUNDS)
        return bounds

    def lost_runs(self, instance: str) -> list[Run]:  # noqa: ARG002 - its row shows that it has not ended
        rows = self._execute(self._sql.run + _LOST_RUNS, ())
        return [self._run(row) for row in rows]

    def daemons(self) -> list[DaemonRecord]:
        values = (lease(), f"{_AWAY_AFTER_S} seconds")
        return [_daemon_of(row) for row in self._execute(_ACTIVE_DAEMONS, values)]

    def lost_daemons(self) -> list[DaemonRecord]:
        values = (lease(), f"{_LISTED_HOURS} hours")
        return [_daemon_of(row) for row in self._execute(_LOST_DAEMONS, values)]

    def hosts(self) -> list[HostRecord]:
        return [
            HostRecord(name, None if since is None else _moment(since), waiting)
            for name, since, waiting in self._execute(_HOSTS, ())
        ]

    def _rows_of_sessions(
        self,
        table: str,
        sessions: Statement,
        ordering: Ordering,
        after: str | None,
        conditions: Mapping[str, Any],
    ) -> Statement:
        source, source_values = sessions
        text, values = where_all({ordering.after_key(): after, **conditions})
        condition = text.replace(" WHERE ", " AND ", 1)
        if ordering.index_condition and after is None:
            condition = f" AND {ordering.index_condition}{condition}"
        limit = len(source_values) + len(values) + 1
        sql = (
            f"SELECT found.key FROM ({source}) AS visible CROSS JOIN LATERAL ("
            f" SELECT {ordering.key} AS key FROM {table} WHERE session_id = visible.session_id{condition}"
            f" ORDER BY {ordering.key} {ordering.direction} LIMIT ?{limit}) AS found"
            f" ORDER BY 1 {ordering.direction} LIMIT ?{limit}"
        )
        return sql, (*source_values, *values)

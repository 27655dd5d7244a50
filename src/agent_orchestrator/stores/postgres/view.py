"""Queries of a PostgreSQL database."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from agent_orchestrator.domain.model import Message, RunResult
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.values import MARK_SQL
from agent_orchestrator.stores.sql.dialect import Dialect
from agent_orchestrator.stores.sql.listing import Ordering, Statement, where_all
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.rows import MESSAGES, text_from, text_size
from agent_orchestrator.stores.sql.tables import Row
from agent_orchestrator.stores.sql.view import MESSAGE, SqlView, Statements, up_to

_LONG: Final = "(SELECT {} FROM long_results WHERE run_id = runs.id)"
_LONG_SIZE: Final = _LONG.format("octet_length(long_results.result)")


def _text_or_json(column: str) -> str:
    """Return a column of texts as JSON: a marked one has it behind the mark."""
    return (
        f"CASE WHEN left({column}, 1) = {MARK_SQL} THEN substr({column}, 2)::json"
        f" ELSE to_json({column}) END"
    )


def _cut(column: str) -> str:
    """Return the first characters of a column; all of a marked text, which cannot be cut."""
    return f"CASE WHEN left({column}, 1) = {MARK_SQL} THEN {column} ELSE left({column}, ?1::integer) END"


_CUT_BYTES: Final = (
    f"{MARK_SQL} || 'x' || encode(substr(long_results.result, 1, 4 * ?1::integer), 'hex')"
)

POSTGRES: Final = Dialect(
    threads=(
        f"coalesce((SELECT json_object_agg(provider, {_text_or_json('thread_id')})::text FROM threads"
        " WHERE session_id = sessions.id), '{}')"
    ),
    result=f"coalesce(result, {MARK_SQL} || {_LONG_SIZE})",
    result_size=f"coalesce(octet_length(result), {_LONG_SIZE}, 0)",
    cut_result=f"coalesce({_cut('result')}, {_LONG.format(_CUT_BYTES)})",
    cut_error=_cut("error_message"),
    event_data=f"coalesce({MARK_SQL} || octet_length(e.long_data), e.data)",
)

_LARGE_COLUMNS: Final[Mapping[str, str]] = {
    "messages": "octet_length(text)",
    "runs": "coalesce(octet_length(result), 0) + coalesce(octet_length(error_message), 0)",
    "requests": "octet_length(text) + octet_length(detail) + octet_length(options)",
    "sessions": "octet_length(metadata)",
}
"""The bytes of the large texts in a row, by table. None of them is read to know its size."""

_BOUNDS: Final = """
    SELECT count(*), coalesce(min(position), 1), coalesce(max(position), 0), (SELECT position FROM head)
    FROM events"""

_BYTES_PER_CHARACTER: Final = 4


class PostgresView(SqlView):
    """Queries through one connection.

    The parameters are those of :class:`~agent_orchestrator.stores.sql.view.SqlView`.
    """

    _sql = Statements.of(POSTGRES)

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

    def _among(self, column: str, values: Sequence[Any]) -> Statement:
        return f"{column} = ANY(?)", (list(values),)

    def _rows_by_id(
        self,
        select: str,
        ids: Sequence[str],
        size: int | None,
        size_of: Callable[[Row], int],
    ) -> Iterable[Any]:
        """Return the rows. A client receives all rows of a query, so the query itself ends at the size."""
        if not ids:
            return ()
        if size is None:
            rows = self._execute(f"{select} WHERE id = ANY(?)", (list(ids),))
            by_id = {row[0]: row for row in rows}  # the id is the first column of each table
            return [by_id[row_id] for row_id in ids]
        table = select.rpartition(" ")[2]
        # Not fewer rows than there are characters for: those are counted when the row is here.
        fitting = f"""{select} WHERE id IN (
            SELECT id FROM (
                SELECT id, sum({_LARGE_COLUMNS[table]}) OVER (ORDER BY array_position(?1::text[], id)
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                FROM {table} WHERE id = ANY(?1::text[])) AS sized
            WHERE coalesce(before, 0) < ?2) ORDER BY array_position(?1::text[], id)"""
        rows = self._execute(fitting, (list(ids), size * _BYTES_PER_CHARACTER))
        return up_to(size, rows, size_of)

    def _messages(self, where: str, values: Sequence[Any], size: int | None) -> list[Message]:
        if size is None:
            return super()._messages(where, values, size)
        ids = [row[0] for row in self._execute(f"SELECT id FROM messages{where}", values)]
        rows = self._rows_by_id(MESSAGE, ids, size, text_size)
        return [MESSAGES.read(row) for row in rows]

    def log_bounds(self) -> tuple[int, int, int, int]:
        """Return the number of events, the first and last position, and the last one that was given.

        The first is 1 and the last is 0 if there are no events.
        """
        bounds: tuple[int, int, int, int] = self._first_row(_BOUNDS)
        return bounds

    def _rows_of_sessions(
        self,
        table: str,
        sessions: Statement,
        ordering: Ordering,
        after: str | None,
        conditions: Mapping[str, Any],
    ) -> Statement:
        source, source_values = sessions
        text, values = where_all({ordering.beyond(): after, **conditions})
        condition = text.replace(" WHERE ", " AND ", 1)
        if ordering.condition and after is None:
            condition = f" AND {ordering.condition}{condition}"
        limit = len(source_values) + len(values) + 1
        sql = (
            f"SELECT found.key FROM ({source}) AS place CROSS JOIN LATERAL ("
            f" SELECT {ordering.key} AS key FROM {table} WHERE session_id = place.session_id{condition}"
            f" ORDER BY {ordering.key} {ordering.direction} LIMIT ?{limit}) AS found"
            f" ORDER BY 1 {ordering.direction} LIMIT ?{limit}"
        )
        return sql, (*source_values, *values)

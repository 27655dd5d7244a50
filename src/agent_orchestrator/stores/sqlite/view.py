"""Queries of an SQLite database."""

from collections.abc import Mapping
from typing import Any, Final

import apsw

from agent_orchestrator.domain.model import RunResult
from agent_orchestrator.stores.sql.dialect import Dialect
from agent_orchestrator.stores.sql.listing import Ordering, Statement
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.view import SqlView, Statements
from agent_orchestrator.stores.sqlite.blobs import read_long_data, read_long_result
from agent_orchestrator.stores.sqlite.listing import merged
from agent_orchestrator.stores.sqlite.search import WORDS
from agent_orchestrator.wire.strict_json import SLICE_SIZE

_LONG: Final = "(SELECT {} FROM long_results WHERE run_id = runs.id)"
_LONG_SIZE: Final = _LONG.format("octet_length(long_results.result)")

SQLITE: Final = Dialect(
    threads="(SELECT json_group_object(provider, thread_id) FROM threads WHERE session_id = sessions.id)",
    result=f"coalesce(result, {_LONG_SIZE})",
    result_size=f"coalesce(octet_length(result), {_LONG_SIZE}, 0)",
    cut_result=(
        f"coalesce(substr(result, 1, ?1), {_LONG.format('substr(long_results.result, 1, 4 * ?1)')})"
    ),
    cut_error="substr(error_message, 1, ?1)",
    # Data that was written before there were blobs can be a long text.
    event_data=(
        f"coalesce(octet_length(e.long_data), iif(octet_length(e.data) > {SLICE_SIZE},"
        " octet_length(e.data), e.data))"
    ),
)


class SqliteView(SqlView):
    """Queries through one connection.

    The parameters are those of :class:`~agent_orchestrator.stores.sql.view.SqlView`.
    """

    _sql = Statements.of(SQLITE)
    _words = WORDS

    def __init__(
        self,
        connection: apsw.Connection,
        epoch: str | None = None,
        long_values: LongValues | None = None,
    ) -> None:
        super().__init__(connection.execute, epoch, long_values)
        self._connection = connection

    def _read_long_data(self, position: int) -> bytes:
        return read_long_data(self._connection, position)

    def _read_long_result(self, run_id: str) -> RunResult:
        return read_long_result(self._connection, run_id)

    def _rows_of_sessions(
        self,
        table: str,
        sessions: Statement,
        ordering: Ordering,
        after: str | None,
        conditions: Mapping[str, Any],
    ) -> Statement:
        return merged(table, sessions, ordering, after, conditions)

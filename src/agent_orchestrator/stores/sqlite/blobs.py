"""Long values, which are read and written as blobs: a query would hold a second copy."""

from contextlib import closing

import apsw

from agent_orchestrator.domain.model import RunResult
from agent_orchestrator.stores.sql.rows import text_from


def read_long_data(connection: apsw.Connection, position: int) -> bytes:
    """Return the long data of the event at a position."""
    query = "SELECT octet_length(data) FROM events WHERE position = ?"
    [(size,)] = connection.execute(query, (position,)).fetchall()
    return _read_blob(connection, "events", "data" if size else "long_data", position)


def read_long_result(connection: apsw.Connection, run_id: str) -> RunResult:
    """Return the long result of a run."""
    query = "SELECT number FROM long_results WHERE run_id = ?"
    [(number,)] = connection.execute(query, (run_id,)).fetchall()
    assert isinstance(number, int)
    return RunResult(text_from(_read_blob(connection, "long_results", "result", number)))


def _read_blob(connection: apsw.Connection, table: str, column: str, row: int) -> bytes:
    with closing(connection.blob_open("main", table, column, row, writeable=False)) as blob:
        return blob.read()

"""Transactions of an SQLite database."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import apsw

from agent_orchestrator.domain.access import EVERYTHING, Visibility
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.search import FoundText, Search
from agent_orchestrator.long_work import short_turns
from agent_orchestrator.ports.changes import PastEvent
from agent_orchestrator.stores.sql.rows import slices
from agent_orchestrator.stores.sql.search import Entry
from agent_orchestrator.stores.sql.transaction import SqlTransaction
from agent_orchestrator.stores.sqlite.search import WORDS
from agent_orchestrator.stores.sqlite.view import SqliteView

_ADVANCE: Final = """
    UPDATE sessions SET last_seq = last_seq + ?1, updated_at = ?2,
        last_position = (SELECT coalesce(max(position), 0) FROM events) + ?1
    WHERE id = ?3 RETURNING number, last_seq, last_position, owner"""
_ADD_IMAGE: Final = "INSERT INTO images (digest, data) VALUES (?, zeroblob(?)) RETURNING number"
_PUT_LONG_RESULT: Final = (
    "REPLACE INTO long_results (run_id, result) VALUES (?, zeroblob(?)) RETURNING number"
)


class SqliteTransaction(SqliteView, SqlTransaction):
    """A transaction on the writing connection, in a savepoint managed by the writer.

    :param unindexed: takes the words to add to the index before the commit. Each statement with a trigger makes FTS5
        write what it was given so far, which costs several times as much as the words of a whole batch.
    """

    def __init__(
        self, connection: apsw.Connection, epoch: str | None, unindexed: list[Entry]
    ) -> None:
        super().__init__(connection, epoch)
        self._unindexed = unindexed

    def _add_words(self, entry: Entry) -> None:
        self._unindexed.append(entry)

    def search(
        self,
        search: Search,
        *,
        within: Visibility = EVERYTHING,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> tuple[list[FoundText], str | None]:
        add_words(self._connection, self._unindexed)
        return super().search(search, within=within, after=after, limit=limit, size=size)

    def add_past(
        self,
        session_id: str,
        events: Sequence[PastEvent],
        *,
        oldest_cursor: int = 0,
        digest: str = "",
    ) -> None:
        super().add_past(session_id, events, oldest_cursor=oldest_cursor, digest=digest)
        add_words(self._connection, self._unindexed)  # those of a whole file would fill the memory

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        try:
            self._execute(sql, values)
        except apsw.ConstraintError as error:
            # apsw sets the code on the instance, which its type stubs omit.
            if error.extendedresult == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:  # type: ignore[attr-defined]
                raise NotFound("the session or run that this refers to does not exist") from error
            raise Conflict(f"this conflicts with a stored row: {error}") from error

    def _changed_rows(self, sql: str, values: Sequence[Any]) -> int:
        self._write(sql, values)
        return self._connection.changes()

    def _advance(self, session_id: str, count: int, when: str) -> tuple[int, int, int, str] | None:
        row: tuple[int, int, int, str] | None = self._first_row(_ADVANCE, count, when, session_id)
        return row

    def _blob(self, data: bytes) -> Any:
        return apsw.zeroblob(len(data))

    def _fill(self, table: str, column: str, row: int, data: str | bytes) -> None:
        blob_open = self._connection.blob_open
        with short_turns(), blob_open("main", table, column, row, True) as blob:  # noqa: FBT003
            for piece in slices(data):
                blob.write(piece)

    def _add_image_data(self, digest: str, data: bytes) -> None:
        number = self._first_row(_ADD_IMAGE, digest, len(data))[0]
        self._fill("images", "data", number, data)

    def _put_long_result(self, run_id: str, text: str) -> None:
        size = sum(len(piece) for piece in slices(text))
        number = self._first_row(_PUT_LONG_RESULT, run_id, size)[0]
        self._fill("long_results", "result", number, text)


def add_words(connection: apsw.Connection, entries: list[Entry]) -> None:
    """Add the words of entries to the index, and clear the list."""
    if entries:
        entries.sort(key=attrgetter("position"))  # otherwise FTS5 writes before each smaller one
        connection.executemany(WORDS.add, [(entry.position, entry.document) for entry in entries])
        entries.clear()

"""The rows that the changes of one transaction have read or written, so that each is read once.

The transaction runs alone, so no other one changes them meanwhile.
"""

from collections.abc import Iterable
from typing import Any, Final

from attrs import define, field

from agent_orchestrator.stores.sql.rows import ATTEMPTS, SESSIONS
from agent_orchestrator.stores.sql.tables import Row

_OWNER: Final = SESSIONS.columns.split(", ").index("owner")
_UPDATED_AT: Final = SESSIONS.columns.split(", ").index("updated_at")
_LAST_SEQ: Final = len(SESSIONS.columns.split(", "))
_LAST_LINE: Final = _LAST_SEQ + 1
_NUMBER: Final = _LAST_LINE + 3
_RUN_ID: Final = ATTEMPTS.columns.split(", ").index("run_id")
_ATTEMPT: Final = ATTEMPTS.columns.split(", ").index("attempt")
_TOKEN_HASH: Final = ATTEMPTS.columns.split(", ").index("token_hash")


MAX_RUNS: Final = 1_000
"""Runs whose rows are kept. An import may add 200,000 in one transaction, with long texts."""

RecordKey = tuple[str, str, str]
"""The caller, the call and the key of an idempotency record."""


@define
class RowCache:
    """Rows by the id of a session, run or token, and of the last idempotency record of each caller."""

    sessions: dict[str, list[Any]] = field(factory=dict)
    """Rows with the columns of a session, the computed ones, and its number."""
    runs: dict[str, Row] = field(factory=dict)
    attempts: dict[str, list[Row]] = field(factory=dict)
    records: dict[RecordKey, Row | None] = field(factory=dict)
    """None if there is no such record."""
    last_records: dict[str, tuple[int, int]] = field(factory=dict)
    tokens: dict[str, Row] = field(factory=dict)
    max_queued: int | None = None
    """The number of queued runs for workers, or a larger one; None if it is not known."""

    def put_session(self, values: Row) -> None:
        """Note the values that a session's row was changed to."""
        if (row := self.sessions.get(values[0])) is not None:
            row[: len(values)] = values

    def advance(self, row: list[Any], count: int, when: str) -> tuple[int, int, str]:
        """Note that events were added to a session. Return its number, the last ``seq``, and its owner."""
        row[_LAST_SEQ] += count
        row[_UPDATED_AT] = when
        return row[_NUMBER], row[_LAST_SEQ], row[_OWNER]

    def put_last_line(self, session_id: str, line: str) -> None:
        """Note the last line of a session."""
        if (row := self.sessions.get(session_id)) is not None:
            row[_LAST_LINE] = line

    def put_run(self, values: Row, *, is_long: bool) -> None:
        """Note the values of a run that was added or changed.

        :param is_long: whether its result is so long that it is stored in another table.
        """
        if max(len(self.runs), len(self.attempts)) >= MAX_RUNS:
            self.runs.clear()  # the transaction has them, and reads those that it needs again
            self.attempts.clear()
        if is_long:
            self.runs.pop(values[0], None)
        else:
            self.runs[values[0]] = values

    def add_sessions(self, rows: Iterable[Row]) -> None:
        """Note sessions, except those that are known: their rows have later values."""
        for row in rows:
            self.sessions.setdefault(row[0], list(row))

    def add_runs(self, rows: Iterable[Row]) -> None:
        """Note runs, except those that are known."""
        for row in rows:
            self.runs.setdefault(row[0], row)

    def add_attempts(self, run_ids: Iterable[str], rows: Iterable[Row]) -> None:
        """Note all attempts of some runs, in order. Those of other runs are ignored."""
        found: dict[str, list[Row]] = {
            run_id: [] for run_id in run_ids if run_id not in self.attempts
        }
        for row in rows:
            if row[_RUN_ID] in found:
                found[row[_RUN_ID]].append(row)
        self.attempts.update(found)

    def put_attempt(self, values: Row) -> None:
        """Note the values of an attempt that was added or changed. Its token hash never changes."""
        rows = self.attempts.get(values[0])
        if rows is None:
            return
        for place, row in enumerate(rows):
            if row[_ATTEMPT] == values[_ATTEMPT]:
                rows[place] = (
                    *values[:_TOKEN_HASH],
                    row[_TOKEN_HASH],
                    *values[_TOKEN_HASH + 1 :],
                )
                return
        rows.append(values)
        rows.sort(key=lambda row: row[_ATTEMPT])

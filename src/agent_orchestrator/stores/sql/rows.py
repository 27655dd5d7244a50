"""The tables of the model, and conversions of rows that the model does not determine."""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.model import (
    Attempt,
    Event,
    Message,
    Option,
    Request,
    Run,
    RunResult,
    Session,
)
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.sql.tables import Cell, Row, always_json, table
from agent_orchestrator.wire.codec import parse_time
from agent_orchestrator.wire.strict_json import SLICE_SIZE


def is_long_result(text: str) -> bool:
    """Return whether a result is stored in the table of long results."""
    return len(text) > SLICE_SIZE


def slices(text: str | bytes) -> Iterator[bytes]:
    """Yield a long text in UTF-8, in slices.

    :raises UnicodeEncodeError: if it contains a lone surrogate.
    """
    for start in range(0, len(text), SLICE_SIZE):
        piece = text[start : start + SLICE_SIZE]
        yield piece.encode() if isinstance(piece, str) else piece


def text_from(cell: bytes) -> str:
    """Return the text of a cell with UTF-8 bytes."""
    decode = getincrementaldecoder("utf-8")("replace").decode  # a slice may split a character
    return "".join(
        decode(cell[start : start + SLICE_SIZE]) for start in range(0, len(cell), SLICE_SIZE)
    )


def _result_cell(result: RunResult) -> str | None:
    return None if is_long_result(result.text) else result.text


LONG_RESULT: Final = RunResult("")
"""Placeholder for a long result, which is read separately."""


def _result_from(cell: str | bytes | int) -> RunResult:
    if isinstance(cell, int):
        return LONG_RESULT
    return RunResult(cell if isinstance(cell, str) else text_from(cell))


_OTHER_NAMES: Final = (
    "is_steering=steers",
    "delivered_attempt=given_in",
    "priority=interrupts",
    "human_at=people_at",
    "process_start_id=pid_birth",
)
_NAMES: Final = dict(pair.split("=") for pair in _OTHER_NAMES)
"""The columns whose names differ from their fields', by field. Fields were renamed, columns were not."""

SESSIONS: Final = table(
    Session,
    read_only={
        "last_seq": Cell(),
        "last_line": Cell(),
        "threads": Cell(read=json.loads),
        "oldest_cursor": Cell(),
    },
)
MESSAGES: Final = table(Message, spread=("source",), names=_NAMES)
RUNS: Final = table(
    Run, spread=("error",), cells={"result": Cell(_result_cell, _result_from)}, names=_NAMES
)
"""Long results are in a separate table."""
ATTEMPTS: Final = table(Attempt, names=_NAMES)
RECORDS: Final = table(IdempotencyRecord)
TOKENS: Final = table(AccessToken)
AUDIT: Final = table(AuditEntry)
NOTICES: Final = table(Notice)
SUBSCRIPTIONS: Final = table(PushSubscription)
REQUESTS: Final = table(
    Request,
    cells={"detail": always_json(dict), "options": always_json(tuple[Option, ...])},
    names=_NAMES,
)

_RESULT: Final = RUNS.columns.split(", ").index("result")


def run_size(row: Row) -> int:
    """Return the size of the texts of a run, from a row of :data:`RUNS` with the size of a long result."""
    result = row[_RESULT]
    return text_size(row) + (result if type(result) is int else 0)


def text_size(row: Row) -> int:
    """Return the size of the texts in a row."""
    return sum(len(cell) for cell in row if type(cell) is str or type(cell) is bytes)


def event_columns(data: str) -> str:
    """Return the columns of ``events e``.

    :param data: the expression of the data; for long data, it returns the size in bytes instead.
    """
    return f"e.seq, e.run_id, e.attempt, e.event_type, e.created_at, e.position, {data}"


def event_size(row: Row) -> int:
    """Return the size of the data of an event, from a row that begins with :func:`event_columns`."""
    data = row[6]
    return data if type(data) is int else len(data)


def event_from(row: Row, session_id: str, long_data: Callable[[int], Mapping[str, Any]]) -> Event:
    """Return the event in a row that begins with :func:`event_columns`.

    :param long_data: returns the long data of the event at a position.
    """
    seq, run_id, attempt, event_type, created_at, position, data, *_ = row
    return Event(
        seq=seq,
        session_id=session_id,
        run_id=run_id,
        attempt=attempt,
        event_type=event_type,
        data=json.loads(data) if type(data) is str else long_data(position),
        created_at=parse_time(created_at),
    )

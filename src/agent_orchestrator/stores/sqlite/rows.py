"""The tables of the model, and conversions of rows that the model does not determine."""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Final

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.model import (
    Attempt,
    Event,
    Message,
    Request,
    Run,
    RunResult,
    Session,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports import IdempotencyRecord
from agent_orchestrator.stores.sqlite.tables import Cell, Row, always_json, table
from agent_orchestrator.wire.codec import parse_time
from agent_orchestrator.wire.encoded import encoded
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


def text_from(cell: str | bytes) -> str:
    """Return the text of a cell. Long texts are read as UTF-8 bytes."""
    if isinstance(cell, str):
        return cell
    decode = getincrementaldecoder("utf-8")("replace").decode  # a slice may split a character
    return "".join(
        decode(cell[start : start + SLICE_SIZE]) for start in range(0, len(cell), SLICE_SIZE)
    )


def _result_cell(result: RunResult) -> str | None:
    return None if is_long_result(result.text) else result.text


def _result_from(cell: str | bytes) -> RunResult:
    return RunResult(text_from(cell))


_OTHER_NAMES: Final = (
    "is_steering=steers",
    "delivered_attempt=given_in",
    "priority=interrupts",
    "human_at=people_at",
    "process_start_id=pid_birth",
)
_NAMES: Final = dict(pair.split("=") for pair in _OTHER_NAMES)
"""Columns whose names differ from the fields', by field."""

SESSIONS: Final = table(Session, read_only={"last_seq": Cell(), "threads": Cell(read=json.loads)})
MESSAGES: Final = table(Message, spread=("source",), names=_NAMES)
RUNS: Final = table(
    Run, spread=("error",), cells={"result": Cell(_result_cell, _result_from)}, names=_NAMES
)
"""Long results are in a separate table."""
ATTEMPTS: Final = table(Attempt, names=_NAMES)
RECORDS: Final = table(IdempotencyRecord)
TOKENS: Final = table(AccessToken)
AUDIT: Final = table(AuditEntry)
REQUESTS: Final = table(
    Request,
    cells={"detail": always_json(dict), "options": always_json(tuple[str, ...])},
    names=_NAMES,
)

EVENT_COLUMNS: Final = (
    "e.seq, e.run_id, e.attempt, e.event_type,"
    f" coalesce(e.long_data, iif(octet_length(e.data) > {SLICE_SIZE}, CAST(e.data AS BLOB), e.data)),"
    " e.created_at"
)
"""Columns of ``events e``. Long data is read as bytes, because most readers only forward it."""


def event_from(row: Row, session_id: str) -> Event:
    """Return the event in a row that begins with :data:`EVENT_COLUMNS`."""
    seq, run_id, attempt, event_type, data, created_at, *_ = row
    return Event(
        seq=seq,
        session_id=session_id,
        run_id=run_id,
        attempt=attempt,
        event_type=event_type,
        data=json.loads(data) if type(data) is str else encoded((session_id, seq), data),
        created_at=parse_time(created_at),
    )

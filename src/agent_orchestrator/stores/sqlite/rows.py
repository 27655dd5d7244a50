"""Rows and the objects they stand for. Each ``*_COLUMNS`` is in the order its functions use."""

import json
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from typing import Any, Final

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Chosen,
    Event,
    Image,
    Invocation,
    Message,
    Request,
    Run,
    RunError,
    RunResult,
    Session,
    Source,
    Usage,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports import IdempotencyRecord
from agent_orchestrator.stores.encoding import optional_time_from, optional_time_text
from agent_orchestrator.wire.codec import format_time, parse_time
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.strict_json import SLICE, dumps

Row = Sequence[Any]
Values = tuple[Any, ...]

_STATUSES: Final = {str(status): status for status in RunStatus}


def columns(names: str, table: str) -> str:
    """Return the names, each with its table before it."""
    return ", ".join(f"{table}.{name}" for name in names.split(", "))


SESSION_COLUMNS: Final = (
    "id, title, owner, provider, model, cwd, status, parent_session_id, parent_run_id,"
    " root_session_id, depth, metadata, created_at, updated_at, notify_parent, approvals,"
    " max_depth, max_children, max_descendants, approval_policy, sandbox"
)


def session_values(session: Session) -> Values:
    return (
        session.id,
        session.title,
        session.owner,
        session.provider,
        session.model,
        session.cwd,
        session.status,
        session.parent_session_id,
        session.parent_run_id,
        session.root_session_id,
        session.depth,
        dumps(session.metadata),
        format_time(session.created_at),
        format_time(session.updated_at),
        session.notify_parent,
        session.approvals,
        session.max_depth,
        session.max_children,
        session.max_descendants,
        session.approval_policy,
        session.sandbox,
    )


def session_from(row: Row) -> Session:
    """Return the session of a row with ``last_seq`` and the threads after the columns."""
    return Session(
        id=row[0],
        title=row[1],
        owner=row[2],
        provider=row[3],
        model=row[4],
        cwd=row[5],
        status=row[6],
        parent_session_id=row[7],
        parent_run_id=row[8],
        root_session_id=row[9],
        depth=row[10],
        metadata=json.loads(row[11]),
        threads=json.loads(row[22]),
        last_seq=row[21],
        created_at=parse_time(row[12]),
        updated_at=parse_time(row[13]),
        notify_parent=row[14],
        approvals=row[15],
        max_depth=row[16],
        max_children=row[17],
        max_descendants=row[18],
        approval_policy=row[19],
        sandbox=row[20],
    )


MESSAGE_COLUMNS: Final = (
    "id, session_id, role, source_kind, source_session_id, source_run_id, source_principal,"
    " run_id, delivery, created_at, steers, given_in, text, own_run_id, request_id, images"
)


def message_values(message: Message) -> Values:
    source = message.source
    return (
        message.id,
        message.session_id,
        message.role,
        source.kind,
        source.session_id,
        source.run_id,
        source.principal,
        message.run_id,
        message.delivery,
        format_time(message.created_at),
        message.steers,
        message.given_in,
        message.text,
        message.own_run_id,
        message.request_id,
        dumps([[one.media_type, one.size, one.digest] for one in message.images])
        if message.images
        else None,
    )


def message_from(row: Row) -> Message:
    return Message(
        id=row[0],
        session_id=row[1],
        role=row[2],
        source=Source(kind=row[3], session_id=row[4], run_id=row[5], principal=row[6]),
        text=row[12],
        run_id=row[7],
        delivery=row[8],
        created_at=parse_time(row[9]),
        steers=bool(row[10]),
        given_in=row[11],
        own_run_id=row[13],
        request_id=row[14],
        images=() if row[15] is None else tuple(Image(*one) for one in json.loads(row[15])),
    )


RUN_COLUMNS: Final = (
    "id, session_id, message_id, parent_run_id, provider, model, status, waiting_on, attempt,"
    " worker_id, thread_id, result, error_code, error_message, usage, exit_code,"
    " cancel_requested_at, cancel_reason, created_at, started_at, finished_at, interrupts,"
    " approval_policy, sandbox, effort, output_schema, chosen"
)


def run_values(run: Run) -> Values:
    usage = run.usage
    return (
        run.id,
        run.session_id,
        run.message_id,
        run.parent_run_id,
        run.provider,
        run.model,
        run.status,
        run.waiting_on,
        run.attempt,
        run.worker_id,
        run.thread_id,
        None if run.result is None or is_long_result(run.result.text) else run.result.text,
        None if run.error is None else run.error.code,
        None if run.error is None else run.error.message,
        None
        if usage is None
        else dumps(
            [usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.cost_usd]
        ),
        run.exit_code,
        optional_time_text(run.cancel_requested_at),
        run.cancel_reason,
        format_time(run.created_at),
        optional_time_text(run.started_at),
        optional_time_text(run.finished_at),
        run.interrupts,
        run.approval_policy,
        run.sandbox,
        run.effort,
        None if run.output_schema is None else dumps(run.output_schema),
        None if run.chosen == _NOTHING else dumps([run.chosen.effort, run.chosen.models]),
    )


_NOTHING: Final = Chosen()


def is_long_result(text: str) -> bool:
    """Return whether a result is kept in the table of long results."""
    return len(text) > SLICE


def slices(text: str | bytes) -> Iterator[bytes]:
    """Yield a long text in UTF-8, a slice at a time.

    :raises UnicodeEncodeError: if it holds half a surrogate pair.
    """
    for place in range(0, len(text), SLICE):
        piece = text[place : place + SLICE]
        yield piece.encode() if isinstance(piece, str) else piece


def text_from(cell: str | bytes) -> str:
    """Return a text that was read; a long one comes in UTF-8."""
    if isinstance(cell, str):
        return cell
    decode = getincrementaldecoder("utf-8")("replace").decode  # it may be cut within a character
    return "".join(decode(cell[place : place + SLICE]) for place in range(0, len(cell), SLICE))


def run_from(row: Row) -> Run:
    return Run(
        id=row[0],
        session_id=row[1],
        message_id=row[2],
        parent_run_id=row[3],
        provider=row[4],
        model=row[5],
        status=_STATUSES[row[6]],
        waiting_on=row[7],
        attempt=row[8],
        worker_id=row[9],
        thread_id=row[10],
        result=None if row[11] is None else RunResult(text_from(row[11])),
        error=None if row[12] is None else RunError(row[12], row[13]),
        usage=None if row[14] is None else Usage(*json.loads(row[14])),
        exit_code=row[15],
        cancel_requested_at=optional_time_from(row[16]),
        cancel_reason=row[17],
        created_at=parse_time(row[18]),
        started_at=optional_time_from(row[19]),
        finished_at=optional_time_from(row[20]),
        interrupts=bool(row[21]),
        approval_policy=row[22],
        sandbox=row[23],
        effort=row[24],
        output_schema=None if row[25] is None else json.loads(row[25]),
        chosen=_NOTHING if row[26] is None else Chosen(*json.loads(row[26])),
    )


EVENT_COLUMNS: Final = (
    "e.seq, e.run_id, e.attempt, e.event_type,"
    f" coalesce(e.long_data, iif(octet_length(e.data) > {SLICE}, CAST(e.data AS BLOB), e.data)),"
    " e.created_at"
)
"""Of ``events e``. Long data comes as bytes: most who read it hand it on as it is."""


def event_from(row: Row, session_id: str) -> Event:
    return Event(
        seq=row[0],
        session_id=session_id,
        run_id=row[1],
        attempt=row[2],
        event_type=row[3],
        data=json.loads(row[4]) if type(row[4]) is str else Encoded(row[4]),
        created_at=parse_time(row[5]),
    )


ATTEMPT_COLUMNS: Final = (
    "run_id, attempt, worker_id, provider, started_at, ended_at, outcome, pid, pid_birth,"
    " invocation, delivered_at, stderr_tail, steerable, token_hash, writes, host"
)


def attempt_values(attempt: Attempt) -> Values:
    how = attempt.invocation
    return (
        attempt.run_id,
        attempt.attempt,
        attempt.worker_id,
        attempt.provider,
        format_time(attempt.started_at),
        optional_time_text(attempt.ended_at),
        attempt.outcome,
        attempt.pid,
        attempt.pid_birth,
        None
        if how is None
        else dumps([how.command, how.argv, how.cwd, how.profile, how.extra_args]),
        optional_time_text(attempt.delivered_at),
        attempt.stderr_tail,
        int(attempt.steerable),
        attempt.token_hash,
        attempt.writes,
        attempt.host,
    )


def attempt_from(row: Row) -> Attempt:
    invocation = None
    if row[9] is not None:
        command, argv, cwd, profile, extra_args = json.loads(row[9])
        invocation = Invocation(command, tuple(argv), cwd, profile, tuple(extra_args))
    return Attempt(
        run_id=row[0],
        attempt=row[1],
        worker_id=row[2],
        provider=row[3],
        started_at=parse_time(row[4]),
        ended_at=optional_time_from(row[5]),
        outcome=row[6],
        pid=row[7],
        pid_birth=row[8],
        invocation=invocation,
        delivered_at=optional_time_from(row[10]),
        stderr_tail=row[11],
        steerable=bool(row[12]),
        token_hash=row[13],
        writes=row[14],
        host=row[15],
    )


RECORD_COLUMNS: Final = "caller, call, key, fingerprint, answer, created_at"


def record_values(record: IdempotencyRecord) -> Values:
    return (
        record.caller,
        record.call,
        record.key,
        record.fingerprint,
        record.answer,
        format_time(record.created_at),
    )


def record_from(row: Row) -> IdempotencyRecord:
    return IdempotencyRecord(
        caller=row[0],
        call=row[1],
        key=row[2],
        fingerprint=row[3],
        answer=row[4],
        created_at=parse_time(row[5]),
    )


ACCESS_COLUMNS: Final = (
    "id, name, principal, scopes, created_by, created_at, expires_at, revoked_at"
)


def token_values(token: AccessToken) -> Values:
    return (
        token.id,
        token.name,
        token.principal,
        dumps(token.scopes),
        token.created_by,
        format_time(token.created_at),
        optional_time_text(token.expires_at),
        optional_time_text(token.revoked_at),
    )


def token_from(row: Row) -> AccessToken:
    return AccessToken(
        id=row[0],
        name=row[1],
        principal=row[2],
        scopes=tuple(json.loads(row[3])),
        created_by=row[4],
        created_at=parse_time(row[5]),
        expires_at=optional_time_from(row[6]),
        revoked_at=optional_time_from(row[7]),
    )


AUDIT_COLUMNS: Final = "seq, at, principal, token, operation, target, decision, detail, hash"


def audit_values(entry: AuditEntry) -> Values:
    return (
        entry.seq,
        format_time(entry.at),
        entry.principal,
        entry.token,
        entry.operation,
        entry.target,
        entry.decision,
        dumps(entry.detail),
        entry.hash,
    )


def audit_from(row: Row) -> AuditEntry:
    return AuditEntry(
        seq=row[0],
        at=parse_time(row[1]),
        principal=row[2],
        token=row[3],
        operation=row[4],
        target=row[5],
        decision=row[6],
        detail=json.loads(row[7]),
        hash=row[8],
    )


REQUEST_COLUMNS: Final = (
    "id, session_id, run_id, attempt, root_session_id, parent_session_id, kind, text, detail,"
    " options, status, decision, answer, scope, decided_by, created_at, expires_at, resolved_at,"
    " approvals, audience, people_at, wait, warn_at, warned"
)


def request_values(request: Request) -> Values:
    return (
        request.id,
        request.session_id,
        request.run_id,
        request.attempt,
        request.root_session_id,
        request.parent_session_id,
        request.kind,
        request.text,
        dumps(request.detail),
        dumps(request.options),
        request.status,
        request.decision,
        request.answer,
        request.scope,
        request.decided_by,
        format_time(request.created_at),
        format_time(request.expires_at),
        optional_time_text(request.resolved_at),
        request.approvals,
        request.audience,
        optional_time_text(request.people_at),
        int(request.wait),
        optional_time_text(request.warn_at),
        int(request.warned),
    )


def request_from(row: Row) -> Request:
    options = json.loads(row[9])
    return Request(
        id=row[0],
        session_id=row[1],
        run_id=row[2],
        attempt=row[3],
        root_session_id=row[4],
        parent_session_id=row[5],
        kind=row[6],
        text=row[7],
        detail=json.loads(row[8]),
        options=None if options is None else tuple(options),
        status=row[10],
        decision=row[11],
        answer=row[12],
        scope=row[13],
        decided_by=row[14],
        created_at=parse_time(row[15]),
        expires_at=parse_time(row[16]),
        resolved_at=optional_time_from(row[17]),
        approvals=row[18],
        audience=row[19],
        people_at=optional_time_from(row[20]),
        wait=bool(row[21]),
        warn_at=optional_time_from(row[22]),
        warned=bool(row[23]),
    )

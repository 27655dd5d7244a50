"""State changes of requests: opening, closing, escalation, and delivery of the answer."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

from attrs import evolve

from agent_orchestrator.domain.events import AGENT_EVENTS, EventType
from agent_orchestrator.domain.lifecycle import RunStatus, Signal, step
from agent_orchestrator.domain.model import (
    Message,
    Request,
    RequestStatus,
    Run,
    Session,
    Source,
)
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.engine.prompts import fit_prompt
from agent_orchestrator.engine.run_changes import (
    QUEUE_TOPIC,
    has_queued_run,
    log,
    message_created_event,
    session_of,
)
from agent_orchestrator.engine.summaries import request_summary
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import RequestQueries, RunQueries
from agent_orchestrator.wire.codec import to_plain


def open_request(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    """Open a request for which its run waits.

    If the run waits for an earlier request, it waits for this one afterwards.
    """
    status = run.status
    if status is not RunStatus.WAITING:
        status = step(status, Signal.WAIT)
    tx.add_request(request)
    if status is not run.status:
        _set_waiting(core, tx, evolve(run, status=status), request)
    log_request(core, tx, request)


def _set_waiting(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    waiting = evolve(run, waiting_on=request.id)
    tx.put_run(waiting)
    log(tx, waiting, EventType.RUN_WAITING, {"request_id": request.id}, core.now())


def blocking_requests(tx: RequestQueries, run: Run) -> list[Request]:
    """Return the open requests for which the run waits, the oldest first."""
    pending = tx.requests(run_id=run.id, status="pending", limit=MAX_READ_ROWS)
    return [request for request in pending if request.wait]


def log_request(
    core: Core,
    tx: Transaction,
    request: Request,
    event_type: EventType = EventType.REQUEST_CREATED,
) -> None:
    """Write an event with a request into its session's log, and with a summary into its ancestors'."""
    plain = to_plain(request)
    draft = Draft(event_type, plain)
    summary = Draft(event_type, request_summary(plain))
    ancestor_id: str | None = request.session_id
    while ancestor_id is not None:
        tx.append(ancestor_id, [draft], core.now())
        session = tx.session(ancestor_id)
        ancestor_id, draft = session.parent_session_id if session else None, summary


DECIDED: Final = frozenset({"approved", "denied", "answered", "expired"})
"""The states of a request that its agent must learn of. It withdrew ``canceled`` ones itself."""


def close_request(core: Core, tx: Transaction, request: Request, status: RequestStatus) -> Request:
    """Close an open request. Its run resumes, or waits for its next open request.

    If the run is parked, the answer becomes its next message. Once it waits for nothing more, it goes
    back to the queue.
    """
    closed = mark_closed(core, tx, request, status)
    run = tx.run(request.run_id)
    if run is None or run.status is not RunStatus.WAITING or not request.wait:
        return closed
    has_active_agent = run.worker_id is not None
    if not has_active_agent:
        queue_answer(core, tx, run, closed)
    if run.waiting_on != request.id:
        return closed
    if still_blocking := blocking_requests(tx, run):
        _set_waiting(core, tx, run, still_blocking[0])
        return closed
    if has_active_agent:
        resume_run(core, tx, run)
        return closed
    now = core.now()
    queued = evolve(run, status=step(run.status, Signal.RELEASE), waiting_on=None)
    tx.put_run(queued)
    data = {"provider": run.provider, "attempt": run.attempt, "reason": "the answer has arrived"}
    log(tx, queued, EventType.RUN_QUEUED, data, now)
    tx.notify(QUEUE_TOPIC)
    return closed


def queue_answer(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    """Queue a decision as the next message of a run whose agent did not get it.

    The role is ``system``, because the gateway writes it. The source is who decided.
    """
    by_agent = tx.run(request.decided_by) if request.decided_by else None
    message = Message(
        id=core.config.ids("msg"),
        session_id=run.session_id,
        role="system",
        source=Source(
            "client" if by_agent is None else "parent",
            session_id=None if by_agent is None else by_agent.session_id,
            principal=request.decided_by,
        ),
        text=fit_prompt(
            core,
            run.provider,
            _answer_text(request),
            f"the whole answer is in request {request.id}",
        ),
        run_id=run.id,
        delivery="queued",
        created_at=core.now(),
        request_id=request.id,
    )
    tx.add_message(message)
    tx.append(run.session_id, [message_created_event(message)], message.created_at)


def withdraw_requests(core: Core, tx: Transaction, request_ids: Iterable[str]) -> None:
    """Cancel the requests that an agent has given up. Its run resumes."""
    for request_id in request_ids:
        request = tx.request(request_id)
        if request is not None and request.is_open:
            close_request(core, tx, request, "canceled")


def undelivered_answer(
    tx: Transaction, run: Run, reported: Collection[str], stopped_at: datetime
) -> Request | None:
    """Return the request that was decided last in this attempt, if its agent may not have the answer.

    The agent has it if it had output after the decision, and before it was stopped.

    :param reported: ids of the requests whose answers the agent certainly has.
    """
    last = tx.last_resolved(run.id, run.attempt, statuses=DECIDED, excluding=reported)
    if last is None or last.resolved_at is None:
        return None
    output_at = tx.last_output_at(run, attempt=run.attempt)
    if output_at is None or output_at <= last.resolved_at:
        return last
    if output_at <= stopped_at:
        return None
    # Its last output came while it was being stopped. Its events show whether it had some before.
    after = max(0, session_of(tx, run).last_seq - MAX_READ_ROWS)
    while recent := tx.events(run.session_id, after=after, limit=MAX_READ_ROWS, size=BATCH_SIZE):
        if any(
            (event.run_id, event.attempt) == (run.id, run.attempt)
            and event.event_type in AGENT_EVENTS
            and last.resolved_at < event.created_at <= stopped_at
            for event in recent
        ):
            return None
        after = recent[-1].seq
    return last


def mark_closed(core: Core, tx: Transaction, request: Request, status: RequestStatus) -> Request:
    """Close a request without resuming its run."""
    closed = evolve(request, status=status, resolved_at=core.now())
    tx.put_request(closed)
    log_request(core, tx, closed, EventType.REQUEST_RESOLVED)
    return closed


def has_active_agent(tx: RunQueries, session: Session) -> bool:
    """Return True if an open session has an active or queued run."""
    if session.status == "closed":
        return False
    active = tx.active_run(session.id)
    if active is not None:
        return not active.is_held  # a person's program does not have its questions
    return has_queued_run(tx, session)


def escalate(core: Core, tx: Transaction, request: Request) -> None:
    """Ask people instead of the parent's agent."""
    escalated: Request = evolve(request, audience="human", human_at=core.now())
    tx.put_request(escalated)
    log_request(core, tx, escalated, EventType.REQUEST_UPDATED)


def escalate_open_requests(core: Core, tx: Transaction, session: Session) -> None:
    """Escalate the open requests to a session's agent if that agent is not active."""
    while (pending := tx.parent_requests(session.id, limit=MAX_READ_ROWS)) and not has_active_agent(
        tx, session
    ):
        for request in pending:
            escalate(core, tx, request)


def _answer_text(request: Request) -> str:
    chosen = request.chosen
    label = None if chosen is None or chosen.kind == "answer" else chosen.label
    verdict = f"{request.status} ({label})" if label else request.status
    text = f"Your request was {verdict}: {request.text}"
    return f"{text}\n\n{request.answer}" if request.answer else text


def resume_run(core: Core, tx: Transaction, run: Run) -> Run:
    """Set a waiting run to ``running``."""
    resumed = evolve(run, status=step(run.status, Signal.RESUME), waiting_on=None)
    tx.put_run(resumed)
    log(tx, resumed, EventType.RUN_RESUMED, {"request_id": run.waiting_on}, core.now())
    return resumed

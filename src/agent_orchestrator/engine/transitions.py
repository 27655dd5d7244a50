"""The state transitions of a run, each with its events."""

from datetime import datetime
from typing import Any

from attrs import evolve, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus, Signal, is_terminal, step
from agent_orchestrator.domain.model import (
    MANUAL,
    Attempt,
    Holder,
    Invocation,
    Run,
    RunError,
    RunResult,
    Session,
)
from agent_orchestrator.engine import retention
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.questions import (
    blocking_requests,
    escalate_open_requests,
    mark_closed,
    resume_run,
)
from agent_orchestrator.engine.results import (
    agent_knows_result,
    attach_results,
    deliver_child_results,
    record_child_result,
)
from agent_orchestrator.engine.run_changes import (
    HOLD_TOPIC,
    QUEUE_TOPIC,
    amend_attempt,
    cancel_topic,
    has_queued_run,
    log,
    session_of,
)
from agent_orchestrator.engine.steering import drop_steering, settle_messages
from agent_orchestrator.operations.takeovers import Program
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import RunQueries
from agent_orchestrator.wire.codec import to_plain


def start(
    core: Core, tx: Transaction, run: Run, worker_id: str, *, token_hash: str | None = None
) -> Run:
    """Start a queued run.

    :param worker_id: the worker, or the client of a manual run.
    :param token_hash: the hash of the token that the run's agent gets.
    """
    at = core.now()
    session = session_of(tx, run)
    if run.kind == "message":
        attach_results(core, tx, run, session)
    started = evolve(run, status=step(run.status, Signal.START), worker_id=worker_id, started_at=at)
    if (thread_id := session.threads.get(run.provider)) is not None:
        started = evolve(started, thread_id=thread_id)  # the runner may replace it
    tx.put_run(started)
    attempt = Attempt(
        run.id,
        run.attempt,
        worker_id,
        run.provider,
        at,
        token_hash=token_hash,
        host=None if run.provider == MANUAL else core.config.host.id,
    )
    tx.put_attempt(attempt)
    data = {"attempt": run.attempt, "provider": run.provider, "worker_id": worker_id}
    log(tx, started, EventType.RUN_STARTED, data, at)
    return started


def hold(core: Core, tx: Transaction, run: Run, holder: Holder, program: Program) -> Run:
    """Start a takeover: a queued run that occupies its session until a person's program ends. It needs no worker."""
    at = core.now()
    worker_id = f"attach/{holder.principal}"
    tx.put_attempt(
        Attempt(
            run.id,
            run.attempt,
            worker_id,
            run.provider,
            at,
            pid=holder.pid,
            process_start_id=holder.process_start_id,
            invocation=Invocation(program.argv[0], program.argv, program.cwd),
            host=core.config.host.id,
        )
    )
    data = {"attempt": run.attempt, "provider": run.provider, "worker_id": worker_id}
    log(tx, run, EventType.RUN_STARTED, data, at)
    status = step(step(run.status, Signal.START), Signal.WAIT)
    held = evolve(run, status=status, started_at=at)
    tx.put_run(held)
    waiting = {"held_by": holder.principal, "pid": holder.pid}
    log(tx, held, EventType.RUN_WAITING, waiting, at)
    tx.notify(HOLD_TOPIC)
    return held


@frozen
class AttemptEnd:
    """How an attempt ended. The signal selects the run's next state."""

    signal: Signal
    result: RunResult | None = None
    error: RunError | None = None
    exit_code: int | None = None
    reason: str | None = None
    stderr_tail: str = ""
    outcome: str | None = None
    """The outcome to record for the attempt. Default: the run's next state."""


_END_EVENTS = {
    RunStatus.COMPLETED: EventType.RUN_COMPLETED,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELED: EventType.RUN_CANCELED,
}


def finish(core: Core, tx: Transaction, run: Run, attempt_end: AttemptEnd) -> Run:
    """End an attempt: the run goes to a terminal state, or back to the queue."""
    at = core.now()
    if run.status is RunStatus.WAITING and attempt_end.signal is Signal.COMPLETE:
        run = resume_run(core, tx, run)  # the agent completed without the answer
    after = step(run.status, attempt_end.signal)
    outcome = attempt_end.outcome or str(after)
    amend_attempt(tx, run, ended_at=at, outcome=outcome, stderr_tail=attempt_end.stderr_tail)
    if after is RunStatus.QUEUED:
        return _release(core, tx, run, attempt_end, at)
    while pending := tx.requests(run_id=run.id, status="pending", limit=MAX_READ_ROWS):
        for request in pending:
            mark_closed(core, tx, request, "canceled")
    ended = evolve(
        run,
        status=after,
        result=attempt_end.result,
        error=attempt_end.error,
        exit_code=attempt_end.exit_code,
        waiting_on=None,
        finished_at=at,
    )
    tx.put_run(ended)
    retention.delete_run_records(tx, run.id)
    data: dict[str, Any] = {"attempt": run.attempt}
    if attempt_end.result is not None:
        data["result"] = to_plain(attempt_end.result)
    if attempt_end.error is not None:
        data["error"] = to_plain(attempt_end.error)
    if attempt_end.exit_code is not None:
        data["exit_code"] = attempt_end.exit_code
    reason = run.cancel_reason if after is RunStatus.CANCELED else attempt_end.reason
    if reason is not None:
        data["reason"] = reason
    if run.usage is not None:
        data["usage"] = to_plain(run.usage)
    log(tx, ended, _END_EVENTS[after], data, at)
    returned = settle_messages(core, tx, ended, at)
    record_child_result(core, tx, ended, at)
    session = session_of(tx, ended)
    if after is RunStatus.COMPLETED or (
        after is RunStatus.FAILED and agent_knows_result(tx, run, returned)
    ):
        # After a cancel, no new run delivers results. Nor after a failure, unless a result came during the
        # run: the results that the failed run did not deliver wait for the session's next run.
        deliver_child_results(core, tx, session, at)
    escalate_open_requests(core, tx, session)
    if has_queued_run(tx, session):
        tx.notify(QUEUE_TOPIC)  # it can start now
    return ended


def _release(core: Core, tx: Transaction, run: Run, attempt_end: AttemptEnd, at: datetime) -> Run:
    if run.status is RunStatus.WAITING:
        for request in blocking_requests(tx, run):
            mark_closed(core, tx, request, "canceled")
    released = evolve(
        run,
        status=RunStatus.QUEUED,
        attempt=run.attempt + 1,
        worker_id=None,
        waiting_on=None,
        started_at=None,
        exit_code=None,
    )
    tx.put_run(released)
    data = {
        "provider": run.provider,
        "message_id": run.message_id,
        "attempt": released.attempt,
        "reason": attempt_end.reason,
    }
    log(tx, released, EventType.RUN_QUEUED, data, at)
    tx.notify(QUEUE_TOPIC)
    return released


def started_runs(tx: RunQueries, session: Session) -> list[Run]:
    """Return the runs of a session that have started and not ended: the active one, and released ones."""
    active = tx.active_run(session.id)
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS)
    released = [run for run in queued if run.attempt > 1]
    return released if active is None else [active, *released]


def park(
    core: Core,
    tx: Transaction,
    run: Run,
    *,
    stderr_tail: str = "",
    outcome: str = RunStatus.WAITING,
) -> Run:
    """End the attempt of a run that waits for an answer. The answer starts the next attempt."""
    amend_attempt(tx, run, ended_at=core.now(), outcome=str(outcome), stderr_tail=stderr_tail)
    parked = evolve(run, attempt=run.attempt + 1, worker_id=None)
    tx.put_run(parked)
    data = {"request_id": run.waiting_on, "parked": True}
    log(tx, parked, EventType.RUN_WAITING, data, core.now())
    return parked


def request_cancel(
    core: Core, tx: Transaction, run: Run, *, reason: str | None, cascade: bool
) -> list[str]:
    """Request that a run is canceled and, with ``cascade``, its descendants. A run without a worker ends at once.

    :return: the ids of those runs that had not ended, parents before their children.
    """
    reached = []
    pending = [run]
    visited: set[str] = set()
    while pending:
        current = pending.pop(0)
        if cascade:
            pending += tx.child_runs(current.id)
        if is_terminal(current.status):
            visited.add(current.id)
            continue
        drop_steering(tx, current, visited)
        visited.add(current.id)
        reached.append(current.id)
        if current.cancel_requested_at is None:
            current = evolve(current, cancel_requested_at=core.now(), cancel_reason=reason)
            tx.put_run(current)
        if current.worker_id is None or current.provider == MANUAL:
            finish(core, tx, current, AttemptEnd(Signal.CANCEL))
            tx.notify(HOLD_TOPIC)  # it may have been a takeover
        else:
            tx.notify(cancel_topic(current.id))
    return reached

"""Helpers for changes of a run: the fence of its attempt, its record, its events and its topics.

They are functions of a transaction, so that state, events and messages change in one commit.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import evolve

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Message,
    Run,
    Session,
)
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import RunQueries, SessionQueries
from agent_orchestrator.wire.codec import to_plain

QUEUE_TOPIC = "queue"
"""Notified when a worker may have a run to start."""


HOLD_TOPIC = "holds"
"""Notified when a person's program gets a conversation, or a run that held its session has ended."""


def cancel_topic(run_id: str) -> str:
    """Return the topic that is notified when a run's cancel is requested."""
    return f"cancel:{run_id}"


def steer_topic(run_id: str) -> str:
    """Return the topic that is notified of a new message for the running agent."""
    return f"steer:{run_id}"


class StaleAttempt(Exception):
    """The run has a later attempt, or has ended: writes of this attempt are refused."""


def require_current_attempt(core: Core, tx: RunQueries, run_id: str, attempt: int) -> Run:
    """Return the run for a write of one of its attempts.

    :raises StaleAttempt: if that attempt is no longer active, or was begun under a lease that is lost.
    """
    run = tx.run(run_id)
    if run is None or run.attempt != attempt or run.status not in ACTIVE:
        raise StaleAttempt(f"attempt {attempt} of {run_id}")
    if not is_executed_here(core, run):
        raise StaleAttempt(f"attempt {attempt} of {run_id}, of {run.worker_id}")
    return run


def is_executed_here(core: Core, run: Run) -> bool:
    """Return whether a worker of this engine has a run, under its present lease."""
    return (run.worker_id or "").partition("/")[0] == core.instance


def log(tx: Transaction, run: Run, event_type: str, data: Mapping[str, Any], at: datetime) -> None:
    """Append an event of a run."""
    tx.append(run.session_id, [Draft(event_type, data, run.id, run.attempt)], at)


def message_created_event(message: Message) -> Draft:
    """Return the event ``message.created`` of a message."""
    data = {
        "message_id": message.id,
        "role": message.role,
        "source": to_plain(message.source),
        "text": message.text,
    }
    if message.request_id is not None:
        data["request_id"] = message.request_id
    if message.images:
        data["images"] = to_plain(message.images)
    if message.is_steering:
        data["is_steering"] = True
    return Draft(EventType.MESSAGE_CREATED, data, message.run_id)


def log_delivery(tx: Transaction, run: Run, message: Message, at: datetime) -> None:
    """Append the event that a running agent has taken a steering message, or has given it back."""
    data = {"message_id": message.id, "delivery": message.delivery, "attempt": run.attempt}
    log(tx, run, EventType.MESSAGE_UPDATED, data, at)


def has_queued_run(tx: RunQueries, session: Session) -> bool:
    return bool(tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=1))


def state_of(run: Run) -> str:
    """Return a clause about a run that occupies its session."""
    if run.is_held and run.holder is not None:
        by = f"{run.holder.principal} (process {run.holder.pid})"
        return (
            f"run {run.id} holds the session for {by}, who uses its conversation in {run.provider}"
        )
    return f"run {run.id} of the session is {run.status}"


def session_of(tx: SessionQueries, run: Run) -> Session:
    session = tx.session(run.session_id)
    assert session is not None
    return session


def default_provider(core: Core, session: Session) -> str:
    """Return the session's provider, else the default.

    It is not checked: a child's result is recorded even if the provider no longer exists.
    """
    return session.provider or core.config.routing.default


def current_attempt(view: RunQueries, run: Run) -> Attempt | None:
    """Return the record of the run's present attempt."""
    return next(
        (attempt for attempt in view.attempts(run.id) if attempt.attempt == run.attempt), None
    )


def amend_attempt(tx: Transaction, run: Run, **changes: Any) -> None:
    """Change the record of the run's present attempt."""
    if (attempt := current_attempt(tx, run)) is not None:
        tx.put_attempt(evolve(attempt, **changes))

"""Delivery of the results of children to their parents."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

from attrs import evolve

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    ChoiceLimits,
    Message,
    Run,
    Session,
    Source,
)
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.prompts import count_fitting, fit_prompt, limit_of
from agent_orchestrator.engine.queueing import enqueue
from agent_orchestrator.engine.run_changes import (
    default_provider,
    message_created_event,
    session_of,
)
from agent_orchestrator.engine.summaries import text_summary
from agent_orchestrator.engine.turn_options import (
    NO_OPTIONS,
    chosen_options,
    combined,
    with_default_model,
    with_inherited,
)
from agent_orchestrator.fields import MAX_TEXT
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import MessageQueries

MAX_RESULTS: Final = 100
"""Maximum number of children's results in a run."""


MAX_RESULTS_SIZE: Final = 4 * 2**20
"""Maximum characters of results that are read for a run. The result that exceeds it is still read."""


def agent_knows_result(tx: MessageQueries, run: Run, returned: Collection[str]) -> bool:
    """Return True if a child's result came while the run was being executed.

    :param returned: ids of the messages that the run did not deliver.
    """
    waiting = tx.waiting_messages(run.session_id, limit=MAX_RESULTS, size=MAX_RESULTS_SIZE)
    return run.started_at is not None and any(
        message.created_at >= run.started_at and message.id not in returned for message in waiting
    )


def record_child_result(core: Core, tx: Transaction, run: Run, at: datetime) -> None:
    """Record a child's result in its parent, as a message and as an event."""
    child = session_of(tx, run)
    parent = tx.session(child.parent_session_id) if child.parent_session_id else None
    if parent is None:
        return
    message = send_to_parent(core, tx, parent, child, run, _result_text(core, parent, child, run))
    finished: dict[str, Any] = {
        "session_id": child.id,
        "run_id": run.id,
        "parent_run_id": child.parent_run_id,
        "status": run.status,
        "result": None,
        "error": None,
        "message_id": message.id,
    }
    if run.result is not None:
        finished["result"] = text_summary("text", run.result.text)
    if run.error is not None:
        finished["error"] = {
            "code": run.error.code,
            **text_summary("message", run.error.message),
        }
    # An event of the session, because the run that spawned the child may have ended.
    tx.append(parent.id, [Draft(EventType.CHILD_FINISHED, finished)], at)


def send_to_parent(
    core: Core,
    tx: Transaction,
    parent: Session,
    child: Session,
    run: Run,
    text: str,
    *,
    for_record: bool = False,
) -> Message:
    """Add a message of a child to its parent, and queue it for the parent's agent if it wakes it.

    :param for_record: whether to only record it, whatever the child's ``notify_parent`` is.
    :raises InvalidRequest: if the text is too long for the parent's agent.
    """
    # A closed parent also gets it, because it may be opened again.
    # A canceled child does not wake its parent: canceling a tree must not set its root to work.
    wakes = (
        child.notify_parent == "wake"
        and not for_record
        and run.status is not RunStatus.CANCELED
        and run.cancel_requested_at is None
    )
    if wakes and (excess := limit_of(core, default_provider(core, parent)).excess(text)):
        raise InvalidRequest.of({"text": f"is too long for the parent's agent: {excess}"})
    message = Message(
        id=core.config.ids("msg"),
        session_id=parent.id,
        role="user" if wakes else "system",
        source=Source("child", session_id=child.id, run_id=run.id),
        text=text,
        run_id=None,
        delivery="queued" if wakes else "delivered",
        created_at=core.now(),
        own_run_id=core.config.ids("run") if wakes else None,
    )
    tx.add_message(message)
    tx.append(parent.id, [message_created_event(message)], message.created_at)
    if wakes and tx.active_run(parent.id) is None:
        deliver_child_results(core, tx, parent, message.created_at)
    return message


def _result_text(core: Core, parent: Session, child: Session, run: Run) -> str:
    """Return the message about a child's result, cut to the length that the parent's agent accepts."""
    name = f"{child.title} ({child.id})" if child.title else child.id
    if run.result is not None:
        head, text = f"Child session {name} completed:\n\n", run.result.text
    elif run.error is not None:
        head, text = f"Child session {name} failed: {run.error.code}: ", run.error.message
    else:
        return f"Child session {name} was {run.status}."
    where = f"run {run.id} has all {len(text):,} characters"
    # Cut first, because a result may have many millions of characters.
    return fit_prompt(core, default_provider(core, parent), head + text[: MAX_TEXT + 1], where)


def deliver_child_results(core: Core, tx: Transaction, session: Session, at: datetime) -> None:
    """Queue a run for the waiting results of a session's children, unless a queued run will deliver them.

    The new run's place in the queue is that of the first result.
    """
    if session.status != "open":
        return
    waiting = tx.waiting_messages(session.id, limit=1)
    if not waiting:
        return
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS)
    if any(_carries_results(core, session, run) for run in queued):
        return
    run_id = waiting[0].own_run_id
    if run_id is None or tx.run(run_id) is not None:
        run_id = core.config.ids("run")  # a run with that id exists, and did not deliver it
    provider = default_provider(core, session)
    sender_limits = _chosen_for_waiting_results(tx, session)
    options = with_inherited(core, provider, NO_OPTIONS, sender_limits)
    run = enqueue(
        tx,
        session,
        run_id=run_id,
        message=waiting[0],
        provider=provider,
        options=with_default_model(core, session, provider, options),
        chosen=chosen_options(session, provider, options, sender_limits),
        at=at,
        is_new=False,
    )
    attach_results(core, tx, run, session)


def _chosen_for_waiting_results(tx: Transaction, session: Session) -> ChoiceLimits:
    """Return the limits on choices of the runs that spawned the children with waiting results.

    The run that delivers the results inherits them.
    """
    waiting = tx.waiting_messages(session.id, limit=MAX_RESULTS, size=MAX_RESULTS_SIZE)
    chosen = ChoiceLimits()
    for child_run_id in dict.fromkeys(message.source.run_id for message in waiting):
        child = tx.run(child_run_id) if child_run_id is not None else None
        parent_run = tx.run(child.parent_run_id) if child and child.parent_run_id else None
        if parent_run is not None and parent_run.session_id == session.id:
            chosen = combined(chosen, parent_run.chosen)
    return chosen


def _carries_results(core: Core, session: Session, run: Run) -> bool:
    """Return True if a run has the session's own provider and confinement, so that it delivers results."""
    confined = (run.approval_policy, run.sandbox) == (session.approval_policy, session.sandbox)
    return confined and run.provider == default_provider(core, session)


def attach_results(core: Core, tx: Transaction, run: Run, session: Session) -> None:
    """Add waiting results of children to the messages of a run, as many as fit into its prompt.

    The others wait for the next turn. All of them wait if another queued run is for a child's result.
    """
    waiting = tx.waiting_messages(session.id, limit=MAX_RESULTS, size=MAX_RESULTS_SIZE)
    if not waiting or not _carries_results(core, session, run):
        return
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS)
    if any(other.id != run.id and _is_child_result(tx, other) for other in queued):
        return
    run_messages = tx.run_messages(run.id)
    count = count_fitting([*run_messages, *waiting][:MAX_RESULTS], limit_of(core, run.provider))
    for message in waiting[: max(0, count - len(run_messages))]:
        tx.put_message(evolve(message, run_id=run.id))


def _is_child_result(tx: MessageQueries, run: Run) -> bool:
    message = tx.message(run.message_id) if run.message_id else None
    return message is not None and message.source.kind == "child"

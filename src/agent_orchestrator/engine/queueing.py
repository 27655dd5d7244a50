"""Queueing a run for a message."""

from datetime import datetime

from attrs import evolve

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    MANUAL,
    ChoiceLimits,
    Holder,
    Message,
    Run,
    RunKind,
    Session,
)
from agent_orchestrator.engine.confinement import DEFAULT_CONFINEMENT, Confinement
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.run_changes import QUEUE_TOPIC, message_created_event, session_of
from agent_orchestrator.engine.turn_options import TurnOptions
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import SessionQueries


def enqueue(
    tx: Transaction,
    session: Session,
    *,
    run_id: str,
    message: Message | None,
    provider: str,
    options: TurnOptions,
    chosen: ChoiceLimits,
    at: datetime,
    confinement: Confinement = DEFAULT_CONFINEMENT,
    priority: bool = False,
    is_new: bool = True,
    kind: RunKind = "message",
    holder: Holder | None = None,
) -> Run:
    """Queue a run, and add or update the message that it delivers.

    :param options: the model's options. The images are the message's.
    :param chosen: limits on what its agent may choose.
    :param confinement: the values that differ from the session's.
    :param is_new: whether to add the message.
    :param holder: who will hold the session, if ``kind`` is ``attach``.
    """
    confined = confinement.or_else(Confinement.of(session))
    run = Run(
        id=run_id,
        session_id=session.id,
        message_id=message.id if message else None,
        parent_run_id=spawning_run(tx, session, message),
        provider=provider,
        model=options.model,
        status=RunStatus.QUEUED,
        waiting_on=None,
        attempt=1,
        worker_id=None,
        thread_id=None,
        result=None,
        error=None,
        usage=None,
        exit_code=None,
        cancel_requested_at=None,
        cancel_reason=None,
        created_at=at,
        started_at=None,
        finished_at=None,
        priority=priority,
        approval_policy=confined.approval_policy,
        sandbox=confined.sandbox,
        effort=options.effort,
        output_schema=options.output_schema,
        chosen=chosen,
        kind=kind,
        holder=holder,
    )
    tx.add_run(run)
    drafts = []
    if message is not None and is_new:
        tx.add_message(message)
        drafts.append(message_created_event(message))
    elif message is not None:
        tx.put_message(evolve(message, run_id=run_id))
    queued = {"provider": provider, "message_id": run.message_id, "attempt": 1}
    drafts.append(Draft(EventType.RUN_QUEUED, queued, run.id, run.attempt))
    tx.append(session.id, drafts, at)
    if provider != MANUAL:
        tx.notify(QUEUE_TOPIC)
    return run


def spawning_run(tx: SessionQueries, session: Session, message: Message | None) -> str | None:
    """Return the run whose cancel cascades to a new run.

    It is the run of an ancestor that sent the message, else the run that spawned the session.
    """
    source = message.source if message is not None else None
    if source is not None and source.run_id is not None and source.session_id is not None:
        ancestor_id = session.parent_session_id
        while ancestor_id is not None:
            if ancestor_id == source.session_id:
                return source.run_id
            parent = tx.session(ancestor_id)
            ancestor_id = parent.parent_session_id if parent else None
    return session.parent_run_id


def requeue(core: Core, tx: Transaction, run: Run, message: Message, at: datetime) -> None:
    """Queue a new run for a message that a run did not deliver.

    It comes before the runs that were queued after the message.
    """
    enqueue(
        tx,
        session_of(tx, run),
        run_id=message.own_run_id or core.config.ids("run"),
        message=message,
        provider=run.provider,
        options=TurnOptions(run.model, run.effort),
        chosen=run.chosen,
        at=at,
        confinement=Confinement.of(run),
        # Runs are sorted by id. A new id would put this run behind the others.
        priority=message.own_run_id is None,
        is_new=False,
    )

"""Sending and listing messages."""

from collections.abc import Sequence

from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import InvalidRequest, SessionBusy, SessionClosed, Unavailable
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import MANUAL, ChoiceLimits, Message, Run, Session, Source
from agent_orchestrator.engine import queueing, run_changes, transitions
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.confinement import (
    DEFAULT_CONFINEMENT,
    Confinement,
    require_permitted,
    require_supported,
)
from agent_orchestrator.engine.core import MAX_READ_ROWS, QUEUE_RETRY_S, Change, Core
from agent_orchestrator.engine.daemons import known_provider, provider_for
from agent_orchestrator.engine.images import decode_uploads, store_images
from agent_orchestrator.engine.paging import PAGE_SIZE, page
from agent_orchestrator.engine.prompts import limit_of
from agent_orchestrator.engine.turn_options import (
    NO_OPTIONS,
    NOTHING_CHOSEN,
    TurnOptions,
    check_options,
    chosen_options,
    is_at_most,
    with_default_model,
    with_inherited,
)
from agent_orchestrator.operations.messages import (
    ListMessages,
    MessagePage,
    MessageReply,
    SendMessage,
)
from agent_orchestrator.operations.options import WhenBusy
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import QueueQueries, RunQueries, View


async def send(core: Core, caller: Principal, command: SendMessage) -> Change[MessageReply]:
    core.require_accepting()
    require_permitted(core, caller, command)
    requested = Confinement.of(command)
    options = TurnOptions.of(command, await decode_uploads(command.images))
    if command.role != "user" and options.names:
        raise InvalidRequest.of(dict.fromkeys(sorted(options.names), "needs the role user"))

    def change(tx: Transaction) -> MessageReply:
        session = open_session(tx, caller, Action.CONVERSE, command.session_id)
        if command.provider is not None:
            known_provider(core, tx, command.provider, session.host)
        source = Source("client", principal=caller.id)
        if command.role != "user":
            return MessageReply(_add_message(core, tx, session, source, command), None)
        return deliver(
            core,
            tx,
            session,
            source,
            command.text,
            command.when_busy,
            provider=command.provider,
            requested=requested,
            options=options,
        )

    return change


def deliver(
    core: Core,
    tx: Transaction,
    session: Session,
    source: Source,
    text: str,
    busy: WhenBusy,
    *,
    provider: str | None = None,
    requested: Confinement = DEFAULT_CONFINEMENT,
    options: TurnOptions = NO_OPTIONS,
    sender_limits: ChoiceLimits = NOTHING_CHOSEN,
    field: str = "text",
) -> MessageReply:
    """Deliver a message to a session's agent: in a new run, or to the running agent.

    :param options: the message's options for the model.
    :param sender_limits: the limits on what the sending agent may choose; empty for a person.
    :param field: the name of the text's field in errors.
    :raises Forbidden: if the options exceed ``sender_limits``.
    :raises InvalidRequest: if the text is too long for the provider, or it does not take an option.
    :raises SessionBusy: if ``busy`` is ``reject`` and the session has a run.
    :raises Unavailable: if the queue is full.
    """
    effective = options
    if sender_limits != NOTHING_CHOSEN:
        effective = with_inherited(
            core, provider_for(core, tx, session, provider), options, sender_limits
        )
    active = None if busy == "queue" else tx.active_run(session.id)
    if (
        active is not None
        and busy == "steer"
        and _can_steer(tx, active, provider, requested, options)
        and is_at_most(active, sender_limits)
    ):
        require_length(core, active.provider, text, field)
        own_run_id = core.config.ids("run")
        message = user_message(core, session, source, text, active.id, own_run_id=own_run_id)
        tx.add_message(message)
        tx.append(session.id, [run_changes.message_created_event(message)], message.created_at)
        tx.notify(run_changes.steer_topic(active.id))
        return MessageReply(message, active)
    if busy == "reject" and (blocker := active or next(iter(_queued(tx, session)), None)):
        raise SessionBusy(run_changes.state_of(blocker), {"run_id": blocker.id})
    if busy == "interrupt" and active is not None and active.is_held:
        raise SessionBusy(
            f"{run_changes.state_of(active)}: a message cannot interrupt it", {"run_id": active.id}
        )
    if busy == "interrupt":
        _interrupt(core, tx, session)
    message = user_message(
        core, session, source, text, core.config.ids("run"), images=options.images
    )
    is_next = busy == "interrupt"
    run = queue_run(
        core,
        tx,
        session,
        message,
        provider,
        priority=is_next,
        requested=requested,
        options=effective,
        sender_limits=sender_limits,
        field=field,
    )
    return MessageReply(message, run)


async def list_(core: Core, caller: Principal, command: ListMessages) -> MessagePage:
    def query(view: View) -> MessagePage:
        session_for(view, caller, Action.READ, command.session_id)

        def messages(after: str | None, limit: int) -> list[Message]:
            return view.messages(command.session_id, after=after, limit=limit, size=PAGE_SIZE)

        return MessagePage(*page(messages, command.cursor, command.limit))

    return await core.store.read(query)


def open_session(tx: Transaction, caller: Principal, action: Action, session_id: str) -> Session:
    """Return an open session if the caller may do the action with it; see :func:`session_for`.

    :raises SessionClosed: if it is closed.
    """
    session = session_for(tx, caller, action, session_id)
    require_open(session)
    return session


def require_open(session: Session) -> None:
    """Raise ``SessionClosed`` if the session is closed."""
    if session.status == "closed":
        raise SessionClosed(f"session {session.id} is closed", {"session_id": session.id})


def queue_run(
    core: Core,
    tx: Transaction,
    session: Session,
    message: Message,
    provider: str | None,
    *,
    priority: bool = False,
    requested: Confinement = DEFAULT_CONFINEMENT,
    options: TurnOptions = NO_OPTIONS,
    sender_limits: ChoiceLimits = NOTHING_CHOSEN,
    field: str = "text",
) -> Run:
    """Queue the run that delivers a message; its id is the message's ``run_id``.

    :param requested: the confinement of the message.
    :param options: the message's options for the model.
    :param sender_limits: the limits on what the sending agent may choose.
    :param field: the name of the text's field in errors.
    :raises InvalidRequest: if the provider cannot enforce the confinement, does not take an option, or
        the text is too long for it.
    :raises Unavailable: if the queue is full.
    """
    assert message.run_id is not None
    provider = provider_for(core, tx, session, provider)
    require_length(core, provider, message.text, field)
    if confinement := requested.or_else(Confinement.of(session)):
        require_supported(core, provider, confinement)
    check_options(core, provider, options)
    require_queue_room(core, tx, provider)
    run = queueing.enqueue(
        tx,
        session,
        run_id=message.run_id,
        message=message,
        provider=provider,
        options=with_default_model(core, session, provider, options),
        chosen=chosen_options(session, provider, options, sender_limits),
        at=message.created_at,
        confinement=requested,
        priority=priority,
    )
    store_images(tx, message, options.images)
    return run


def require_length(core: Core, provider: str, text: str, field: str) -> None:
    """Raise ``InvalidRequest``, naming the field, if a text is too long for the provider."""
    if excess := limit_of(core, provider).excess(text):
        raise InvalidRequest.of({field: f"is too long for the provider {provider!r}: {excess}"})


def require_queue_room(core: Core, tx: QueueQueries, provider: str) -> None:
    """Raise ``Unavailable`` if the queue is full. Manual runs need no worker and are not limited."""
    limit = core.config.max_queue
    if provider != MANUAL and tx.queue_is_full(limit):
        raise Unavailable(
            f"the queue is full: {limit} runs are queued",
            {"max_queue": limit},
            retry_after_s=QUEUE_RETRY_S,
        )


def user_message(
    core: Core,
    session: Session,
    source: Source,
    text: str,
    run_id: str,
    *,
    own_run_id: str | None = None,
    images: Sequence[ImageContent] = (),
) -> Message:
    """Return a message for an agent.

    :param run_id: the run that delivers it.
    :param own_run_id: for a steering message: the id of the run it gets if ``run_id`` does not take it.
    """
    return Message(
        id=core.config.ids("msg"),
        session_id=session.id,
        role="user",
        source=source,
        text=text,
        run_id=run_id,
        delivery="queued",
        created_at=core.now(),
        is_steering=own_run_id is not None,
        own_run_id=own_run_id,
        images=tuple(content.image for content in images),
    )


def _add_message(
    core: Core, tx: Transaction, session: Session, source: Source, command: SendMessage
) -> Message:
    draft = user_message(core, session, source, command.text, "")
    # No agent answers it, so recording it delivers it.
    message = evolve(draft, role=command.role, run_id=None, delivery="delivered")
    tx.add_message(message)
    tx.append(session.id, [run_changes.message_created_event(message)], message.created_at)
    return message


def _can_steer(
    tx: RunQueries, run: Run, provider: str | None, requested: Confinement, options: TurnOptions
) -> bool:
    """Return True if the running agent can take a message.

    It cannot if it is being canceled, or if the message has another provider, confinement, model or
    effort, an output schema, or images.
    """
    attempt = run_changes.current_attempt(tx, run)
    return (
        run.status is RunStatus.RUNNING
        and run.cancel_requested_at is None
        and provider in (None, run.provider)
        and requested.or_else(Confinement.of(run)) == Confinement.of(run)
        and options.fits(run)
        and attempt is not None
        and attempt.steerable
    )


def _interrupt(core: Core, tx: Transaction, session: Session) -> None:
    """Cancel the session's started runs, and the queued runs of earlier interrupts."""
    waiting = [run for run in _queued(tx, session) if run.priority and run.attempt == 1]
    agents = [run for run in transitions.started_runs(tx, session) if run.kind == "message"]
    for run in [*agents, *waiting]:
        transitions.request_cancel(
            core, tx, run, reason="interrupted by a newer message", cascade=True
        )


def _queued(tx: RunQueries, session: Session) -> list[Run]:
    return tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS)

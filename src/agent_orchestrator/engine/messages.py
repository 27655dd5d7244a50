"""Messages: put into a session, list."""

from collections.abc import Sequence

from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import InvalidRequest, SessionBusy, SessionClosed, Unavailable
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import MANUAL, Chosen, Message, Run, Session, Source
from agent_orchestrator.engine import queueing, run_changes, transitions
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.confinement import Confinement, require_permitted, require_supported
from agent_orchestrator.engine.core import MAX_READ_ROWS, QUEUE_RETRY_S, Change, Core
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
    with_inherited,
)
from agent_orchestrator.operations import (
    ListMessages,
    MessagePage,
    MessageReply,
    SendMessage,
    WhenBusy,
)
from agent_orchestrator.ports import Transaction, View


async def send(core: Core, caller: Principal, command: SendMessage) -> Change[MessageReply]:
    core.require_accepting()
    require_permitted(core, caller, command)
    asked = Confinement.of(command)
    if command.provider is not None:
        core.known_provider(command.provider)
    options = TurnOptions.of(command, await decode_uploads(command.images))
    if command.role != "user" and options.given:
        raise InvalidRequest.of(dict.fromkeys(sorted(options.given), "goes with the role user"))

    def change(tx: Transaction) -> MessageReply:
        session = open_session(tx, caller, Action.CONVERSE, command.session_id)
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
            asked=asked,
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
    asked: Confinement = Confinement(),  # noqa: B008 - it never changes
    options: TurnOptions = NO_OPTIONS,
    above: Chosen = NOTHING_CHOSEN,
    field: str = "text",
) -> MessageReply:
    """Hand a message to a session's agent: in a run of its own, or to the running one.

    :param options: what the message asks of the model.
    :param above: what was chosen for the agent that sends it; nothing where a person does.
    :param field: what the caller calls the text.
    :raises Forbidden: if the options exceed that.
    :raises InvalidRequest: naming that field, if the text is longer than the agent takes, or naming
        the options that the provider does not take.
    :raises SessionBusy: if it is to be rejected when a run is under way.
    :raises Unavailable: if the queue is full.
    """
    whole = options
    if above != NOTHING_CHOSEN:
        whole = with_inherited(core, core.provider_for(session, provider), options, above)
    active = None if busy == "queue" else tx.active_run(session.id)
    if (
        active is not None
        and busy == "steer"
        and _can_steer(tx, active, provider, asked, options)
        and is_at_most(active, above)
    ):
        require_length(core, active.provider, text, field)
        own_run_id = core.config.ids("run")
        message = user_message(core, session, source, text, active.id, own_run_id=own_run_id)
        tx.add_message(message)
        tx.append(session.id, [run_changes.message_created_event(message)], message.created_at)
        tx.notify(run_changes.steer_topic(active.id))
        return MessageReply(message, active)
    if busy == "reject" and (blocker := active or next(iter(_queued(tx, session)), None)):
        raise SessionBusy(
            f"run {blocker.id} of the session is {blocker.status}", {"run_id": blocker.id}
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
        asked=asked,
        options=whole,
        above=above,
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
    """Return a session that takes messages, and that the caller may do this with.

    :raises NotFound: if the caller may not know of it.
    :raises Forbidden: if it may only see it.
    :raises SessionClosed: if it is closed.
    """
    session = session_for(tx, caller, action, session_id)
    require_open(session)
    return session


def require_open(session: Session) -> None:
    """Do nothing, or refuse.

    :raises SessionClosed: if the session takes no messages.
    """
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
    asked: Confinement = Confinement(),  # noqa: B008 - it never changes
    options: TurnOptions = NO_OPTIONS,
    above: Chosen = NOTHING_CHOSEN,
    field: str = "text",
) -> Run:
    """Queue the run that delivers a message; its id is the message's ``run_id``.

    :param asked: how the message wants its agent confined.
    :param options: what the message asks of the model.
    :param above: what was chosen for the agent that sends it.
    :param field: what the caller calls the message's text.
    :raises InvalidRequest: if the provider cannot keep to that, or to what the session says, or
        takes no text of that length, or does not take an option.
    :raises Unavailable: if the queue is full.
    """
    assert message.run_id is not None
    provider = core.provider_for(session, provider)
    require_length(core, provider, message.text, field)
    if wanted := asked.or_else(Confinement.of(session)):
        require_supported(core, provider, wanted)
    check_options(core, provider, options)
    require_queue_room(core, tx, provider)
    run = queueing.enqueue(
        tx,
        session,
        run_id=message.run_id,
        message=message,
        provider=provider,
        model=options.model or core.model_of(session, provider),
        at=message.created_at,
        priority=priority,
        approval_policy=asked.approval_policy,
        sandbox=asked.sandbox,
        effort=options.effort,
        output_schema=options.output_schema,
        chosen=chosen_options(session, provider, options, above),
    )
    store_images(tx, message, options.images)
    return run


def require_length(core: Core, provider: str, text: str, field: str) -> None:
    """Do nothing, or refuse a text that no agent of the provider could be given.

    :raises InvalidRequest: naming the field.
    """
    if excess := limit_of(core, provider).excess(text):
        raise InvalidRequest.of({field: f"is too long for the provider {provider!r}: {excess}"})


def require_queue_room(core: Core, tx: Transaction, provider: str) -> None:
    """Do nothing, or refuse another run.

    :raises Unavailable: if the queue is full; manual runs wait for nobody's worker.
    """
    limit = core.config.max_queue
    if provider != MANUAL and tx.queue_is_full(limit):
        raise Unavailable(
            f"the queue is full: {limit} runs are waiting",
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
    """Return a message for an agent, to be delivered by a run.

    :param own_run_id: the run it becomes if that one, which is under way, does not take it.
    :param images: what the agent is to see with the text.
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
    note = user_message(core, session, source, command.text, "")
    # What is not for an agent to answer is where it belongs as soon as it is recorded.
    message = evolve(note, role=command.role, run_id=None, delivery="delivered")
    tx.add_message(message)
    tx.append(session.id, [run_changes.message_created_event(message)], message.created_at)
    return message


def _can_steer(
    tx: Transaction, run: Run, provider: str | None, asked: Confinement, options: TurnOptions
) -> bool:
    """Return whether the running agent takes the message.

    It does not if it is being stopped for good, or the message is for another provider, for an agent
    that is confined otherwise, for another model or effort, or has an output schema or images.
    """
    attempt = run_changes.current_attempt(tx, run)
    return (
        run.status is RunStatus.RUNNING
        and run.cancel_requested_at is None
        and provider in (None, run.provider)
        and asked.or_else(Confinement.of(run)) == Confinement.of(run)
        and options.fits(run)
        and attempt is not None
        and attempt.steerable
    )


def _interrupt(core: Core, tx: Transaction, session: Session) -> None:
    """Cancel the run that is under way, also one that is queued to go on, and what was to run in
    its place by an earlier interrupt.
    """
    waiting = [run for run in _queued(tx, session) if run.priority and run.attempt == 1]
    for run in [*transitions.started_runs(tx, session), *waiting]:
        transitions.request_cancel(
            core, tx, run, reason="interrupted by a newer message", cascade=True
        )


def _queued(tx: Transaction, session: Session) -> list[Run]:
    return tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS)

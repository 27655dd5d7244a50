"""The changes of a run's state, each with its events, written once for everyone who makes them.

These are functions of a transaction: the state, the log and the message's delivery change in one
commit or not at all.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import evolve, frozen

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.events import AGENT_EVENTS, EventType
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, Signal, is_terminal, step
from agent_orchestrator.domain.model import (
    MANUAL,
    ApprovalPolicy,
    Attempt,
    Chosen,
    Delivery,
    Message,
    Request,
    RequestStatus,
    Run,
    RunError,
    RunResult,
    Sandbox,
    Session,
    Source,
    Thread,
)
from agent_orchestrator.engine import images
from agent_orchestrator.engine.core import MAX_LOOK, Core
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.engine.prompts import cut, fitting, limit_of
from agent_orchestrator.engine.summaries import request_summary, text_summary
from agent_orchestrator.engine.turn_options import NO_OPTIONS, chosen_for, completed, together
from agent_orchestrator.fields import MAX_TEXT
from agent_orchestrator.ports import Draft, InputLimit, Runner, Transaction, View, capabilities_of
from agent_orchestrator.wire.codec import to_plain

QUEUE_TOPIC = "queue"
"""Rings when a worker may find something to do."""


MAX_HANDED: Final = 100
"""Outcomes of children that are handed over in one run."""

MAX_HANDED_SIZE: Final = 4 * 2**20
"""Characters after which no further outcome is looked at for one run."""


def cancel_topic(run_id: str) -> str:
    """Return the topic that rings when a run's cancel was asked for."""
    return f"cancel:{run_id}"


def steer_topic(run_id: str) -> str:
    """Return the topic that rings when a message for the running agent came."""
    return f"steer:{run_id}"


class StaleAttempt(Exception):
    """The run has moved on: what this attempt says no longer counts."""


def fenced(tx: Transaction, run_id: str, attempt: int) -> Run:
    """Return the run as it is, for a write of one of its attempts.

    :raises StaleAttempt: if that attempt is no longer the one executing it.
    """
    run = tx.run(run_id)
    if run is None or run.attempt != attempt or run.status not in ACTIVE:
        raise StaleAttempt(f"attempt {attempt} of {run_id}")
    return run


def log(tx: Transaction, run: Run, event_type: str, data: Mapping[str, Any], at: datetime) -> None:
    """Append an event of a run."""
    tx.append(run.session_id, [Draft(event_type, data, run.id, run.attempt)], at)


def message_event(message: Message) -> Draft:
    """Return the event that tells of a new message."""
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
    return Draft(EventType.MESSAGE_CREATED, data, message.run_id)


def enqueue(
    tx: Transaction,
    session: Session,
    *,
    run_id: str,
    message: Message | None,
    provider: str,
    model: str | None,
    at: datetime,
    interrupts: bool = False,
    is_new: bool = True,
    approval_policy: ApprovalPolicy | None = None,
    sandbox: Sandbox | None = None,
    effort: str | None = None,
    output_schema: Mapping[str, Any] | None = None,
    chosen: Chosen,
) -> Run:
    """Add a queued run and the message it delivers; one that is not new takes its new form.

    :param approval_policy: when its agent asks; as its session says without one.
    :param sandbox: what its commands may do, likewise.
    :param effort: reasoning effort; the provider's setting without one.
    :param output_schema: JSON Schema of its answer.
    :param chosen: what is chosen for its agent.
    """
    run = Run(
        id=run_id,
        session_id=session.id,
        message_id=message.id if message else None,
        parent_run_id=_set_to_work_by(tx, session, message),
        provider=provider,
        model=model,
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
        interrupts=interrupts,
        approval_policy=approval_policy or session.approval_policy,
        sandbox=sandbox or session.sandbox,
        effort=effort,
        output_schema=output_schema,
        chosen=chosen,
    )
    tx.add_run(run)
    drafts = []
    if message is not None and is_new:
        tx.add_message(message)
        drafts.append(message_event(message))
    elif message is not None:
        tx.put_message(evolve(message, run_id=run_id))
    queued = {"provider": provider, "message_id": run.message_id, "attempt": 1}
    drafts.append(Draft(EventType.RUN_QUEUED, queued, run.id, run.attempt))
    tx.append(session.id, drafts, at)
    if provider != MANUAL:
        tx.ring(QUEUE_TOPIC)
    return run


def _set_to_work_by(tx: Transaction, session: Session, message: Message | None) -> str | None:
    """Return the run whose cancel reaches a new run: the one above that told the session to work.

    Where that was nobody above, it is the one that spawned the session.
    """
    source = message.source if message is not None else None
    if source is not None and source.run_id is not None and source.session_id is not None:
        above = session.parent_session_id
        while above is not None:
            if above == source.session_id:
                return source.run_id
            parent = tx.session(above)
            above = parent.parent_session_id if parent else None
    return session.parent_run_id


def start(
    core: Core, tx: Transaction, run: Run, worker_id: str, *, token_hash: str | None = None
) -> Run:
    """Hand a queued run to a worker, or to the holder of a manual one.

    :param token_hash: of the token by which its agent acts as the run.
    """
    at = core.now()
    _take_along(core, tx, run, _session_of(tx, run))
    started = evolve(run, status=step(run.status, Signal.START), worker_id=worker_id, started_at=at)
    if (thread := tx.thread(run.session_id, run.provider)) is not None:
        started = evolve(started, thread_id=thread.id)  # it goes on with that, as far as is known
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


@frozen
class Ending:
    """How an attempt ended, as its worker saw it."""

    signal: Signal
    result: RunResult | None = None
    error: RunError | None = None
    exit_code: int | None = None
    reason: str | None = None
    stderr_tail: str = ""
    outcome: str | None = None
    """What became of the attempt, where the state its run goes to does not tell."""


_ENDED = {
    RunStatus.COMPLETED: EventType.RUN_COMPLETED,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELED: EventType.RUN_CANCELED,
}


def finish(core: Core, tx: Transaction, run: Run, ending: Ending) -> Run:
    """End an attempt: the run goes to a terminal state, or back to the queue."""
    at = core.now()
    if run.status is RunStatus.WAITING and ending.signal is Signal.COMPLETE:
        run = _resume(core, tx, run)  # its agent went on without the answer
    after = step(run.status, ending.signal)
    outcome = ending.outcome or str(after)
    amend_attempt(tx, run, ended_at=at, outcome=outcome, stderr_tail=ending.stderr_tail)
    if after is RunStatus.QUEUED:
        return _release(core, tx, run, ending, at)
    while pending := tx.requests(run_id=run.id, status="pending", limit=MAX_LOOK):
        for request in pending:
            _close(core, tx, request, "canceled")
    ended = evolve(
        run,
        status=after,
        result=ending.result,
        error=ending.error,
        exit_code=ending.exit_code,
        waiting_on=None,
        finished_at=at,
    )
    tx.put_run(ended)
    tx.forget_records_of(run.id)  # nobody can call as this run any more
    data: dict[str, Any] = {"attempt": run.attempt}
    if ending.result is not None:
        data["result"] = to_plain(ending.result)
    if ending.error is not None:
        data["error"] = to_plain(ending.error)
    if ending.exit_code is not None:
        data["exit_code"] = ending.exit_code
    reason = run.cancel_reason if after is RunStatus.CANCELED else ending.reason
    if reason is not None:
        data["reason"] = reason
    if run.usage is not None:
        data["usage"] = to_plain(run.usage)
    log(tx, ended, _ENDED[after], data, at)
    returned = _settle_messages(core, tx, ended, at)
    _tell_outcome(core, tx, ended, at)
    session = _session_of(tx, ended)
    if after is RunStatus.COMPLETED or (after is RunStatus.FAILED and _was_told(tx, run, returned)):
        # A cancel sets nobody to work, nor does a failure again with what it was given: that waits
        # for the next turn.
        hand_over_outcomes(core, tx, session, at)
    leave_to_people(core, tx, session)
    if _has_queued(tx, session):
        tx.ring(QUEUE_TOPIC)  # what waited behind this one may start
    return ended


def _settle_messages(core: Core, tx: Transaction, run: Run, at: datetime) -> set[str]:
    """Say what became of the messages of a run that has ended without word of their delivery, and forget
    the images of all.

    :return: the ids of those that wait again.
    """
    returned = set()
    delivery: Delivery = "delivered" if run.status is RunStatus.COMPLETED else "undeliverable"
    messages = tx.run_messages(run.id)
    images.forget(tx, messages)
    for message in messages:
        if message.delivery != "queued":
            continue
        if message.steers:
            _requeue(core, tx, run, evolve(message, steers=False), at)
        elif delivery == "undeliverable" and message.source.kind == "child":
            tx.put_message(evolve(message, run_id=None))  # it goes with the next turn
            returned.add(message.id)
        else:
            tx.put_message(evolve(message, delivery=delivery))
    return returned


def _was_told(tx: Transaction, run: Run, returned: Collection[str]) -> bool:
    """Return whether a child told an outcome while the run was being executed.

    :param returned: messages the run was given and did not deliver.
    """
    waiting = tx.waiting_messages(run.session_id, limit=MAX_HANDED, size=MAX_HANDED_SIZE)
    return run.started_at is not None and any(
        message.created_at >= run.started_at and message.id not in returned for message in waiting
    )


def _has_queued(tx: View, session: Session) -> bool:
    return bool(tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=1))


def _session_of(tx: Transaction, run: Run) -> Session:
    session = tx.session(run.session_id)
    assert session is not None
    return session


def _tell_outcome(core: Core, tx: Transaction, run: Run, at: datetime) -> None:
    """Record a child's outcome in its parent: as a message, and as an event."""
    child = _session_of(tx, run)
    parent = tx.session(child.parent_session_id) if child.parent_session_id else None
    if parent is None:
        return
    message = tell_parent(core, tx, parent, child, run, _outcome(core, parent, child, run))
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
    # Of the session, not of the run that spawned: that one may have ended long ago.
    tx.append(parent.id, [Draft(EventType.CHILD_FINISHED, finished)], at)


def tell_parent(
    core: Core,
    tx: Transaction,
    parent: Session,
    child: Session,
    run: Run,
    text: str,
    *,
    for_record: bool = False,
) -> Message:
    """Put a message of a child into its parent: on record, or also for the parent's agent.

    :param for_record: whatever the child's ``notify_parent`` says.
    :raises InvalidRequest: if the parent's agent takes no text of that length.
    """
    # Also for a parent that is closed: it may be opened again, and its agent gets it then.
    # A child that is canceled wakes nobody, not by its last words either: who cancels a tree does
    # not want its root at work again.
    wakes = (
        child.notify_parent == "wake"
        and not for_record
        and run.status is not RunStatus.CANCELED
        and run.cancel_requested_at is None
    )
    if wakes and (excess := limit_of(core, _provider_of(core, parent)).excess(text)):
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
    tx.append(parent.id, [message_event(message)], message.created_at)
    if wakes and tx.active_run(parent.id) is None:
        hand_over_outcomes(core, tx, parent, message.created_at)
    return message


def _outcome(core: Core, parent: Session, child: Session, run: Run) -> str:
    """Return the words that tell a child's outcome, cut to what the parent's agent takes at once."""
    name = f"{child.title} ({child.id})" if child.title else child.id
    if run.result is not None:
        head, said = f"Child session {name} completed:\n\n", run.result.text
    elif run.error is not None:
        head, said = f"Child session {name} failed: {run.error.code}: ", run.error.message
    else:
        return f"Child session {name} was {run.status}."
    where = f"run {run.id} has all {len(said):,} characters"
    # Cut first: of what may have many millions of characters only the beginning is looked at.
    return _cut(core, _provider_of(core, parent), head + said[: MAX_TEXT + 1], where)


def _cut(core: Core, provider: str, text: str, where: str) -> str:
    """Return a text as long as a message may be, and as an agent of the provider takes it."""
    note = f"cut here; {where}"
    text = cut(text, InputLimit(characters=MAX_TEXT), note)
    return cut(text, limit_of(core, provider), note)


def _provider_of(core: Core, session: Session) -> str:
    """Return the provider of what waits for a session's agent.

    Not checked: where it is gone, the run says so, and a child's end is recorded all the same.
    """
    return session.provider or core.config.routing.default


def hand_over_outcomes(core: Core, tx: Transaction, session: Session, at: datetime) -> None:
    """Queue a run for the children's outcomes that wait for a session's agent.

    None is needed where a run is queued that takes them along when it starts. The run has the place
    in the queue that the first outcome had when it came.
    """
    if session.status != "open":
        return
    waiting = tx.waiting_messages(session.id, limit=1)
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_LOOK)
    if not waiting or any(_takes_along(core, session, run) for run in queued):
        return
    run_id = waiting[0].own_run_id
    if run_id is None or tx.run(run_id) is not None:
        run_id = core.config.ids("run")  # the run of that name did not deliver it
    provider = _provider_of(core, session)
    above = _chosen_by_tellers(tx, session)
    options = completed(core, provider, NO_OPTIONS, above)
    wake = enqueue(
        tx,
        session,
        run_id=run_id,
        message=waiting[0],
        provider=provider,
        model=options.model or core.model_of(session, provider),
        at=at,
        is_new=False,
        effort=options.effort,
        chosen=chosen_for(session, provider, options, above),
    )
    _take_along(core, tx, wake, session)


def _chosen_by_tellers(tx: Transaction, session: Session) -> Chosen:
    """Return what was chosen for the runs of a session that set the children to work whose outcomes wait.

    The run that they wake goes on for these.
    """
    waiting = tx.waiting_messages(session.id, limit=MAX_HANDED, size=MAX_HANDED_SIZE)
    chosen = Chosen()
    for told_by in dict.fromkeys(message.source.run_id for message in waiting):
        child = tx.run(told_by) if told_by is not None else None
        above = tx.run(child.parent_run_id) if child and child.parent_run_id else None
        if above is not None and above.session_id == session.id:
            chosen = together(chosen, above.chosen)
    return chosen


def _takes_along(core: Core, session: Session, run: Run) -> bool:
    """Return whether a run is for the session's own agent, confined as the session says."""
    confined = (run.approval_policy, run.sandbox) == (session.approval_policy, session.sandbox)
    return confined and run.provider == _provider_of(core, session)


def _take_along(core: Core, tx: Transaction, run: Run, session: Session) -> None:
    """Have a run deliver the children's outcomes that wait, too: as many as its agent takes at once.

    The rest waits for the next turn. So do all, where a run is queued for one that came before.
    """
    waiting = tx.waiting_messages(session.id, limit=MAX_HANDED, size=MAX_HANDED_SIZE)
    if not waiting or not _takes_along(core, session, run):
        return
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_LOOK)
    if any(other.id != run.id and _is_told_by_child(tx, other) for other in queued):
        return
    given = tx.run_messages(run.id)
    together = fitting([*given, *waiting][:MAX_HANDED], limit_of(core, run.provider))
    for message in waiting[: max(0, together - len(given))]:
        tx.put_message(evolve(message, run_id=run.id))


def _is_told_by_child(tx: Transaction, run: Run) -> bool:
    message = tx.message(run.message_id) if run.message_id else None
    return message is not None and message.source.kind == "child"


def _release(core: Core, tx: Transaction, run: Run, ending: Ending, at: datetime) -> Run:
    if run.status is RunStatus.WAITING:
        for request in _waited_for(tx, run):
            _close(core, tx, request, "canceled")
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
        "reason": ending.reason,
    }
    log(tx, released, EventType.RUN_QUEUED, data, at)
    tx.ring(QUEUE_TOPIC)
    return released


def _requeue(core: Core, tx: Transaction, run: Run, message: Message, at: datetime) -> None:
    """Make a run of its own of a message that a run was to give its agent and did not.

    It comes before what was queued after the message.
    """
    enqueue(
        tx,
        _session_of(tx, run),
        run_id=message.own_run_id or core.config.ids("run"),
        message=message,
        provider=run.provider,
        model=run.model,
        at=at,
        # Without a name from before it would come last: it belongs to what is under way.
        interrupts=message.own_run_id is None,
        is_new=False,
        approval_policy=run.approval_policy,
        sandbox=run.sandbox,
        effort=run.effort,
        chosen=run.chosen,
    )


def current_attempt(view: View, run: Run) -> Attempt | None:
    """Return the record of the attempt the run is at."""
    return next((one for one in view.attempts(run.id) if one.attempt == run.attempt), None)


def amend_attempt(tx: Transaction, run: Run, **changes: Any) -> None:
    """Change the record of the attempt the run is at."""
    if (attempt := current_attempt(tx, run)) is not None:
        tx.put_attempt(evolve(attempt, **changes))


# --- waiting for an answer --------------------------------------------------------------------


def wait_for(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    """Open a request the run cannot go on without.

    A run that waits already comes to it when what it waits for is closed.
    """
    status = run.status
    if status is not RunStatus.WAITING:
        status = step(status, Signal.WAIT)
    tx.add_request(request)
    if status is not run.status:
        _wait_on(core, tx, evolve(run, status=status), request)
    tell_of_request(core, tx, request)


def _wait_on(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    waiting = evolve(run, waiting_on=request.id)
    tx.put_run(waiting)
    log(tx, waiting, EventType.RUN_WAITING, {"request_id": request.id}, core.now())


def _waited_for(tx: Transaction, run: Run) -> list[Request]:
    """Return the open requests the run cannot go on without, the oldest first."""
    pending = tx.requests(run_id=run.id, status="pending", limit=MAX_LOOK)
    return [request for request in pending if request.wait]


def tell_of_request(
    core: Core,
    tx: Transaction,
    request: Request,
    event_type: EventType = EventType.REQUEST_CREATED,
) -> None:
    """Write where a request stands into the log of its session, and in short into all above it."""
    whole = to_plain(request)
    draft = Draft(event_type, whole)
    in_short = Draft(event_type, request_summary(whole))
    above: str | None = request.session_id
    while above is not None:
        tx.append(above, [draft], core.now())
        session = tx.session(above)
        above, draft = session.parent_session_id if session else None, in_short


DECIDED: Final = frozenset({"approved", "denied", "answered", "expired"})
"""The states of a request that tell its agent something; not so one it withdrew itself."""


def close_request(core: Core, tx: Transaction, request: Request, status: RequestStatus) -> Request:
    """Close an open request; the run that waits for it goes on, or waits for the next.

    Where its agent is gone meanwhile, the answer is its next message, and a run that waits for
    nothing more goes back to the queue.
    """
    closed = _close(core, tx, request, status)
    run = tx.run(request.run_id)
    if run is None or run.status is not RunStatus.WAITING or not request.wait:
        return closed
    has_agent = run.worker_id is not None
    if not has_agent:
        owe_answer(core, tx, run, closed)
    if run.waiting_on != request.id:
        return closed
    if left := _waited_for(tx, run):
        _wait_on(core, tx, run, left[0])
        return closed
    if has_agent:
        _resume(core, tx, run)
        return closed
    now = core.now()
    queued = evolve(run, status=step(run.status, Signal.RELEASE), waiting_on=None)
    tx.put_run(queued)
    data = {"provider": run.provider, "attempt": run.attempt, "reason": "the answer is there"}
    log(tx, queued, EventType.RUN_QUEUED, data, now)
    tx.ring(QUEUE_TOPIC)
    return closed


def owe_answer(core: Core, tx: Transaction, run: Run, request: Request) -> None:
    """Make a decision the next message of a run whose agent did not get it.

    The gateway writes it, so its role is ``system``; its source is who decided.
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
        text=_cut(
            core, run.provider, _answer(request), f"request {request.id} has the whole answer"
        ),
        run_id=run.id,
        delivery="queued",
        created_at=core.now(),
        request_id=request.id,
    )
    tx.add_message(message)
    tx.append(run.session_id, [message_event(message)], message.created_at)


def is_note(message: Message) -> bool:
    """Return whether a run's message is a note of what became of the attempt before."""
    return message.role == "system" and message.request_id is None


def withdraw(core: Core, tx: Transaction, request_ids: Iterable[str]) -> None:
    """Close what an agent does not want to know any more; its run goes on."""
    for request_id in request_ids:
        request = tx.request(request_id)
        if request is not None and request.is_open:
            close_request(core, tx, request, "canceled")


def untold_answer(
    tx: Transaction, run: Run, told: Collection[str], stopped_at: datetime
) -> Request | None:
    """Return the request that was decided last in this attempt, if its agent may not know how.

    :param told: those whose answers it is known to have got. Of others it has if it has said
        something since, before it was stopped.
    """
    last = tx.last_resolved(run.id, run.attempt, statuses=DECIDED, told=told)
    if last is None or last.resolved_at is None:
        return None
    said_at = tx.last_output_at(run, attempt=run.attempt)
    if said_at is None or said_at <= last.resolved_at:
        return last
    if said_at <= stopped_at:
        return None
    # It said something while it was being stopped; whether also before, its last events tell.
    after = max(0, _session_of(tx, run).last_seq - MAX_LOOK)
    while recent := tx.events(run.session_id, after=after, limit=MAX_LOOK, size=BATCH_SIZE):
        if any(
            (event.run_id, event.attempt) == (run.id, run.attempt)
            and event.event_type in AGENT_EVENTS
            and last.resolved_at < event.created_at <= stopped_at
            for event in recent
        ):
            return None
        after = recent[-1].seq
    return last


def _close(core: Core, tx: Transaction, request: Request, status: RequestStatus) -> Request:
    closed = evolve(request, status=status, resolved_at=core.now())
    tx.put_request(closed)
    tell_of_request(core, tx, closed, EventType.REQUEST_RESOLVED)
    return closed


def under_way(tx: View, session: Session) -> list[Run]:
    """Return the runs of a session that have begun: the active one, and one queued to go on."""
    active = tx.active_run(session.id)
    queued = tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_LOOK)
    goes_on = [run for run in queued if run.attempt > 1]
    return goes_on if active is None else [active, *goes_on]


def has_agent(tx: View, session: Session) -> bool:
    """Tell whether a session's agent is there to answer: at work, or about to be."""
    if session.status == "closed":
        return False
    if tx.active_run(session.id) is not None:
        return True
    return _has_queued(tx, session)


def ask_people(core: Core, tx: Transaction, request: Request) -> None:
    """Call on people to answer a request that its parent's agent has not answered."""
    asked: Request = evolve(request, audience="people", people_at=core.now())
    tx.put_request(asked)
    tell_of_request(core, tx, asked, EventType.REQUEST_UPDATED)


def leave_to_people(core: Core, tx: Transaction, session: Session) -> None:
    """Put what a session's agent was asked to people, if that agent is there no more."""
    while (asked := tx.parent_requests(session.id, limit=MAX_LOOK)) and not has_agent(tx, session):
        for request in asked:
            ask_people(core, tx, request)


def _answer(request: Request) -> str:
    text = f"Your request was {request.status}: {request.text}"
    return f"{text}\n\n{request.answer}" if request.answer else text


def _resume(core: Core, tx: Transaction, run: Run) -> Run:
    resumed = evolve(run, status=step(run.status, Signal.RESUME), waiting_on=None)
    tx.put_run(resumed)
    log(tx, resumed, EventType.RUN_RESUMED, {"request_id": run.waiting_on}, core.now())
    return resumed


def park(
    core: Core,
    tx: Transaction,
    run: Run,
    *,
    stderr_tail: str = "",
    outcome: str = RunStatus.WAITING,
) -> Run:
    """Leave a run waiting without an agent: its next attempt begins when the answer is there."""
    amend_attempt(tx, run, ended_at=core.now(), outcome=str(outcome), stderr_tail=stderr_tail)
    parked = evolve(run, attempt=run.attempt + 1, worker_id=None)
    tx.put_run(parked)
    data = {"request_id": run.waiting_on, "parked": True}
    log(tx, parked, EventType.RUN_WAITING, data, core.now())
    return parked


def untaken(view: View, run_id: str) -> list[Message]:
    """Return what came for a run's agent while it works and it has not taken, in order."""
    return [one for one in view.run_messages(run_id) if _is_untaken(one)]


def _is_untaken(message: Message) -> bool:
    return message.steers and message.delivery == "queued"


def for_prompt(core: Core, tx: Transaction, run: Run, thread: Thread | None) -> list[Message]:
    """Return what an attempt that begins is to give its agent: as much as it takes at once.

    What came for the agent of one before, and was not taken, is among it: it steers nobody any more.
    The rest follows: outcomes of children wait for the next turn, other messages become runs.

    :param thread: the conversation it goes on with, if its session has one.
    """
    messages = []
    for message in tx.run_messages(run.id):
        if _is_untaken(message):
            message = evolve(message, steers=False)  # noqa: PLW2901
            tx.put_message(message)
        messages.append(message)
    config = core.config.providers.get(run.provider)
    given = messages if config is None else unheard(messages, thread, config.runner)
    fit = fitting(given, limit_of(core, run.provider))
    later = given[fit:]
    for message in later:
        put_off = evolve(message, delivery="queued", given_in=None)
        if message.source.kind == "child":
            tx.put_message(evolve(put_off, run_id=None))
        elif is_note(message):  # of no use by itself
            tx.put_message(evolve(message, delivery="undeliverable"))
        else:
            _requeue(core, tx, run, put_off, core.now())
    return [message for message in messages if message not in later]


def unheard(
    messages: Sequence[Message], thread: Thread | None, runner: Runner
) -> Sequence[Message]:
    """Return those of a run's messages that its agent is to be given: where it goes on with a
    conversation, only those that the conversation does not have.
    """
    fresh = [message for message in messages if message.delivery == "queued"]
    resumes = capabilities_of(runner).resumes
    return fresh if thread is not None and fresh and resumes else messages


def mark_delivered(tx: Transaction, message_id: str | None, attempt: int) -> None:
    """Record that the agent has the message, and by which attempt of its run."""
    message = tx.message(message_id) if message_id else None
    if message is not None and message.delivery != "delivered":
        tx.put_message(evolve(message, delivery="delivered", given_in=attempt))


def _stop_steering(tx: Transaction, run: Run, canceled: Collection[str]) -> None:
    """Keep what a run was to be told on its way from becoming a run of its own, where that would be
    reached by the cancel of one above as the run itself is.
    """
    if not canceled:
        return
    session = _session_of(tx, run)
    for message in untaken(tx, run.id):
        if _set_to_work_by(tx, session, message) in canceled:
            tx.put_message(evolve(message, delivery="undeliverable"))


def request_cancel(
    core: Core, tx: Transaction, run: Run, *, reason: str | None, cascade: bool
) -> list[str]:
    """Record that a run shall end, with its descendants; end at once what no worker has.

    :return: the runs that were not yet at their end, this one first.
    """
    reached = []
    pending = [run]
    passed: set[str] = set()
    while pending:
        current = pending.pop(0)
        if cascade:
            pending += tx.child_runs(current.id)
        if is_terminal(current.status):
            passed.add(current.id)
            continue
        _stop_steering(tx, current, passed)
        passed.add(current.id)
        reached.append(current.id)
        if current.cancel_requested_at is None:
            current = evolve(current, cancel_requested_at=core.now(), cancel_reason=reason)
            tx.put_run(current)
        if current.worker_id is None or current.provider == MANUAL:
            finish(core, tx, current, Ending(Signal.CANCEL))
        else:
            tx.ring(cancel_topic(current.id))
    return reached

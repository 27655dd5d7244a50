"""Requests of runs to their parents or to people: the calls, and their deadlines."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta
from functools import cache
from operator import attrgetter
from typing import Final

import anyio
from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal, Visibility
from agent_orchestrator.domain.approvals import (
    RESOLUTIONS,
    decide,
    policy_for,
    problem_of_options,
)
from agent_orchestrator.domain.errors import (
    AlreadyResolved,
    Conflict,
    Forbidden,
    InvalidRequest,
    Unavailable,
)
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import (
    Approvals,
    Decision,
    Request,
    Run,
    Session,
)
from agent_orchestrator.engine import questions, results
from agent_orchestrator.engine.access import (
    access_topics,
    device_of,
    request_for,
    run_for,
    session_for,
    visibility,
    visibility_below,
)
from agent_orchestrator.engine.core import MAX_READ_ROWS, Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.fields import MAX_QUESTION
from agent_orchestrator.operations.requests import (
    ExtendRequest,
    GetRequest,
    ListRequests,
    ReplyParent,
    ReplyParentReply,
    RequestPage,
    RequestReply,
    ResolveReply,
    ResolveRequest,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import MessageQueries, RequestQueries, View
from agent_orchestrator.wire.codec import deadline_key
from agent_orchestrator.wire.strict_json import json_copy

logger = logging.getLogger("agent_orchestrator.requests")

LONGEST_PAUSE_S: Final = 60.0
"""Maximum seconds between two reads of the clock while a request is pending."""

DUE_RETRY_S: Final = 1.0
"""Seconds until due requests are handled again after the store was unavailable."""

MIN_EXTENSION: Final = 0.01
"""Minimum gain of an extension, as a share of its ``expires_in_s``. If a request's end would move by
less, the extension is ignored, because each one is logged in all ancestors."""

DUE_BATCH: Final = 100
"""Maximum number of due requests handled in a commit."""

MAX_PENDING: Final = 64
"""Maximum number of open requests of a run, so that an agent cannot flood people."""

MAX_NOTES: Final = 1_000
"""Number of messages to its parent, questions included, after which a run may send only questions. A run
in a loop could fill the parent's conversation and the disk."""

MAX_QUESTIONS: Final = 10_000
"""Number of messages to its parent after which a run may send no question either. :data:`MAX_PENDING` is
not enough, because a policy or a short time may close each question at once."""

WARNING_S: Final = 3600.0
"""Seconds from the warning until a request expires, or a quarter of its time if that is shorter."""

POLICY: Final = "policy"
"""The ``decided_by`` of a request that a policy decided."""

_BY_POLICY: Final[Mapping[Approvals, Decision]] = {"allow": "approve", "deny": "deny"}
"""The decisions of the policies that decide without asking."""


async def reply_parent(
    core: Core, caller: Principal, command: ReplyParent
) -> Change[ReplyParentReply]:
    if command.request_kind is None:
        for name in ("detail", "options", "wait"):
            if getattr(command, name):
                raise InvalidRequest.of({name: "needs a request_kind"})

    def change(tx: Transaction) -> ReplyParentReply:
        run, session = run_for(tx, caller, Action.SPEAK, command.run_id)
        return send_to_parent(core, tx, run, session, command)

    return change


def send_to_parent(
    core: Core,
    tx: Transaction,
    run: Run,
    session: Session,
    command: ReplyParent,
) -> ReplyParentReply:
    """Send a run's message to its parent, and open the request of a question.

    :raises InvalidRequest: if the question is too long.
    :raises Conflict: if a message has no parent to go to, the run of a question is canceled, or a limit is
        reached.
    """
    parent = tx.session(session.parent_session_id) if session.parent_session_id else None
    if parent is None and command.request_kind is None:
        raise Conflict(f"run {run.id} has no parent", {"run_id": run.id})
    if command.request_kind is None:
        assert parent is not None
        _check_message_limit(tx, run, "notes", MAX_NOTES)
        message = results.send_to_parent(core, tx, parent, session, run, command.text)
        return ReplyParentReply(message, parent.id, None)
    if len(command.text) > MAX_QUESTION:
        problem = f"must be at most {MAX_QUESTION:,} characters in a question"
        raise InvalidRequest.of({"text": f"{problem}, is {len(command.text):,}"})
    if problems := problem_of_options(command.offered or ()):
        raise InvalidRequest.of(problems)
    policy = policy_for(command.request_kind, core.approvals_of(session, run.provider))
    sent = None
    if parent is not None:
        _check_message_limit(tx, run, "questions", MAX_QUESTIONS)
        sent = results.send_to_parent(
            core, tx, parent, session, run, command.text, for_record=policy != "ask-parent"
        )
    request = _open(core, tx, run, session, parent, command, policy)
    return ReplyParentReply(sent, parent.id if parent else None, request)


def _open(
    core: Core,
    tx: Transaction,
    run: Run,
    session: Session,
    parent: Session | None,
    command: ReplyParent,
    policy: Approvals,
) -> Request:
    assert command.request_kind is not None
    if run.cancel_requested_at is not None:
        raise Conflict(f"run {run.id} is canceled: it cannot ask any more", {"run_id": run.id})
    now = core.now()
    is_for_parent = (
        policy == "ask-parent" and parent is not None and questions.has_active_agent(tx, parent)
    )
    # The parent gets at most half of the question's time.
    parent_s = min(core.config.parent_answer_s, command.expires_in_s / 2) if is_for_parent else 0
    policy_decision = _BY_POLICY.get(policy)
    request = Request(
        id=core.config.ids("req"),
        session_id=session.id,
        run_id=run.id,
        attempt=run.attempt,
        root_session_id=session.root_session_id,
        parent_session_id=parent.id if parent else None,
        kind=command.request_kind,
        text=command.text,
        detail=None if command.detail is None else json_copy(command.detail),
        options=command.offered,
        status="pending",
        decision=None,
        answer=None,
        scope=None,
        decided_by=None,
        created_at=now,
        expires_at=now + timedelta(seconds=command.expires_in_s),
        warn_at=_warn_at(now, command.expires_in_s),
        resolved_at=None,
        approvals=policy,
        audience=None if policy_decision else "parent" if is_for_parent else "human",
        human_at=None if policy_decision else now + timedelta(seconds=parent_s),
        wait=command.wait and policy_decision is None,
    )
    if policy_decision is not None:
        tx.add_request(request)
        questions.log_request(core, tx, request)
        return _close(core, tx, evolve(decide(request, policy_decision), decided_by=POLICY))
    _check_pending(tx, run)
    if command.wait:
        questions.open_request(core, tx, run, request)
    else:
        tx.add_request(request)
        questions.log_request(core, tx, request)
    return request


def _warn_at(now: datetime, expires_in_s: float) -> datetime:
    """Return when a request that expires in this many seconds logs its warning."""
    return now + timedelta(seconds=expires_in_s - min(expires_in_s / 4, WARNING_S))


def _check_message_limit(tx: MessageQueries, run: Run, limit: str, maximum: int) -> None:
    """Raise ``Conflict`` if the run has sent as many messages to its parent as the limit allows."""
    if tx.child_message_count(run.id, limit=maximum) >= maximum:
        raise Conflict(
            f"run {run.id} has sent {maximum:,} messages to its parent, which is the limit for {limit}",
            {"limit": limit, "most": maximum},
        )


def _check_pending(tx: RequestQueries, run: Run) -> None:
    """Raise ``Conflict`` if the run has as many open requests as it may."""
    if len(tx.requests(run_id=run.id, status="pending", limit=MAX_PENDING)) >= MAX_PENDING:
        raise Conflict(
            f"a run can have at most {MAX_PENDING} open requests",
            {"limit": "requests", "most": MAX_PENDING},
        )


async def list_(core: Core, caller: Principal, command: ListRequests) -> RequestPage:
    by_deadline = command.order == "deadline"
    if by_deadline and command.status not in (None, "pending"):
        problem = "`deadline` lists open requests only: omit `status`, or set it to `pending`"
        raise InvalidRequest.of({"order": problem})

    def query(view: View) -> RequestPage:
        for session_id in (command.session_id, command.root_session_id):
            if session_id is not None:
                session_for(view, caller, Action.READ, session_id)
        within = visibility(view, caller)
        resolvable = command.resolvable
        if resolvable is None:
            resolvable = command.session_id is None and command.root_session_id is None

        def fetch(after: str | None, limit: int) -> list[Request]:
            return view.requests(
                within=within,
                status=command.status,
                session_id=command.session_id,
                root_session_id=command.root_session_id,
                resolvable=resolvable,
                order=command.order,
                after=after,
                limit=limit,
                size=PAGE_SIZE,
            )

        cursor_of = deadline_key if by_deadline else attrgetter("id")
        matches = _filter(view, command)
        return RequestPage(
            *page(fetch, command.cursor, command.limit, cursor_of=cursor_of, matches=matches)
        )

    return await core.store.read(query)


def _filter(view: View, command: ListRequests) -> Callable[[Request], bool] | None:
    """Return whether a request matches a search; None without one."""
    words, provider = command.q, command.provider
    if words is None and provider is None:
        return None

    @cache
    def title(session_id: str) -> str | None:
        session = view.session(session_id)
        return None if session is None else session.title

    @cache
    def provider_of(run_id: str) -> str | None:
        if attempts := view.attempts(run_id):  # without the run's result, which may be long
            return attempts[-1].provider
        run = view.run(run_id)
        return None if run is None else run.provider

    def matches(request: Request) -> bool:
        texts = (request.id, request.text, title(request.session_id))
        return (words is None or has_words(words, texts)) and (
            provider is None or provider_of(request.run_id) == provider
        )

    return matches


async def get(core: Core, caller: Principal, command: GetRequest) -> RequestReply:
    def query(view: View) -> Request:
        return request_for(view, caller, Action.READ, command.request_id)

    with core.notifier.subscribe(f"request:{command.request_id}", *access_topics(caller)) as waiter:
        request = await core.store.read(query)
        if request.is_open and command.wait_s:
            is_own = caller.run is not None and caller.run.run_id == request.run_id
            released = core.workers.released(request.run_id) if is_own else nullcontext()
            with released, anyio.move_on_after(command.wait_s):
                while request.is_open:
                    await waiter.wait()
                    waiter.clear()
                    request = await core.store.read(query)
    return RequestReply(request)


async def resolve(core: Core, caller: Principal, command: ResolveRequest) -> Change[ResolveReply]:
    def change(tx: Transaction) -> ResolveReply:
        request = _request_to_decide(tx, caller, command.request_id)
        if not request.is_open:
            with suppress(InvalidRequest):
                if _decided(command, request) == request:
                    return ResolveReply(request, decided_now=False)
            raise _closed(request)
        device = device_of(tx, caller)
        decided = evolve(
            _decided(command, request),
            decided_by=caller.id,
            decided_on=None if device is None else device.name,
            decided_on_id=None if device is None else device.id,
        )
        return ResolveReply(_close(core, tx, decided))

    return change


def _decided(command: ResolveRequest, request: Request) -> Request:
    return decide(
        request, command.decision, option=command.option, scope=command.scope, text=command.text
    )


def _close(core: Core, tx: Transaction, decided: Request) -> Request:
    assert decided.decision is not None
    resolution = RESOLUTIONS[decided.kind, decided.decision]
    return questions.close_request(core, tx, decided, resolution.status)


async def extend(core: Core, caller: Principal, command: ExtendRequest) -> Change[RequestReply]:
    def change(tx: Transaction) -> RequestReply:
        request = _request_to_decide(tx, caller, command.request_id)
        if not request.is_open:
            raise _closed(request)
        now = core.now()
        expires_at = now + timedelta(seconds=command.expires_in_s)
        gained_s = (expires_at - request.expires_at).total_seconds()
        if gained_s < command.expires_in_s * MIN_EXTENSION:
            return RequestReply(request)
        warn_at = _warn_at(now, command.expires_in_s)
        extended = evolve(request, expires_at=expires_at, warn_at=warn_at, warned=False)
        tx.put_request(extended)
        questions.log_request(core, tx, extended, EventType.REQUEST_EXTENDED)
        return RequestReply(extended)

    return change


def _request_to_decide(tx: Transaction, caller: Principal, request_id: str) -> Request:
    """Return a request that the caller may resolve.

    :raises NotFound: if the caller may not see it.
    :raises Forbidden: if it may only see it.
    """
    request = request_for(tx, caller, Action.RESOLVE, request_id)
    if caller.run is not None and request.approvals == "ask-human":
        raise Forbidden(
            f"only a person can resolve request {request.id}", {"request_id": request.id}
        )
    return request


def _closed(request: Request) -> AlreadyResolved:
    return AlreadyResolved(
        f"request {request.id} is already {request.status}",
        {"request_id": request.id, "status": request.status},
    )


async def watch_deadlines(core: Core) -> None:
    """Escalate, warn of and expire requests when they are due, as long as the engine runs."""
    with core.notifier.subscribe("requests") as waiter:
        while True:
            waiter.clear()
            try:
                delay = await _next_due(core)
            except Unavailable as error:
                logger.warning("due requests cannot be handled now, trying again: %s", error)
                delay = DUE_RETRY_S
            # The pause is bounded, because the clock may be set and the machine may sleep.
            with anyio.move_on_after(
                min(delay, LONGEST_PAUSE_S) if delay < float("inf") else delay
            ):
                await waiter.wait()


async def _next_due(core: Core) -> float:
    """Handle due requests, and return the seconds until the next one is due."""
    while (due := await core.store.read(lambda view: view.next_due())) is not None:
        if (delay := (due - core.now()).total_seconds()) > 0:
            return delay
        await core.store.transact(lambda tx: _handle_due(core, tx))
    return float("inf")


def _handle_due(core: Core, tx: Transaction) -> None:
    now = core.now()
    for request in tx.expired_requests(now, DUE_BATCH):
        questions.close_request(core, tx, request, "expired")
    for request in tx.requests_to_escalate(now, DUE_BATCH):
        questions.escalate(core, tx, request)
    for request in tx.requests_to_warn(now, DUE_BATCH):
        warned = evolve(request, warned=True)
        tx.put_request(warned)
        questions.log_request(core, tx, warned, EventType.REQUEST_EXPIRING)


def attention(
    view: View, run: Run, caller: Principal, ignored: Collection[str] = ()
) -> Request | None:
    """Return the oldest open request of a run or of its session's descendants.

    Requests that only people may resolve are left out for agents.

    :param ignored: ids of requests to leave out.
    """
    session = view.session(run.session_id)
    if session is None:
        return None
    for request in view.requests(status="pending", run_id=run.id, limit=MAX_READ_ROWS):
        if _is_shown_to(caller, request) and request.id not in ignored:
            return request
    for request in _pending(view, visibility_below(view, caller), session.root_session_id):
        if not _is_shown_to(caller, request) or request.id in ignored:
            continue
        ancestor_id: str | None = request.parent_session_id
        while ancestor_id is not None:
            if ancestor_id == session.id:
                return request
            parent = view.session(ancestor_id)
            ancestor_id = parent.parent_session_id if parent else None
    return None


def _is_shown_to(caller: Principal, request: Request) -> bool:
    return caller.run is None or request.approvals != "ask-human"


def _pending(view: RequestQueries, within: Visibility, root_session_id: str) -> Iterator[Request]:
    """Yield the open requests of a tree, the oldest first."""
    after = None
    while page := view.requests(
        within=within,
        status="pending",
        root_session_id=root_session_id,
        after=after,
        limit=MAX_READ_ROWS,
    ):
        yield from page
        after = page[-1].id

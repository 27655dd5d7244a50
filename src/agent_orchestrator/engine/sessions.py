"""The calls for sessions: create, read, list, update, close."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import evolve, frozen

from agent_orchestrator.domain.access import Action, Principal, Visibility
from agent_orchestrator.domain.approvals import DEFAULT, is_looser
from agent_orchestrator.domain.errors import InvalidRequest, SessionBusy
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Run, Session, Source
from agent_orchestrator.engine import (
    inbox,
    limits,
    messages,
    placement,
    pruning,
    questions,
    results,
    run_changes,
    session_states,
    steering,
    transitions,
)
from agent_orchestrator.engine.access import (
    forbid_runs,
    require_active,
    require_scope,
    session_for,
    visibility,
)
from agent_orchestrator.engine.children import child_workspace
from agent_orchestrator.engine.confinement import Confinement, require_permitted, require_supported
from agent_orchestrator.engine.core import MAX_READ_ROWS, Change, Core
from agent_orchestrator.engine.daemons import known_provider
from agent_orchestrator.engine.images import decode_uploads
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.engine.placement import Place
from agent_orchestrator.engine.turn_options import TurnOptions
from agent_orchestrator.operations.sessions import (
    CloseSession,
    CloseSessionReply,
    CreateSession,
    CreateSessionReply,
    GetSession,
    ListSessions,
    SessionPage,
    SessionReply,
    UpdateSession,
)
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import RunQueries, SessionQueries, View
from agent_orchestrator.wire.strict_json import json_copy

CLOSE_REASON: Final = "its session was closed"
"""The cancel reason of a closed tree's runs."""


async def create(
    core: Core, caller: Principal, command: CreateSession
) -> Change[CreateSessionReply]:
    forbid_runs(caller)
    core.require_accepting()
    if command.approvals is not None and is_looser(command.approvals, DEFAULT):
        # A looser policy approves future requests of the session's agents.
        require_scope(core, caller, "approve")
    require_permitted(core, caller, command)
    if command.provider is not None:
        require_supported(core, command.provider, Confinement.of(command))
    options = TurnOptions.of_first_message(command, await decode_uploads(command.images))
    if command.text is None and options.names:
        problem = "needs `text`, as it is for the first message"
        raise InvalidRequest.of(dict.fromkeys(sorted(options.names), problem))
    session_limits = limits.session_limits(core, command, None)
    routing = core.config.routing
    host = core.config.host.id
    if command.host or command.labels or command.preferred_labels:
        placement.require_directory(command, command.cwd)
        provider = command.provider or routing.default

        def choose(view: View) -> str:
            require_active(view, caller)
            return placement.chosen_host(core, view, command, host, provider)

        host = await core.store.read(choose)
    if core.is_here(host):
        cwd = await core.workspace(command.cwd or core.config.cwd)
    else:
        cwd = placement.directory_elsewhere(host, command.cwd)

    def change(tx: Transaction) -> CreateSessionReply:
        require_active(tx, caller)
        if command.provider is not None:
            known_provider(core, tx, command.provider, host)
        now = core.now()
        session_id = core.config.ids("ses")
        session = Session(
            id=session_id,
            title=command.title,
            owner=caller.id,
            provider=command.provider or (routing.default if routing.prefer else None),
            model=command.model,
            cwd=cwd,
            status="open",
            parent_session_id=None,
            parent_run_id=None,
            root_session_id=session_id,
            depth=0,
            metadata=json_copy(command.metadata or {}),
            threads={},
            last_seq=0,
            created_at=now,
            updated_at=now,
            approvals=command.approvals,
            approval_policy=command.approval_policy,
            sandbox=command.sandbox,
            notices=command.notices or "default",
            host=host,
            retain_days=command.retain_days,
            retain_events=command.retain_events,
            retain_bytes=command.retain_bytes,
            **session_limits,
        )
        tx.add_session(session)
        data = {"title": session.title, "provider": session.provider, "cwd": session.cwd}
        last_seq = tx.append(session_id, [Draft(EventType.SESSION_CREATED, data)], now)
        if command.text is None:
            return CreateSessionReply(evolve(session, last_seq=last_seq))
        source = Source("client", principal=caller.id)
        first = messages.deliver(core, tx, session, source, command.text, "queue", options=options)
        created = tx.session(session_id)
        assert created is not None
        return CreateSessionReply(created, first.message, first.run)

    return change


async def get(core: Core, caller: Principal, command: GetSession) -> SessionReply:
    def query(view: View) -> SessionReply:
        session = session_for(view, caller, Action.READ, command.session_id)
        if not command.activity:
            return SessionReply(session)
        return SessionReply(
            session, inbox.activity(view, caller, visibility(view, caller), session)
        )

    return await core.store.read(query)


async def list_(core: Core, caller: Principal, command: ListSessions) -> SessionPage:
    def query(view: View) -> SessionPage:
        within = visibility(view, caller)

        def sessions(after: str | None, limit: int) -> list[Session]:
            return view.sessions(
                within=within,
                status=command.status,
                parent_session_id=command.parent_session_id,
                order=command.order,
                after=after,
                limit=limit,
                size=PAGE_SIZE,
            )

        fetch: session_states.Fetch = sessions
        if command.state is not None:
            few = session_states.few_with(view, within, command.state, command.order)
            fetch = few or sessions
        matches = _filter(core, view, caller, within, command)
        found, cursor = page(fetch, command.cursor, command.limit, matches=matches)
        if not command.activity:
            return SessionPage(found, cursor)
        return SessionPage(
            found, cursor, tuple(inbox.activity(view, caller, within, one) for one in found)
        )

    return await core.store.read(query)


def _filter(
    core: Core, view: View, caller: Principal, within: Visibility, command: ListSessions
) -> Callable[[Session], bool] | None:
    """Return whether a session matches a search; None without one."""
    words, provider, state = command.q, command.provider, command.state
    if words is None and provider is None and state is None:
        return None

    def matches(session: Session) -> bool:
        its_provider = session.provider or core.config.routing.default
        texts = (session.id, session.title, session.cwd, its_provider)
        return (
            provider in (None, its_provider)
            and command.status in (None, session.status)
            and command.parent_session_id in (None, session.parent_session_id)
            and (words is None or has_words(words, texts))
            and (state is None or session_states.state_of(view, caller, within, session) == state)
        )

    return matches


async def update(core: Core, caller: Principal, command: UpdateSession) -> Change[SessionReply]:
    require_permitted(core, caller, command)
    move = await _checked_move(core, caller, command)

    def change(tx: Transaction) -> SessionReply:
        session = session_for(tx, caller, Action.MANAGE, command.session_id)
        changes: dict[str, Any] = {}
        if command.title is not None and command.title != session.title:
            changes["title"] = command.title
        if command.metadata is not None and command.metadata != session.metadata:
            changes["metadata"] = json_copy(command.metadata)
        if command.status is not None and command.status != session.status:
            changes["status"] = command.status
        for name in ("model", "approval_policy", "sandbox", "notices", *pruning.RETENTION):
            value = getattr(command, name)
            if value is not None and value != getattr(session, name):
                changes[name] = value
        moves = _moves(tx, session, command, move)
        if moves:
            _require_idle(tx, session)
            changes |= moves
        if not changes:
            return SessionReply(session)
        updated = _write_changes(core, tx, session, changes)
        if changes.get("status") == "closed":
            questions.escalate_open_requests(core, tx, updated)
        if changes.get("status") == "open" and tx.active_run(session.id) is None:
            results.deliver_child_results(core, tx, updated, updated.updated_at)
        return SessionReply(tx.session(session.id) or updated)

    return change


@frozen
class _Move:
    """A change of the directory or host of a session, which was checked.

    :param from_host: the host for which it was checked.
    :param parent: where the parent worked for which it was checked; None without one.
    :param cwd: the new directory; None if it stays.
    """

    from_host: str | None
    parent: Place | None
    cwd: str | None


async def _checked_move(core: Core, caller: Principal, command: UpdateSession) -> _Move | None:
    """Return the change of directory or host that a command makes; None if it makes none.

    Access is checked first, so that other callers do not learn whether the directory exists. A directory of
    another host is checked there.
    """
    if command.cwd is None and command.host is None:
        return None
    if command.host is not None:
        forbid_runs(caller)  # another host may give its agent more than it has

    def query(view: View) -> tuple[Session, Session | None]:
        session = session_for(view, caller, Action.MANAGE, command.session_id)
        if command.host is not None:
            placement.require_known(core, view, command.host)
        return session, _parent_of(view, session)

    session, parent = await core.store.read(query)
    host = command.host or session.host
    if command.cwd is None and host == session.host:
        cwd = None
    elif command.cwd is None or not core.is_here(host):
        cwd = placement.directory_elsewhere(host, command.cwd)
    elif parent is None or not core.is_here(parent.host):
        cwd = await core.workspace(command.cwd)
    else:
        cwd = await child_workspace(core, caller, command.cwd, parent)
    return _Move(session.host, _place_of(parent), cwd)


def _parent_of(view: SessionQueries, session: Session) -> Session | None:
    parent_id = session.parent_session_id
    return None if parent_id is None else view.session(parent_id)


def _place_of(session: Session | None) -> Place | None:
    return None if session is None else Place(session.host, session.cwd)


def _moves(
    view: SessionQueries, session: Session, command: UpdateSession, move: _Move | None
) -> dict[str, Any]:
    """Return the new directory and host of a session.

    :raises SessionBusy: if it is on another host than when they were checked, or its parent works elsewhere.
    """
    if move is None:
        return {}
    if session.host != move.from_host:
        raise SessionBusy(
            f"session {session.id} has moved to the host {session.host} in the meantime: try again"
        )
    if move.cwd is not None and _place_of(_parent_of(view, session)) != move.parent:
        raise SessionBusy(
            f"the parent of session {session.id} has moved in the meantime: try again"
        )
    moves: dict[str, Any] = {}
    if move.cwd is not None and move.cwd != session.cwd:
        moves["cwd"] = move.cwd
    if command.host is not None and command.host != session.host:
        moves["host"] = command.host
    return moves


def _require_idle(tx: RunQueries, session: Session) -> None:
    """Raise ``SessionBusy`` if a started run of the session has not ended: its agent uses the old directory."""
    for run in transitions.started_runs(tx, session):
        state = "queued again" if run.status is RunStatus.QUEUED else run.status
        raise SessionBusy(
            f"run {run.id} of the session is {state}: the session can be moved after it has ended",
            {"run_id": run.id},
        )


async def close(core: Core, caller: Principal, command: CloseSession) -> Change[CloseSessionReply]:
    def change(tx: Transaction) -> CloseSessionReply:
        session = session_for(tx, caller, Action.MANAGE, command.session_id)
        tree = [session, *_descendants(tx, session)] if command.cascade else [session]
        still_open = [member for member in tree if member.status == "open"]
        for member in still_open:
            _write_changes(core, tx, member, {"status": "closed"})
        # All are closed now, so that no cancel starts work in another of them. Children come first, so
        # that requests of canceled children are not escalated to people.
        canceled = (
            [_cancel_runs(core, tx, member) for member in reversed(tree)] if command.cascade else []
        )
        for member in still_open:
            questions.escalate_open_requests(core, tx, tx.session(member.id) or member)
        return CloseSessionReply(
            session=tx.session(session.id) or session,
            canceled=tuple(run_id for run_ids in reversed(canceled) for run_id in run_ids),
            closed_count=len(still_open),
            at_work_count=tx.live_descendants(session.id),
        )

    return change


def _write_changes(
    core: Core, tx: Transaction, session: Session, changes: Mapping[str, Any]
) -> Session:
    """Write new values of a session, and the event for them."""
    now = core.now()
    updated: Session = evolve(session, updated_at=now, **changes)
    tx.put_session(updated)
    if "host" in changes:
        tx.forget_threads(session.id)
        tx.notify(run_changes.QUEUE_TOPIC)  # queued runs may start there
    closes = changes.get("status") == "closed"
    event_type = EventType.SESSION_CLOSED if closes else EventType.SESSION_UPDATED
    moved: dict[str, Any] = {"previous_cwd": session.cwd} if "cwd" in changes else {}
    if "host" in changes:
        moved |= {"previous_host": session.host, "left_threads": dict(session.threads)}
    tx.append(session.id, [Draft(event_type, {**changes, **moved})], now)
    return updated


def _descendants(tx: SessionQueries, session: Session) -> list[Session]:
    """Return all descendants of a session, each after its parent."""
    descendants: list[Session] = []
    parents = [session]
    for parent in parents:
        after = None
        while children := tx.sessions(
            parent_session_id=parent.id, after=after, limit=MAX_READ_ROWS
        ):
            descendants += children
            parents += children
            after = children[-1].id
    return descendants


def _cancel_runs(core: Core, tx: Transaction, session: Session) -> list[str]:
    """Cancel every run of a session, and return the ids of those that had not ended."""

    def end(run: Run) -> list[str]:
        # Otherwise the message would get a run when this one ends, although the session is closed.
        for message in steering.undelivered_messages(tx, run.id):
            tx.put_message(evolve(message, delivery="undeliverable"))
        return transitions.request_cancel(core, tx, run, reason=CLOSE_REASON, cascade=False)

    reached: list[str] = []
    while queued := tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_READ_ROWS):
        for run in queued:
            reached += end(run)
    active = tx.active_run(session.id)
    return reached if active is None else end(active) + reached

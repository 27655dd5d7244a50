"""Sessions: make, read, list, change."""

from typing import Any

from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.approvals import DEFAULT, is_looser
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Session, Source
from agent_orchestrator.engine import ledger, limits, messages
from agent_orchestrator.engine.access import in_scope, no_run, present, reach, session_for
from agent_orchestrator.engine.confinement import Confinement, check_asked, check_kept
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, page
from agent_orchestrator.engine.turn_options import TurnOptions
from agent_orchestrator.operations import (
    CreateSession,
    CreateSessionReply,
    GetSession,
    ListSessions,
    SessionPage,
    SessionReply,
    UpdateSession,
)
from agent_orchestrator.ports import Draft, Transaction, View
from agent_orchestrator.wire.strict_json import json_copy


async def create(core: Core, who: Principal, command: CreateSession) -> Change[CreateSessionReply]:
    no_run(who)
    core.accept_work()
    if command.approvals is not None and is_looser(command.approvals, DEFAULT):
        # It approves beforehand whatever the session's agents will ask for.
        in_scope(core, who, "approve")
    check_asked(core, who, command)
    if command.provider is not None:
        check_kept(core, core.known_provider(command.provider), Confinement.of(command))
    if command.effort is not None and command.text is None:
        raise InvalidRequest.of({"effort": "needs a text: it is for the first message"})
    given = limits.narrowed(core, command, None)
    cwd = await core.workspace(command.cwd or core.config.cwd)

    def change(tx: Transaction) -> CreateSessionReply:
        present(tx, who)
        now = core.now()
        session_id = core.config.ids("ses")
        session = Session(
            id=session_id,
            title=command.title,
            owner=who.id,
            provider=command.provider,
            model=command.model,
            cwd=cwd,
            status="open",
            parent_session_id=None,
            parent_run_id=None,
            root_session_id=session_id,
            depth=0,
            metadata=json_copy(command.metadata),
            threads={},
            last_seq=0,
            created_at=now,
            updated_at=now,
            approvals=command.approvals,
            approval_policy=command.approval_policy,
            sandbox=command.sandbox,
            **given,
        )
        tx.add_session(session)
        data = {"title": session.title, "provider": session.provider, "cwd": session.cwd}
        last_seq = tx.append(session_id, [Draft(EventType.SESSION_CREATED, data)], now)
        if command.text is None:
            return CreateSessionReply(evolve(session, last_seq=last_seq))
        source = Source("client", principal=who.id)
        options = TurnOptions.of_first_message(command)
        first = messages.deliver(core, tx, session, source, command.text, "queue", options=options)
        made = tx.session(session_id)
        assert made is not None
        return CreateSessionReply(made, first.message, first.run)

    return change


async def get(core: Core, who: Principal, command: GetSession) -> SessionReply:
    return await core.store.read(
        lambda view: SessionReply(session_for(view, who, Action.READ, command.session_id))
    )


async def list_(core: Core, who: Principal, command: ListSessions) -> SessionPage:
    def look(view: View) -> SessionPage:
        within = reach(view, who)

        def sessions(after: str | None, limit: int) -> list[Session]:
            return view.sessions(
                within=within,
                status=command.status,
                parent_session_id=command.parent_session_id,
                after=after,
                limit=limit,
                size=PAGE_SIZE,
            )

        return SessionPage(*page(sessions, command.cursor, command.limit))

    return await core.store.read(look)


async def update(core: Core, who: Principal, command: UpdateSession) -> Change[SessionReply]:
    check_asked(core, who, command)

    def change(tx: Transaction) -> SessionReply:
        session = session_for(tx, who, Action.MANAGE, command.session_id)
        changes: dict[str, Any] = {}
        if command.title is not None and command.title != session.title:
            changes["title"] = command.title
        if command.metadata is not None and command.metadata != session.metadata:
            changes["metadata"] = json_copy(command.metadata)
        closing = command.status == "closed" != session.status
        if command.status is not None and command.status != session.status:
            changes["status"] = command.status
        for name in ("approval_policy", "sandbox"):
            wanted = getattr(command, name)
            if wanted is not None and wanted != getattr(session, name):
                changes[name] = wanted
        if not changes:
            return SessionReply(session)
        now = core.now()
        updated = evolve(session, updated_at=now, **changes)
        tx.put_session(updated)
        event_type = EventType.SESSION_CLOSED if closing else EventType.SESSION_UPDATED
        tx.append(session.id, [Draft(event_type, changes)], now)
        if closing:
            ledger.leave_to_people(core, tx, updated)
        if changes.get("status") == "open" and tx.active_run(session.id) is None:
            ledger.hand_over_outcomes(core, tx, updated, now)
        return SessionReply(tx.session(session.id) or updated)

    return change

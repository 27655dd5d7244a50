"""Spawning children, and sending messages between sessions."""

from collections.abc import Callable
from typing import Final

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.approvals import is_looser
from agent_orchestrator.domain.errors import Conflict, Forbidden, InvalidRequest
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import MANUAL, Run, Session, Source, SourceKind
from agent_orchestrator.engine import limits, messages, placement, questions, steering
from agent_orchestrator.engine.access import run_for, session_for
from agent_orchestrator.engine.confinement import Confinement, of_child, of_child_elsewhere
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.daemons import known_provider
from agent_orchestrator.engine.placement import Place
from agent_orchestrator.engine.run_changes import is_executed_here
from agent_orchestrator.engine.summaries import text_summary
from agent_orchestrator.engine.turn_options import NOTHING_CHOSEN, TurnOptions
from agent_orchestrator.operations.messages import (
    MessageReply,
    SendToSession,
    SpawnFromRun,
    SpawnFromSession,
    SpawnReply,
)
from agent_orchestrator.operations.options import SpawnOptions
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.wire.strict_json import json_copy

MAX_QUEUED: Final = 16
"""Maximum number of queued runs of a session for messages of agents. People may queue more."""


async def spawn_from_session(
    core: Core, caller: Principal, command: SpawnFromSession
) -> Change[SpawnReply]:
    core.require_accepting()
    place = await _child_place(
        core,
        caller,
        command,
        lambda view: session_for(view, caller, Action.SPAWN, command.session_id),
    )

    def change(tx: Transaction) -> SpawnReply:
        parent = messages.open_session(tx, caller, Action.SPAWN, command.session_id)
        return _spawn(core, tx, caller, parent, None, command, place)

    return change


async def spawn_from_run(
    core: Core, caller: Principal, command: SpawnFromRun
) -> Change[SpawnReply]:
    core.require_accepting()
    place = await _child_place(
        core,
        caller,
        command,
        lambda view: run_for(view, caller, Action.SPEAK, command.run_id)[1],
    )

    def change(tx: Transaction) -> SpawnReply:
        run, parent = run_for(tx, caller, Action.SPEAK, command.run_id)
        if run.cancel_requested_at is not None or run.status is RunStatus.CANCELED:
            raise Conflict(
                f"run {run.id} is canceled: it cannot spawn any more", {"run_id": run.id}
            )
        if caller.run is not None:
            _require_own_daemon(core, run)
        messages.require_open(parent)
        return _spawn(core, tx, caller, parent, run, command, place)

    return change


def _require_own_daemon(core: Core, run: Run) -> None:
    """Raise ``Forbidden`` if another daemon executes a run, and so has the settings of its provider."""
    if core.store.lease is not None and not is_executed_here(core, run):
        raise Forbidden(
            "agents spawn children by the daemon that executes them, at the URL in AGENTCTL_URL: only it knows what"
            " the agent may do, and so what its children may",
            {"run_id": run.id},
        )


async def _child_place(
    core: Core, caller: Principal, command: SpawnOptions, parent_of: Callable[[View], Session]
) -> Place:
    """Return the host and the checked directory of a new child.

    Access is checked first, so that other callers do not learn whether the directory exists.
    """
    is_agent, is_chosen = caller.run is not None, placement.is_chosen(command)
    if not is_agent:
        placement.require_directory(command, command.cwd)
    if command.cwd is None and not is_chosen:
        return Place()

    def query(view: View) -> tuple[Session, Place]:
        parent = parent_of(view)
        if not is_chosen:
            return parent, Place(parent.host)
        provider = command.provider or parent.provider or core.config.routing.default
        if is_agent:
            return parent, placement.place_of_agents_child(core, view, command, parent, provider)
        return parent, Place(placement.chosen_host(core, view, command, parent.host, provider))

    parent, place = await core.store.read(query)
    if place.cwd is not None:
        return place
    host = place.host or parent.host
    if command.cwd is None and host == parent.host:
        return Place()
    if not core.is_here(host) and host != parent.host:
        return Place(host, placement.directory_elsewhere(host, command.cwd))
    if command.cwd is None or (core.is_here(host) and not core.is_here(parent.host)):
        directory = placement.directory_elsewhere(host, command.cwd)
        return Place(host, await core.workspace(directory))
    return Place(host, await child_workspace(core, caller, command.cwd, parent))


async def child_workspace(core: Core, caller: Principal, cwd: str, parent: Session) -> str:
    """Return the checked directory of a child.

    The daemon of the parent's host must check it. For an agent, and with ``workspace_roots``, symbolic links are resolved, and it must be the parent's
    directory or below it.

    :raises Forbidden: if it is elsewhere.
    :raises InvalidRequest: naming ``cwd``, if it is not a directory, or outside ``workspace_roots``.
    """
    if not core.is_here(parent.host):
        return placement.child_directory_elsewhere(caller, cwd, parent)
    if caller.run is None:
        cwd = await core.workspace(cwd)
        if not core.config.workspace_roots:
            return cwd
    requested, allowed = await core.resolve(cwd), await core.resolve(parent.cwd)
    if not requested.is_relative_to(allowed):
        raise Forbidden("a child must work in its parent's directory or below it", {"cwd": cwd})
    return await core.workspace(str(requested))


def _spawn(
    core: Core,
    tx: Transaction,
    caller: Principal,
    parent: Session,
    run: Run | None,
    command: SpawnOptions,
    place: Place,
) -> SpawnReply:
    if command.provider is not None:
        known_provider(core, tx, command.provider, place.host or parent.host)
    limits.require_depth(core, caller, parent)
    limits.require_child_counts(core, tx, parent, run.id if run else None)
    now = core.now()
    inherited = run.provider if run is not None and run.provider != MANUAL else parent.provider
    provider = command.provider or inherited
    default = core.config.routing.default
    floor = core.approvals_of(parent, inherited)
    if command.approvals is not None and is_looser(command.approvals, floor):
        raise InvalidRequest.of({"approvals": f"must not be looser than its parent's, {floor}"})
    if caller.run is None:
        confined = Confinement.of(run or parent)
    elif place.host in (None, parent.host):
        confined = of_child(core, run or parent, inherited, provider)
    else:
        confined = of_child_elsewhere(core, run or parent, inherited)
    session = Session(
        id=core.config.ids("ses"),
        title=command.title,
        owner=parent.owner,
        provider=provider,
        model=parent.model if (provider or default) == (inherited or default) else None,
        cwd=place.cwd or parent.cwd,
        status="open",
        parent_session_id=parent.id,
        parent_run_id=run.id if run else None,
        root_session_id=parent.root_session_id,
        depth=parent.depth + 1,
        metadata=json_copy(command.metadata or {}),
        threads={},
        last_seq=0,
        created_at=now,
        updated_at=now,
        notify_parent=command.notify_parent,
        approvals=command.approvals or floor,
        approval_policy=confined.approval_policy,
        sandbox=confined.sandbox,
        host=place.host or parent.host,
        retain_days=parent.retain_days,
        retain_events=parent.retain_events,
        retain_bytes=parent.retain_bytes,
        **limits.session_limits(core, command, parent),
    )
    tx.add_session(session)
    if granted := tx.grants(parent.id):
        tx.put_grants(session.id, granted)
    data = {
        "title": session.title,
        "provider": session.provider,
        "cwd": session.cwd,
        "parent_session_id": parent.id,
        "parent_run_id": session.parent_run_id,
    }
    tx.append(session.id, [Draft(EventType.SESSION_CREATED, data)], now)
    source = Source("parent", session_id=parent.id, run_id=session.parent_run_id)
    reply = messages.deliver(
        core,
        tx,
        session,
        source,
        command.task,
        "queue",
        options=TurnOptions.of(command),
        sender_limits=NOTHING_CHOSEN if run is None or caller.run is None else run.chosen,
        field="task",
    )
    assert reply.run is not None
    spawned = {
        "session_id": session.id,
        "run_id": reply.run.id,
        "parent_run_id": session.parent_run_id,
        "title": session.title,
        **text_summary("task", command.task),
    }
    tx.append(parent.id, [Draft(EventType.CHILD_SPAWNED, spawned)], now)
    created = tx.session(session.id)
    assert created is not None
    return SpawnReply(created, reply.message, reply.run)


async def send(core: Core, caller: Principal, command: SendToSession) -> Change[MessageReply]:
    core.require_accepting()

    def change(tx: Transaction) -> MessageReply:
        session = messages.open_session(tx, caller, Action.SEND, command.session_id)
        source = Source("client", principal=caller.id)
        sender_limits = NOTHING_CHOSEN
        from_run_id = command.from_run_id
        if from_run_id is None and caller.run is not None:
            from_run_id = caller.run.run_id
        if from_run_id is not None:
            run, sender = run_for(tx, caller, Action.SPEAK, from_run_id)
            if sender.id == session.id:
                raise InvalidRequest.of({"from_run_id": "must not be a run of the target session"})
            if run.cancel_requested_at is not None:
                raise Conflict(
                    f"run {run.id} is canceled: it cannot send any more", {"run_id": run.id}
                )
            source = Source(_relation(sender, session), session_id=sender.id, run_id=run.id)
            if caller.run is not None:
                sender_limits = run.chosen
        _require_restartable(core, tx, session)
        reply = messages.deliver(
            core,
            tx,
            session,
            source,
            command.text,
            command.when_busy,
            options=TurnOptions.of(command),
            sender_limits=sender_limits,
        )
        if from_run_id is not None:
            _require_queue_room(tx, session, reply)
        return reply

    return change


def _require_queue_room(tx: Transaction, session: Session, reply: MessageReply) -> None:
    """Raise ``Conflict`` if an agent's message exceeds the session's limit of queued runs.

    Undelivered messages to the running agent count too: each becomes a run when it ends.
    """
    queued = len(tx.runs(session_id=session.id, status=RunStatus.QUEUED, limit=MAX_QUEUED + 1))
    if reply.message.is_steering and reply.run is not None:
        queued += len(steering.undelivered_messages(tx, reply.run.id))
    if queued > MAX_QUEUED:
        raise Conflict(
            f"session {session.id} has {MAX_QUEUED} runs queued: agents cannot queue more",
            {"limit": "queued", "most": MAX_QUEUED},
        )


def _require_restartable(core: Core, tx: Transaction, session: Session) -> None:
    """Raise ``Conflict`` if an idle child may not become active because of a limit of the tree.

    It counts like a new child. Otherwise a tree could exceed its limits with children that had ended.
    """
    parent_id = session.parent_session_id
    parent = tx.session(parent_id) if parent_id is not None else None
    if parent is not None and not questions.has_active_agent(tx, session):
        limits.require_child_counts(core, tx, parent, session.parent_run_id)


def _relation(sender: Session, receiver: Session) -> SourceKind:
    if receiver.parent_session_id == sender.id:
        return "parent"
    if sender.parent_session_id == receiver.id:
        return "child"
    return "session"

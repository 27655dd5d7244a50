"""The calls that hand a conversation to a person's program and take it back, and the wait for its end.

A takeover is a run. It is ``waiting`` without a worker, as a parked one, and so holds its session. When the
program has ended, it goes back to the queue, and its next attempt reads the agent's own record.
"""

from functools import partial

import anyio
from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.daemons import DaemonRecord
from agent_orchestrator.domain.errors import (
    AgentFailed,
    Conflict,
    InvalidRequest,
    SessionBusy,
)
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus, Signal
from agent_orchestrator.domain.model import ChoiceLimits, Holder, Run, RunKind, Session, Thread
from agent_orchestrator.engine import queueing, run_changes, transitions
from agent_orchestrator.engine.access import forbid_runs, require_admin, session_for
from agent_orchestrator.engine.core import MAX_READ_ROWS, Change, Core
from agent_orchestrator.engine.daemons import other_daemon_with_conversation, provider_for
from agent_orchestrator.engine.messages import require_open, require_queue_room
from agent_orchestrator.engine.persistence import read_with_retry, transact_with_retry
from agent_orchestrator.engine.turn_options import TurnOptions
from agent_orchestrator.host import use_host
from agent_orchestrator.operations.sessions import CreateSessionReply
from agent_orchestrator.operations.takeovers import AdoptSession, AttachReply, AttachSession
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import RunQueries, View
from agent_orchestrator.ports.runner import Attachable


async def attach(core: Core, caller: Principal, command: AttachSession) -> Change[AttachReply]:
    forbid_runs(caller)
    core.require_accepting()

    def free(view: View) -> tuple[Session, str, Thread]:
        session = session_for(view, caller, Action.CONVERSE, command.session_id)
        require_open(session)
        _require_free(view, session)
        provider = provider_for(core, view, session, command.provider)
        if core.is_here(session.host):
            _attachable(core, provider)  # before it is said that a message would help
        thread = view.thread(session.id, provider)
        if thread is None:
            problem = (
                f"session {session.id} has no conversation with {provider} yet: send a message"
            )
            raise Conflict(problem, {"session_id": session.id})
        return session, provider, thread

    def query(view: View) -> tuple[Session, str, Thread, DaemonRecord | None]:
        session, provider, thread = free(view)
        other = other_daemon_with_conversation(core, view, session, provider)
        return session, provider, thread, other

    session, provider, thread, other = await core.store.read(query)
    if not core.is_here(session.host):
        problem = f"session {session.id} is on the host {session.host}: attach there"
        raise Conflict(problem, {"session_id": session.id})
    if other is not None:
        # Only that daemon can end its agent. Two processes must never have one conversation.
        url = other.profile.url if other.profile is not None else None
        where = url or f"(process {other.pid} on {other.node})"
        problem = f"the daemon {where} has the conversation of session {session.id}: attach there"
        raise Conflict(problem, {"session_id": session.id})
    runner = _attachable(core, provider)
    host = core.config.host
    if host.process_start_id(command.pid) != command.process_start_id:
        problem = "the daemon does not see this process: attach on the daemon's own machine"
        raise InvalidRequest.of({"pid": problem})
    if cwd_problem := await core.cwd_problem(session.cwd):
        raise Conflict(cwd_problem, {"session_id": session.id})
    env = core.config.agent_env(core.config.providers[provider])
    with use_host(host):
        try:
            handed = await runner.hand_over(session, thread, env)
        except AgentFailed as failure:
            raise Conflict(failure.message, {"session_id": session.id}) from failure
    holder = Holder(caller.id, command.pid, command.process_start_id)

    def change(tx: Transaction) -> AttachReply:
        current, _, _ = free(tx)
        if current.last_seq != session.last_seq:
            # A run may have opened the conversation again.
            raise SessionBusy(f"session {session.id} has changed in the meantime: try again")
        run = _queue(core, tx, current, provider, "attach", holder)
        tx.put_thread(session.id, provider, handed.thread)
        held = transitions.hold(
            core, tx, evolve(run, thread_id=handed.thread.id), holder, handed.program
        )
        return AttachReply(held, handed.program)

    return change


def _require_free(view: RunQueries, session: Session) -> None:
    """Raise ``SessionBusy`` if a started run of the session has not ended."""
    for run in transitions.started_runs(view, session):
        raise SessionBusy(
            f"{run_changes.state_of(run)}; `agentctl run cancel {run.id}` ends it",
            {"run_id": run.id},
        )


def _attachable(core: Core, provider: str) -> Attachable:
    config = core.config.providers.get(provider)
    if config is None or not isinstance(config.runner, Attachable):
        problem = f"{provider} has no program whose conversations can be taken over"
        raise InvalidRequest.of({"provider": problem})
    return config.runner


def _queue(
    core: Core,
    tx: Transaction,
    session: Session,
    provider: str,
    kind: RunKind,
    holder: Holder | None = None,
) -> Run:
    return queueing.enqueue(
        tx,
        session,
        run_id=core.config.ids("run"),
        message=None,
        provider=provider,
        options=TurnOptions(core.model_of(session, provider)),
        chosen=ChoiceLimits(),
        at=core.now(),
        priority=True,
        kind=kind,
        holder=holder,
    )


async def adopt(core: Core, caller: Principal, command: AdoptSession) -> Change[CreateSessionReply]:
    core.require_accepting()
    await core.store.read(partial(require_admin, caller=caller))
    provider = core.known_provider(command.provider or core.config.routing.default)
    runner = _attachable(core, provider)
    cwd = command.cwd or core.config.cwd
    if command.thread_id is None:
        cwd = await core.workspace(cwd)
    env = core.config.agent_env(core.config.providers[provider])
    with use_host(core.config.host):
        try:
            found = await runner.find_conversation(command.thread_id, cwd, env)
        except AgentFailed as failure:
            raise InvalidRequest.of({"thread_id": failure.message}) from failure
    cwd = await core.workspace(found.cwd)

    def change(tx: Transaction) -> CreateSessionReply:
        require_admin(tx, caller)
        if (owner := tx.session_of_thread(found.thread.id)) is not None:
            problem = f"session {owner} has the conversation {found.thread.id} already"
            raise Conflict(problem, {"session_id": owner})
        require_queue_room(core, tx, provider)
        now = core.now()
        session_id = core.config.ids("ses")
        session = Session(
            id=session_id,
            title=command.title,
            owner=caller.id,
            provider=provider,
            model=found.model,
            cwd=cwd,
            status="open",
            parent_session_id=None,
            parent_run_id=None,
            root_session_id=session_id,
            depth=0,
            metadata={},
            threads={},
            last_seq=0,
            created_at=now,
            updated_at=now,
            host=core.config.host.id,
        )
        tx.add_session(session)
        data = {"title": session.title, "provider": provider, "cwd": cwd}
        tx.append(session_id, [Draft(EventType.SESSION_CREATED, data)], now)
        tx.put_thread(session_id, provider, found.thread)
        run = _queue(core, tx, session, provider, "adopt")
        thread = {"provider": provider, "thread_id": found.thread.id}
        tx.append(session_id, [Draft(EventType.THREAD_STARTED, thread, run.id, run.attempt)], now)
        return CreateSessionReply(tx.session(session_id) or session, run=run)

    return change


async def watch_holds(core: Core) -> None:
    """Hand each held session back when the program that holds it has ended."""
    watched: dict[str, anyio.CancelScope] = {}
    with core.notifier.subscribe(run_changes.HOLD_TOPIC) as waiter:
        async with anyio.create_task_group() as tasks:
            while True:
                waiter.clear()
                held = {
                    run.id: run for run in await read_with_retry(core, partial(_held_runs, core))
                }
                for run_id in watched.keys() - held.keys():
                    watched.pop(run_id).cancel()
                for run_id in held.keys() - watched.keys():
                    watched[run_id] = anyio.CancelScope()
                    tasks.start_soon(_hand_back_at_end, core, held[run_id], watched[run_id])
                await waiter.wait()


def _held_runs(core: Core, view: View) -> list[Run]:
    """Return the runs whose holders are processes of this host."""
    held: list[Run] = []
    after = None
    while waiting := view.runs(status=RunStatus.WAITING, after=after, limit=MAX_READ_ROWS):
        held += [run for run in waiting if run.is_held and _is_here(core, view, run)]
        after = waiting[-1].id
    return held


def _is_here(core: Core, view: View, run: Run) -> bool:
    session = view.session(run.session_id)
    return session is not None and core.is_here(session.host)


async def _hand_back_at_end(core: Core, run: Run, scope: anyio.CancelScope) -> None:
    assert run.holder is not None

    def hand_back(tx: Transaction) -> None:
        current = tx.run(run.id)
        if current is not None and current.is_held:
            ended = transitions.AttemptEnd(Signal.RELEASE, reason="the program has ended")
            transitions.finish(core, tx, current, ended)

    with scope:
        await core.config.host.process_end(run.holder.pid, run.holder.process_start_id)
        await transact_with_retry(core, hand_back, reserve=True)

"""What a list of sessions shows of each: its run, its open requests, and what the caller has seen."""

from agent_orchestrator.domain.access import Action, Principal, Visibility
from agent_orchestrator.domain.model import Run, Session
from agent_orchestrator.engine.access import forbid_runs, session_for
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.session_states import reader_of, state_of
from agent_orchestrator.operations.sessions import (
    MarkSeen,
    RunState,
    SeenReply,
    SessionActivity,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import RunQueries, View


def activity(
    view: View, caller: Principal, within: Visibility, session: Session
) -> SessionActivity:
    """Return the activity of a session that the caller may read.

    :param within: the sessions that the caller may see.
    """
    run = view.active_run(session.id)
    if run is None:
        newest, _ = view.latest_runs(session.id, limit=1, cut=0, size=1)
        run = newest[0] if newest else None
    return SessionActivity(
        run=None if run is None else _run_state(view, run),
        open_request_count=view.open_request_count(session.id),
        seen_seq=view.seen(reader_of(caller), session.id),
        state=state_of(view, caller, within, session),
    )


def _run_state(view: RunQueries, run: Run) -> RunState:
    attempts = view.attempts(run.id)
    return RunState(
        id=run.id,
        status=run.status,
        provider=run.provider,
        model=run.model,
        host=attempts[-1].host if attempts else None,
        waiting_on=run.waiting_on,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        error_code=None if run.error is None else run.error.code,
        cost_usd=None if run.usage is None else run.usage.cost_usd,
        sandbox=run.sandbox,
    )


async def mark_seen(core: Core, caller: Principal, command: MarkSeen) -> Change[SeenReply]:
    """Note up to which event the caller has seen a session."""
    forbid_runs(caller)

    def change(tx: Transaction) -> SeenReply:
        session = session_for(tx, caller, Action.READ, command.session_id)
        before = tx.seen(reader_of(caller), session.id)
        # A mark that arrives late, or from before a restore, must not hide what is new.
        seq = min(max(before, command.seq), session.last_seq)
        if seq != before:
            tx.put_seen(reader_of(caller), session.id, seq)
        return SeenReply(seq)

    return change

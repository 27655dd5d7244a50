"""What a list of sessions shows of each: its run, its open requests, and what the caller has seen."""

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.model import Run
from agent_orchestrator.engine.access import forbid_runs, session_for
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.operations.sessions import (
    MarkSeen,
    RunState,
    SeenReply,
    SessionActivity,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import RunQueries, View


def activity(view: View, caller: Principal, session_id: str) -> SessionActivity:
    """Return the activity of a session that the caller may read."""
    run = view.active_run(session_id)
    if run is None:
        newest, _ = view.latest_runs(session_id, limit=1, cut=0, size=1)
        run = newest[0] if newest else None
    return SessionActivity(
        run=None if run is None else _state(view, run),
        open_request_count=view.open_request_count(session_id),
        seen_seq=view.seen(_reader(caller), session_id),
    )


def _state(view: RunQueries, run: Run) -> RunState:
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
    )


def _reader(caller: Principal) -> str:
    """Return whose mark a caller has: each token has one, so that each device of a person has."""
    return caller.token_id or caller.id


async def mark_seen(core: Core, caller: Principal, command: MarkSeen) -> Change[SeenReply]:
    forbid_runs(caller)

    def change(tx: Transaction) -> SeenReply:
        session = session_for(tx, caller, Action.READ, command.session_id)
        before = tx.seen(_reader(caller), session.id)
        # A mark that arrives late, or from before a restore, must not hide what is new.
        seq = min(max(before, command.seq), session.last_seq)
        if seq != before:
            tx.put_seen(_reader(caller), session.id, seq)
        return SeenReply(seq)

    return change

"""What sessions need from a caller: a decision, a look, or nothing. And the lists of those that need one thing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agent_orchestrator.domain.access import Principal, Visibility
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Session
from agent_orchestrator.engine.core import MAX_READ_ROWS
from agent_orchestrator.engine.paging import PAGE_SIZE
from agent_orchestrator.engine.run_changes import has_queued_run
from agent_orchestrator.operations.options import ListOrder
from agent_orchestrator.operations.sessions import SessionState
from agent_orchestrator.ports.queries import View

_ACTIVE: Final = (RunStatus.RUNNING, RunStatus.WAITING)


def reader_of(caller: Principal) -> str:
    """Return whose mark of what was seen a caller has: each token has one, so that each device of a person has."""
    return caller.token_id or caller.id


def state_of(view: View, caller: Principal, within: Visibility, session: Session) -> SessionState:
    """Return what a session needs from a caller that may read it.

    :param within: the sessions that the caller may see.
    """
    if _needs_decision(view, caller, within, session):
        return "needs-you"
    if view.active_run(session.id) is not None:
        return "working"
    if has_queued_run(view, session):
        return "queued"
    # Cheaper than the last run, and most sessions are seen.
    if session.last_seq <= view.seen(reader_of(caller), session.id):
        return "idle"
    newest, _ = view.latest_runs(session.id, limit=1, cut=0, size=1)
    if not newest:
        return "idle"
    return "failed" if newest[0].status is RunStatus.FAILED else "done"


def _needs_decision(view: View, caller: Principal, within: Visibility, session: Session) -> bool:
    if not (caller.admin or "approve" in caller.scopes):
        return False
    if not view.open_request_count(session.id):
        return False
    return bool(
        view.requests(
            within=within, status="pending", session_id=session.id, resolvable=True, limit=1
        )
    )


Fetch = Callable[[str | None, int], Sequence[Session]]


def few_with(view: View, within: Visibility, state: SessionState, order: ListOrder) -> Fetch | None:
    """Return a query of all sessions that may be in a state, if there are few: those with open requests, or with
    active runs. None if that is not known; then the list of all sessions is searched.

    So these lists cost as much as they have, however many sessions there are.
    """
    if state == "needs-you":
        found = set(_with_requests(view, within))
    elif state == "working":
        found = {one for status in _ACTIVE for one in _with_runs(view, within, status)}
    else:
        return None
    is_newest = order == "newest"
    ids = sorted(found, reverse=is_newest)

    def fetch(after: str | None, limit: int) -> list[Session]:
        rest = [one for one in ids if after is None or (one < after if is_newest else one > after)]
        sessions = (view.session(one) for one in rest[:limit])
        return [session for session in sessions if session is not None]

    return fetch


def _with_requests(view: View, within: Visibility) -> Iterator[str]:
    after = None
    while page := view.requests(
        within=within,
        status="pending",
        resolvable=True,
        after=after,
        limit=MAX_READ_ROWS,
        size=PAGE_SIZE,
    ):
        yield from (request.session_id for request in page)
        after = page[-1].id


def _with_runs(view: View, within: Visibility, status: RunStatus) -> Iterator[str]:
    after = None
    while page := view.runs(
        within=within, status=status, after=after, limit=MAX_READ_ROWS, size=PAGE_SIZE
    ):
        yield from (run.session_id for run in page)
        after = page[-1].id

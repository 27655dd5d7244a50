"""The decision about each call, made in the very look or change that carries it out.

What a caller may not see is answered as if it were not there, what it sees but may not do as
forbidden. A caller whose token has ended meanwhile is nobody.
"""

from agent_orchestrator.domain import access
from agent_orchestrator.domain.access import (
    ALLOWED,
    EVERYTHING,
    Action,
    Principal,
    Scope,
    Visibility,
)
from agent_orchestrator.domain.errors import Forbidden, NotFound, Unauthorized
from agent_orchestrator.domain.lifecycle import ACTIVE
from agent_orchestrator.domain.model import Request, Run, Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports import View


def holder(view: View, token_hash: str) -> tuple[Principal | None, Principal | None]:
    """Return the run whose token this is the hash of, and the one it was once the attempt is over."""
    if (token := view.token_of_hash(token_hash)) is not None:
        return (token.holder() if token.revoked_at is None else None), None
    attempt = view.attempt_of_token(token_hash)
    run = None if attempt is None else view.run(attempt.run_id)
    if attempt is None or run is None:
        return None, None
    caller = Principal.of_run(run.id, attempt.attempt, run.session_id)
    return (caller, None) if _is_current(run, attempt.attempt) else (None, caller)


def require_active(view: View, caller: Principal) -> None:
    """Do nothing, or refuse a caller that is no longer there.

    :raises Unauthorized: if its token is revoked.
    :raises Forbidden: if the attempt it acted as is over.
    """
    if caller.token_id is not None:
        token = view.token(caller.token_id)
        if token is None or token.revoked_at is not None:
            raise Unauthorized("the token is revoked")
    if caller.run is None:
        return
    run = view.run(caller.run.run_id)
    if run is None or not _is_current(run, caller.run.attempt):
        raise Forbidden("the attempt this token was for is over")


def _is_current(run: Run, attempt: int) -> bool:
    # An attempt that was parked or released has raised the number already.
    return run.attempt == attempt and run.status in ACTIVE


def access_topics(caller: Principal) -> tuple[str, ...]:
    """Return the topics of changes to a caller's access."""
    if caller.run is not None:
        return (f"run:{caller.run.run_id}",)
    granted = () if caller.admin else (f"access:{caller.id}",)
    return granted if caller.token_id is None else (*granted, f"token:{caller.token_id}")


def seconds_left(core: Core, caller: Principal) -> float | None:
    """Return the seconds a caller may go on; None means until something ends it.

    :raises Unauthorized: if its time is up.
    """
    if caller.expires_at is None:
        return None
    left = (caller.expires_at - core.now()).total_seconds()
    if left <= 0:
        raise Unauthorized("the token has expired")
    return left


def require_scope(core: Core, caller: Principal, scope: Scope) -> None:
    """Do nothing, or refuse.

    :raises Unauthorized: if the caller's time is up.
    :raises Forbidden: if its token is not good for this.
    """
    seconds_left(core, caller)
    if not caller.admin and scope not in caller.scopes:
        raise Forbidden(f"this needs a token with the scope {scope}", {"scope": scope})


def forbid_runs(caller: Principal) -> None:
    """Do nothing, or refuse what is not for agents, on whichever session.

    :raises Forbidden: if the caller is a run.
    """
    if caller.run is not None:
        raise Forbidden("an agent may not do this with its run's token")


def require_admin(view: View, caller: Principal) -> None:
    """Do nothing, or refuse what is for administrators.

    :raises Forbidden: if the caller is none.
    :raises Unauthorized: if it is no longer there.
    """
    require_active(view, caller)
    if not caller.admin:
        raise Forbidden("only an administrator may do this")


def session_for(view: View, caller: Principal, action: Action, session_id: str) -> Session:
    """Return a session the caller may do this with.

    :raises NotFound: if there is none, or the caller may not know of it: one answer for both.
    :raises Forbidden: if it may only see it.
    :raises Unauthorized: if the caller is no longer there.
    """
    require_active(view, caller)
    session = view.session(session_id)
    if session is None or not _is_allowed(view, caller, action, session):
        raise NotFound(f"no session {session_id}", {"session_id": session_id})
    return session


def run_for(view: View, caller: Principal, action: Action, run_id: str) -> tuple[Run, Session]:
    """Return a run the caller may do this with, and its session; see :func:`session_for`."""
    require_active(view, caller)
    run = view.run(run_id)
    session = None if run is None else view.session(run.session_id)
    if run is None or session is None or not _is_allowed(view, caller, action, session, run_id):
        raise NotFound(f"no run {run_id}", {"run_id": run_id})
    return run, session


def request_for(view: View, caller: Principal, action: Action, request_id: str) -> Request:
    """Return a request the caller may do this with; see :func:`session_for`."""
    require_active(view, caller)
    request = view.request(request_id)
    session = None if request is None else view.session(request.session_id)
    if (
        request is None
        or session is None
        or not _is_allowed(view, caller, action, session, request.run_id)
    ):
        raise NotFound(f"no request {request_id}", {"request_id": request_id})
    return request


def visibility(view: View, caller: Principal) -> Visibility:
    """Return what a list may show the caller.

    :raises Unauthorized: if it is no longer there.
    """
    require_active(view, caller)
    return access.visibility_of(caller)


def visibility_below(view: View, caller: Principal) -> Visibility:
    """Return what an answer about the sessions below one the caller may see may show of them.

    An agent sees all of them. To people the one may be shown and another, further down, not.
    """
    return EVERYTHING if caller.run is not None else visibility(view, caller)


def _is_allowed(
    view: View, caller: Principal, action: Action, session: Session, run_id: str | None = None
) -> bool:
    """Tell whether a caller may do this; False where it may not even see it.

    :raises Forbidden: if it may see it.
    """
    is_below = caller.run is not None and _descends(view, session, caller.run.session_id)
    role = None
    if caller.run is None and not caller.admin and session.owner != caller.id:
        role = view.role(session.id, caller.id)
    allowed = ALLOWED[
        access.relation_of(caller, session, run_id=run_id, is_below=is_below, role=role)
    ]
    if action not in allowed and Action.READ in allowed:
        target = run_id or session.id
        raise Forbidden(f"this caller may not {action} {target}", {"action": action.name.lower()})
    return action in allowed


def _descends(view: View, session: Session, ancestor_id: str) -> bool:
    above = session.parent_session_id
    while above is not None and above != ancestor_id:
        parent = view.session(above)
        above = None if parent is None else parent.parent_session_id
    return above is not None

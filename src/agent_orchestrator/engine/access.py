"""Access checks, made in the same read or change as the operation that they allow.

An object that the caller may not see is not found. An operation that it may not do on an object that
it sees is forbidden.
"""

from typing import Any

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
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.ports.queries import SessionQueries, View


def holder(view: View, token_hash: str) -> tuple[Principal | None, Principal | None]:
    """Return the caller of a valid token, and the former caller of a run's token whose attempt has ended.

    At least one of them is None.
    """
    if (token := view.token_of_hash(token_hash)) is not None:
        is_valid = token.revoked_at is None and token.purpose != "invitation"
        return (token.holder() if is_valid else None), None
    attempt = view.attempt_of_token(token_hash)
    run = None if attempt is None else view.run(attempt.run_id)
    if attempt is None or run is None:
        return None, None
    caller = Principal.of_run(run.id, attempt.attempt, run.session_id)
    return (caller, None) if _is_current(run, attempt.attempt) else (None, caller)


def device_of(view: View, caller: Principal) -> AccessToken | None:
    """Return the device of a caller; None if it does not call from a device."""
    if caller.kind != "device" or caller.token_id is None:
        return None
    return view.token(caller.token_id)


def require_active(view: View, caller: Principal) -> None:
    """Raise ``Unauthorized`` if the caller's token was revoked, ``Forbidden`` if its attempt has ended."""
    if caller.token_id is not None:
        token = view.token(caller.token_id)
        if token is None or token.revoked_at is not None:
            raise Unauthorized("the token is revoked")
    if caller.run is None:
        return
    run = view.run(caller.run.run_id)
    if run is None or not _is_current(run, caller.run.attempt):
        raise Forbidden("the attempt of this token has ended")


def _is_current(run: Run, attempt: int) -> bool:
    # Parking or releasing an attempt raises the run's attempt number.
    return run.attempt == attempt and run.status in ACTIVE


def access_topics(caller: Principal) -> tuple[str, ...]:
    """Return the topics that are notified if a caller's access changes."""
    if caller.run is not None:
        return (f"run:{caller.run.run_id}",)
    granted = () if caller.admin or caller.session_id else (f"access:{caller.id}",)
    return granted if caller.token_id is None else (*granted, f"token:{caller.token_id}")


def seconds_left(core: Core, caller: Principal) -> float | None:
    """Return the seconds until the caller's token expires; None if it does not.

    :raises Unauthorized: if it has expired.
    """
    if caller.expires_at is None:
        return None
    remaining_s = (caller.expires_at - core.now()).total_seconds()
    if remaining_s <= 0:
        raise Unauthorized("the token has expired")
    return remaining_s


def require_scope(core: Core, caller: Principal, scope: Scope) -> None:
    """Raise ``Forbidden`` if the caller lacks a scope, ``Unauthorized`` if its token has expired."""
    seconds_left(core, caller)
    if not caller.admin and scope not in caller.scopes:
        raise Forbidden(f"this needs a token with the scope {scope}", {"scope": scope})


def require_shared(caller: Principal, operation: Operation[Any, Any]) -> None:
    """Raise ``Forbidden`` if the caller has a share link, which does not allow this operation."""
    if caller.session_id is not None and not operation.shared:
        raise Forbidden("a share link does not allow this call")


def forbid_runs(caller: Principal) -> None:
    """Raise ``Forbidden`` if the caller is a run."""
    if caller.run is not None:
        raise Forbidden("this call is not allowed with the token of a run")


def require_admin(view: View, caller: Principal) -> None:
    """Raise ``Forbidden`` if the caller is not an administrator, ``Unauthorized`` if its token was revoked."""
    require_active(view, caller)
    if not caller.admin:
        raise Forbidden("this needs a token with the scope admin")


def session_for(view: View, caller: Principal, action: Action, session_id: str) -> Session:
    """Return a session if the caller may do the action with it.

    :raises NotFound: if it does not exist, or the caller may not see it.
    :raises Forbidden: if the caller may see it, but not do this; or if the caller's attempt has ended.
    :raises Unauthorized: if the caller's token was revoked.
    """
    require_active(view, caller)
    session = view.session(session_id)
    if session is None or not _is_allowed(view, caller, action, session):
        raise NotFound(f"no session {session_id}", {"session_id": session_id})
    return session


def run_for(view: View, caller: Principal, action: Action, run_id: str) -> tuple[Run, Session]:
    """Return a run and its session if the caller may do the action; see :func:`session_for`."""
    require_active(view, caller)
    run = view.run(run_id)
    session = None if run is None else view.session(run.session_id)
    if run is None or session is None or not _is_allowed(view, caller, action, session, run_id):
        raise NotFound(f"no run {run_id}", {"run_id": run_id})
    return run, session


def request_for(view: View, caller: Principal, action: Action, request_id: str) -> Request:
    """Return a request if the caller may do the action with it; see :func:`session_for`."""
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
    """Return the filter for lists that the caller may see, after :func:`require_active`."""
    require_active(view, caller)
    return access.visibility_of(caller)


def visibility_below(view: View, caller: Principal) -> Visibility:
    """Return the filter for the descendants of a session that the caller may see.

    An agent or a share link has access to all of them. Other callers may lack access to some.
    """
    return EVERYTHING if caller.tree is not None else visibility(view, caller)


def _is_allowed(
    view: SessionQueries,
    caller: Principal,
    action: Action,
    session: Session,
    run_id: str | None = None,
) -> bool:
    """Return True if the caller may do the action, and False if it may not even read the session.

    :raises Forbidden: if it may read the session, but not do the action.
    """
    is_below = caller.tree is not None and _descends(view, session, caller.tree)
    role = None
    if caller.tree is None and not caller.admin and session.owner != caller.id:
        role = view.role(session.id, caller.id)
    allowed = ALLOWED[
        access.relation_of(caller, session, run_id=run_id, is_below=is_below, role=role)
    ]
    if action not in allowed and Action.READ in allowed:
        target = run_id or session.id
        raise Forbidden(f"this caller may not {action} {target}", {"action": action.name.lower()})
    return action in allowed


def _descends(view: SessionQueries, session: Session, ancestor_id: str) -> bool:
    parent_id = session.parent_session_id
    while parent_id is not None and parent_id != ancestor_id:
        parent = view.session(parent_id)
        parent_id = None if parent is None else parent.parent_session_id
    return parent_id is not None

"""Limits on the descendants of sessions: the engine's, or lower ones of a session."""

from collections.abc import Iterator
from typing import Any, Final

from attrs import evolve

from agent_orchestrator.configuration import TreeLimits
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    OrchestratorError,
)
from agent_orchestrator.domain.model import Session
from agent_orchestrator.engine.core import Core
from agent_orchestrator.operations.options import SessionLimits
from agent_orchestrator.ports.queries import SessionQueries

Limits = dict[str, Any]
"""The limits of a session by the names of its fields; None for one that it does not set."""

_NAMES: Final = {
    "max_depth": "depth",
    "max_children": "children",
    "max_descendants": "descendants",
}


def session_limits(core: Core, command: SessionLimits, parent: Session | None) -> Limits:
    """Return the limits of a new session: those of the command, else its parent's.

    :raises InvalidRequest: naming each limit that exceeds the inherited one. It is not lowered silently,
        because an agent would rely on it.
    """
    maximum = core.config.limits if parent is None else _child_limits(core, parent)
    inherited: Limits = dict.fromkeys(_NAMES)
    if parent is not None:
        inherited = {name: getattr(parent, name) for name in _NAMES}
        if parent.max_depth is not None:
            inherited["max_depth"] = max(0, parent.max_depth - 1)
    problems: dict[str, str] = {}
    for name, setting in _NAMES.items():
        requested, bound = getattr(command, name), getattr(maximum, setting)
        if requested is None:
            continue
        if requested > bound:
            source = (
                "the engine's limit" if parent is None else "the limit that its parent passes on"
            )
            problems[name] = f"must be at most {bound}, {source}"
        inherited[name] = requested
    if problems:
        raise InvalidRequest.of(problems)
    return inherited


def require_depth(core: Core, caller: Principal, parent: Session) -> None:
    """Raise if a child of this session would exceed the depth limit.

    :raises Forbidden: if the caller is an agent.
    :raises Conflict: otherwise.
    """
    if _limits_of(core, parent).depth >= 1:
        return
    maximum = core.config.limits.depth if parent.max_depth is None else 0
    scope = "" if parent.max_depth is None else f" below session {parent.id}"
    kind = Conflict if caller.run is None else Forbidden
    raise _limit_reached("depth", maximum, f"generations of children{scope}", kind)


def require_child_counts(
    core: Core, tx: SessionQueries, parent: Session, run_id: str | None
) -> None:
    """Raise ``Conflict`` if another active child would exceed a limit.

    :param run_id: the run of the parent that spawned the child, if any.
    """
    limits = _limits_of(core, parent)
    if tx.live_children(parent.id, run_id) >= limits.children:
        raise _limit_reached("children", limits.children, "active children of one run")
    for session_id, maximum in _counted(core, tx, parent):
        if tx.live_descendants(session_id) >= maximum:
            raise _limit_reached("descendants", maximum, f"active sessions below {session_id}")


def _limits_of(core: Core, session: Session) -> TreeLimits:
    """Return the limits for the descendants of a session."""
    limits = core.config.limits
    return TreeLimits(
        depth=_minimum(max(0, limits.depth - session.depth), session.max_depth),
        children=_minimum(limits.children, session.max_children),
        descendants=_minimum(limits.descendants, session.max_descendants),
    )


def _child_limits(core: Core, parent: Session) -> TreeLimits:
    """Return the limits for the descendants of a new child that sets no limits itself."""
    limits = _limits_of(core, parent)
    return evolve(limits, depth=max(0, limits.depth - 1))


def _counted(core: Core, tx: SessionQueries, parent: Session) -> Iterator[tuple[str, int]]:
    """Yield the id of each session whose active descendants are limited, and its limit.

    A limit that a session inherits is yielded only for the ancestor that sets it.
    """
    session, maximum = parent, core.config.limits.descendants
    while session.max_descendants is not None:
        ancestor = tx.session(session.parent_session_id) if session.parent_session_id else None
        if ancestor is None or ancestor.max_descendants != session.max_descendants:
            yield session.id, session.max_descendants
        if ancestor is None:
            break
        session = ancestor
    yield parent.root_session_id, maximum


def _minimum(maximum: int, limit: int | None) -> int:
    return maximum if limit is None else min(maximum, limit)


def _limit_reached(
    name: str, maximum: int, subject: str, kind: type[OrchestratorError] = Conflict
) -> OrchestratorError:
    return kind(f"no further child: at most {maximum} {subject}", {"limit": name, "most": maximum})

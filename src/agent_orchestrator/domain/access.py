"""Who may do what: the one place that decides."""

from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.model import Session

Scope = Literal["read", "write", "approve", "admin"]


@frozen
class RunIdentity:
    """Which attempt of which run a caller is: what its token stands for, and lives as long as."""

    run_id: str
    attempt: int
    session_id: str


@frozen
class Principal:
    """Who a caller is.

    :param id: the name sessions and messages record; of a run, its id.
    :param admin: may see and do everything.
    :param run: the run a caller acts as.
    """

    id: str
    admin: bool = False
    run: RunIdentity | None = None

    @classmethod
    def of_run(cls, run_id: str, attempt: int, session_id: str) -> "Principal":
        """Return an attempt of a run as a caller."""
        return cls(run_id, run=RunIdentity(run_id, attempt, session_id))


LOCAL: Final = Principal("local", admin=True)
"""The caller of an engine embedded in the same process, or of a daemon without tokens."""


def may_see(principal: Principal, session: Session) -> bool:
    """Tell whether the principal may know of this session, its runs and its events."""
    return principal.admin or session.owner == principal.id


def visible(principal: Principal, session: Session | None, session_id: str) -> Session:
    """Return the session.

    :raises NotFound: if there is none, or the principal may not know of it: one answer for both.
    """
    if session is None or not may_see(principal, session):
        raise NotFound(f"no session {session_id}", {"session_id": session_id})
    return session


def owner_filter(principal: Principal) -> str | None:
    """Return the owner a listing is limited to; None means all of them."""
    return None if principal.admin else principal.id

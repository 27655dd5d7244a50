"""Who may do what: the one table that decides."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal, get_args

from attrs import frozen

from agent_orchestrator.domain.model import Session

Scope = Literal["read", "write", "approve", "admin"]
GrantRole = Literal["reader", "writer", "owner"]
TokenKind = Literal["none", "configured", "named", "run"]

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)


class Action(StrEnum):
    """What can be done with a session, its runs and their requests."""

    READ = "read"
    """See it: runs, messages, log, requests, tree; wait for it; diagnose it."""
    CONVERSE = "converse with"
    """Put a client's message in, queue a run, drive a manual one."""
    SEND = "send to"
    """Put another agent's message in."""
    SPAWN = "spawn from"
    """Make a child of the session itself."""
    SPEAK = "speak as"
    """Act as a run: spawn from it, send in its name, tell and ask its parent."""
    CANCEL = "cancel"
    RESOLVE = "resolve requests of"
    MANAGE = "change"
    SHARE = "share"
    """Read and set who else may do what with it."""


class Relation(StrEnum):
    """How a caller stands to what it wants to act on."""

    STRANGER = "stranger"
    OWNER = "owner"
    """It made the session, has a grant that makes it an owner, or is an administrator."""
    WRITER = "writer"
    """It has a grant to work with the session."""
    READER = "reader"
    """It has a grant to look at the session."""
    SELF = "itself"
    """It is that run."""
    OWN_SESSION = "home"
    """It is a run, and this is its session or another of its runs."""
    ANCESTOR = "above"
    """It is a run, and this descends from its session."""


ALLOWED: Final[Mapping[Relation, frozenset[Action]]] = {
    Relation.STRANGER: frozenset(),
    Relation.OWNER: frozenset(Action),
    Relation.WRITER: frozenset(Action) - {Action.MANAGE, Action.SHARE},
    Relation.READER: frozenset({Action.READ}),
    Relation.SELF: frozenset({Action.READ, Action.SPEAK}),
    Relation.OWN_SESSION: frozenset({Action.READ}),
    Relation.ANCESTOR: frozenset({Action.READ, Action.SEND, Action.CANCEL, Action.RESOLVE}),
}


@frozen
class Grant:
    """What somebody else than its owner may do with a session."""

    principal: str
    role: GrantRole


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
    :param kind: by what kind of token it is known.
    :param scopes: what its token is good for; an administrator's for everything.
    :param token_id: the named token it came with, and lasts as long as.
    :param expires_at: when that ends by itself.
    """

    id: str
    admin: bool = False
    run: RunIdentity | None = None
    kind: TokenKind = "none"
    scopes: frozenset[Scope] = frozenset(SCOPES) - {"admin"}
    token_id: str | None = None
    expires_at: datetime | None = None

    @classmethod
    def of_run(cls, run_id: str, attempt: int, session_id: str) -> "Principal":
        """Return an attempt of a run as a caller."""
        return cls(run_id, run=RunIdentity(run_id, attempt, session_id), kind="run")


LOCAL: Final = Principal("local", admin=True)
"""The caller of an engine embedded in the same process, or of a daemon without tokens."""


def relation_of(
    caller: Principal,
    session: Session,
    *,
    run_id: str | None = None,
    is_below: bool = False,
    role: GrantRole | None = None,
) -> Relation:
    """Tell how a caller stands to a session, or to one run of it.

    :param is_below: whether the session descends from the caller's own, where that is a run.
    :param role: what the caller is granted on the session, where it is none.
    """
    if caller.run is not None:
        if session.id == caller.run.session_id:
            return Relation.SELF if run_id == caller.run.run_id else Relation.OWN_SESSION
        return Relation.ANCESTOR if is_below else Relation.STRANGER
    if caller.admin or session.owner == caller.id:
        return Relation.OWNER
    return Relation.STRANGER if role is None else Relation(role)


@frozen
class Visibility:
    """What of all sessions a list may show: those for which all that is given holds.

    :param principal: only sessions this one owns or has a grant on.
    :param tree: only this session and those that descend from it.
    """

    principal: str | None = None
    tree: str | None = None


EVERYTHING: Final = Visibility()


def visibility_of(caller: Principal) -> Visibility:
    """Return what a list may show a caller: just what it may read."""
    if caller.run is not None:
        return Visibility(tree=caller.run.session_id)
    return EVERYTHING if caller.admin else Visibility(principal=caller.id)

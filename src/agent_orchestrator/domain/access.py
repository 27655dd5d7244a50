"""Access rules: callers, their relation to a session, and the actions each relation allows."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal, get_args

from attrs import frozen

from agent_orchestrator.domain.model import Session

Scope = Literal["read", "write", "approve", "admin"]
GrantRole = Literal["reader", "writer", "owner"]
TokenKind = Literal["none", "configured", "named", "device", "link", "run"]

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)


class Action(StrEnum):
    """What a caller can do with a session, its runs and their requests. The value is a verb phrase."""

    READ = "read"
    """Read runs, messages, events, requests and the tree; wait for and diagnose runs."""
    CONVERSE = "converse with"
    """Send a client's message, queue a run, drive a manual run."""
    SEND = "send to"
    """Send another agent's message."""
    SPAWN = "spawn from"
    """Create a child of the session itself."""
    SPEAK = "speak as"
    """Act as a run: spawn from it, send in its name, send messages and questions to its parent."""
    CANCEL = "cancel"
    RESOLVE = "resolve requests of"
    MANAGE = "change"
    SHARE = "share"
    """Read and set the grants."""


class Relation(StrEnum):
    """The relation of a caller to a session, or to one run of it."""

    STRANGER = "stranger"
    OWNER = "owner"
    """The caller created the session, has the grant ``owner``, or is an administrator."""
    WRITER = "writer"
    """The caller has the grant ``writer``."""
    READER = "reader"
    """The caller has the grant ``reader``."""
    SELF = "itself"
    """The caller is this run."""
    OWN_SESSION = "own session"
    """The caller is a run of this session, and not the run in question."""
    ANCESTOR = "ancestor"
    """The caller is a run, and the session descends from its session."""


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
    """Access to a session for a principal other than its owner."""

    principal: str
    role: GrantRole


@frozen
class RunIdentity:
    """The attempt that a run's token stands for. The token ends with it."""

    run_id: str
    attempt: int
    session_id: str


@frozen
class Principal:
    """An authenticated caller.

    :param id: the name that sessions and messages record; for a run, the run's id.
    :param admin: whether it may do everything.
    :param run: the attempt that it acts as, if it is an agent.
    :param kind: the kind of its token.
    :param scopes: what its token allows.
    :param token_id: its named token. It loses access when that is revoked.
    :param expires_at: when that token expires.
    :param session_id: the session that it may read, with its descendants, and nothing else, if its token
        is a share link.
    """

    id: str
    admin: bool = False
    run: RunIdentity | None = None
    kind: TokenKind = "none"
    scopes: frozenset[Scope] = frozenset(SCOPES) - {"admin"}
    token_id: str | None = None
    expires_at: datetime | None = None
    session_id: str | None = None

    @property
    def tree(self) -> str | None:
        """The session to which it is limited, with its descendants."""
        return self.session_id if self.run is None else self.run.session_id

    @classmethod
    def of_run(cls, run_id: str, attempt: int, session_id: str) -> "Principal":
        """Return the principal of a run's attempt."""
        return cls(run_id, run=RunIdentity(run_id, attempt, session_id), kind="run")


LOCAL: Final = Principal("local", admin=True)
"""The caller of an engine embedded in the same process, or of a daemon without tokens."""


ANONYMOUS: Final = Principal("anonymous", scopes=frozenset())
"""The caller of a public operation. It has not said who it is."""


def relation_of(
    caller: Principal,
    session: Session,
    *,
    run_id: str | None = None,
    is_below: bool = False,
    role: GrantRole | None = None,
) -> Relation:
    """Return the relation of a caller to a session, or to one run of it.

    :param is_below: if the caller is limited to a tree: whether the session descends from its root.
    :param role: if the caller is not: its grant on the session.
    """
    if caller.session_id is not None:
        is_linked = is_below or session.id == caller.session_id
        return Relation.READER if is_linked else Relation.STRANGER
    if caller.run is not None:
        if session.id == caller.run.session_id:
            return Relation.SELF if run_id == caller.run.run_id else Relation.OWN_SESSION
        return Relation.ANCESTOR if is_below else Relation.STRANGER
    if caller.admin or session.owner == caller.id:
        return Relation.OWNER
    return Relation.STRANGER if role is None else Relation(role)


@frozen
class Visibility:
    """A filter of the sessions that a list may show. All its conditions must hold.

    :param principal: only sessions that this principal owns or has a grant on.
    :param tree: only this session and its descendants.
    """

    principal: str | None = None
    tree: str | None = None


EVERYTHING: Final = Visibility()


def visibility_of(caller: Principal) -> Visibility:
    """Return the filter for the sessions that a caller may read."""
    if caller.tree is not None:
        return Visibility(tree=caller.tree)
    return EVERYTHING if caller.admin else Visibility(principal=caller.id)

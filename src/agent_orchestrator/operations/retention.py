"""The call that deletes events of a session."""

from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Session
from agent_orchestrator.fields import MAX_INTEGER, command, param
from agent_orchestrator.operations.options import OfSession, RetentionOptions
from agent_orchestrator.operations.table import Operation


@command
class PruneSession(RetentionOptions, OfSession):
    """Limits that are given hold for this call alone. Without any, those of the session hold."""

    through: int | None = param(
        "Delete the events up to this `seq`, and ignore the limits.",
        default=None,
        minimum=0,
        maximum=MAX_INTEGER,
    )


@frozen
class PruneReply:
    session: Session
    """The session, with its new `oldest_cursor`."""
    deleted_count: int
    """Number of deleted events."""
    kept_by: str | None = None
    """The run, request or message whose events stay, with all later ones, although the limits are
    exceeded: it has not ended."""


PRUNE_SESSION: Final = Operation(
    "prune_session",
    "POST",
    "/sessions/{session_id}/prune",
    PruneSession,
    PruneReply,
    "Delete old events of a session. Only for its owners.",
    scope="write",
    takes_long=True,
)

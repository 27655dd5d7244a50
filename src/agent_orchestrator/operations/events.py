"""The call that lists events, and the parts of a stream."""

from collections.abc import Sequence
from typing import Final, TypeAlias

from attrs import frozen

from agent_orchestrator.domain.model import Event
from agent_orchestrator.fields import MAX_INTEGER, MAX_NAME, command, param
from agent_orchestrator.operations.options import OfSession, Page
from agent_orchestrator.operations.table import Operation


@command
class ListEvents(Page, OfSession):
    cursor: int | None = param(  # type: ignore[assignment]  # events are numbered
        "The `seq` of the last event that the reader has. Default: the oldest cursor. The call fails with 410 "
        "`gone` if later events are no longer kept; `details.oldest` is the cursor to go on from.",
        default=None,
        minimum=0,
        maximum=MAX_INTEGER,
    )
    wait_s: float = param(
        "Maximum seconds to wait if there is no event after the cursor.",
        default=0.0,
        minimum=0,
        maximum=3600,
    )
    epoch: str | None = param(
        "The `epoch` that came with the cursor. The call fails with 409 `cursor_ahead` if the log was "
        "restored from a backup since and no longer has what the reader read.",
        default=None,
        max_length=MAX_NAME,
    )


@frozen
class EventPage:
    """A page of a session's log.

    :param epoch: the epoch of the log. Send it with ``next_cursor`` to learn whether the log was restored
        from a backup in between.
    """

    events: tuple[Event, ...]
    next_cursor: int
    has_more: bool
    epoch: str | None = None


LIST_EVENTS: Final = Operation(
    "list_events",
    "GET",
    "/sessions/{session_id}/events",
    ListEvents,
    EventPage,
    "Read a session's events after a cursor.",
    shared=True,
)


HEAD: Final = "head"
"""The cursor for the current end of the log."""


@frozen
class StreamRequest:
    """Follow the events of some sessions.

    :param session_ids: the sessions; empty means every session that the caller may read.
    :param cursor: start after it; None starts at the oldest event, :data:`HEAD` after the last one. It is
        a ``seq`` with one session, else an opaque string from an earlier item of the same stream.
    :param epoch: with one session, the epoch in which the cursor or an earlier one was read. An opaque
        cursor contains it.
    """

    session_ids: Sequence[str] = ()
    cursor: str | None = None
    epoch: str | None = None


@frozen
class StreamItem:
    """An event and the cursor that resumes after it."""

    cursor: str
    event: Event


@frozen
class CaughtUp:
    """The reader has every event that was in the log when it subscribed."""

    cursor: str


@frozen
class Draining:
    """The daemon accepts no new work and will stop. Events may still follow."""

    cursor: str


StreamPart: TypeAlias = StreamItem | CaughtUp | Draining
"""One part of a stream. Only a daemon sends :class:`Draining`."""

"""Reading events: pages, and streams that follow the log."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.lowlevel

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import (
    CursorAhead,
    Gone,
    InvalidRequest,
    OrchestratorError,
    Unavailable,
)
from agent_orchestrator.domain.model import Event, Session
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import (
    access_topics,
    require_active,
    require_scope,
    seconds_left,
    session_for,
    visibility,
)
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.notifier import Waiter
from agent_orchestrator.engine.paging import BATCH_SIZE, PAGE_SIZE
from agent_orchestrator.fields import MAX_ID, MAX_INTEGER
from agent_orchestrator.operations.events import (
    HEAD,
    CaughtUp,
    EventPage,
    ListEvents,
    StreamItem,
    StreamRequest,
)
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import UNREACHABLE
from agent_orchestrator.ports.transport import Subscription

BATCH = 200
"""Maximum number of events read at once, so that a reader does not delay others."""

MAX_STREAM_SESSIONS = 100

RETRY_S: Final = 0.5
"""Seconds between two tries of an open stream to read from a store whose server is away."""

T = TypeVar("T")


def _page_after(
    view: View,
    caller: Principal,
    session_id: str,
    cursor: int | None,
    limit: int,
    size: int = BATCH_SIZE,
    *,
    epoch: str | None = None,
) -> tuple[list[Event], int, int]:
    """Return the events after a cursor, that cursor, and the last event's ``seq``.

    :param cursor: None means the oldest one.
    :param epoch: the epoch in which the cursor, or an earlier one, was read.
    :raises Gone: if events after the cursor were deleted.
    :raises CursorAhead: if the cursor is beyond the last event, or beyond the part of the log that is
        unchanged since the epoch.
    """
    session = session_for(view, caller, Action.READ, session_id)
    if cursor is None:
        cursor = session.oldest_cursor
    common = 0
    if epoch is not None and cursor > (common := view.last_common_seq(session_id, epoch)):
        details = {"cursor": cursor, "last_seq": session.last_seq, "resume_cursor": common}
        raise CursorAhead.restored(details)
    if cursor > session.last_seq:
        raise CursorAhead(
            f"cursor {cursor} is beyond the last event ({session.last_seq})",
            {"cursor": cursor, "last_seq": session.last_seq, "resume_cursor": 0},
        )
    _require_kept(session, cursor)
    events = view.events(session_id, after=cursor, limit=limit, size=size)
    return events, cursor, session.last_seq


def _require_kept(session: Session, cursor: int) -> None:
    """Raise ``Gone`` if events after a cursor were deleted."""
    if cursor < session.oldest_cursor:
        raise Gone(
            f"the events up to {session.oldest_cursor} are no longer kept",
            {"cursor": cursor, "oldest": session.oldest_cursor, "last_seq": session.last_seq},
        )


async def list_events(core: Core, caller: Principal, command: ListEvents) -> EventPage:
    def query(view: View) -> tuple[list[Event], int, int, str | None]:
        page = _page_after(
            view,
            caller,
            command.session_id,
            command.cursor,
            command.limit,
            PAGE_SIZE,
            epoch=command.epoch,
        )
        return *page, view.epoch()

    with core.notifier.subscribe(f"session:{command.session_id}", *access_topics(caller)) as waiter:
        new, cursor, last_seq, epoch = await core.store.read(query)
        if not new and command.wait_s:
            with anyio.move_on_after(command.wait_s):
                while not new:
                    await waiter.wait()
                    waiter.clear()
                    new, cursor, last_seq, epoch = await core.store.read(query)
    next_cursor = new[-1].seq if new else cursor
    return EventPage(tuple(new), next_cursor, has_more=next_cursor < last_seq, epoch=epoch)


@asynccontextmanager
async def subscribe(
    core: Core, caller: Principal, request: StreamRequest
) -> AsyncIterator[Subscription]:
    """Open a stream of one, several or all sessions that the caller may read.

    :raises OrchestratorError: if it is refused.
    """
    ids = tuple(dict.fromkeys(request.session_ids))
    if len(ids) > MAX_STREAM_SESSIONS:
        raise InvalidRequest.of({"sessionId": f"must be at most {MAX_STREAM_SESSIONS} sessions"})
    if any(len(session_id) > MAX_ID for session_id in ids):
        raise InvalidRequest.of({"sessionId": f"must be at most {MAX_ID} characters"})
    require_scope(core, caller, "read")
    topics = [f"session:{session_id}" for session_id in ids] or ["events"]
    with core.notifier.subscribe(*topics, *access_topics(caller)) as waiter:
        reader: _SessionReader | _FeedReader
        if len(ids) == 1:
            reader = _SessionReader(core, caller, waiter, ids[0], request.cursor, request.epoch)
        else:
            reader = _FeedReader(core, caller, waiter, ids, request.cursor)
        try:
            await reader.open()
        except OrchestratorError as error:
            await audit.record_refusal(core, caller, "stream", ",".join(ids) or None, error)
            raise
        with core.last_seen.during(caller.token_id):
            yield reader


def _sequence(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19):
        raise InvalidRequest.of({"cursor": "must be the seq of an event, or 0"})
    return min(int(cursor), MAX_INTEGER)


async def _read(core: Core, query: Callable[[View], T]) -> T:
    return await _when_reachable(partial(core.store.read, query))


async def _when_reachable(read: Callable[[], Awaitable[T]]) -> T:
    """Read for an open stream. While the server of the store is away, wait: the stream stays open."""
    while True:
        try:
            return await read()
        except Unavailable as error:
            if error.details.get("problem") != UNREACHABLE:
                raise
        await anyio.sleep(RETRY_S)


async def _wait_revoked(core: Core, caller: Principal, check: Callable[[View], object]) -> None:
    """Wait until a reader has lost access, even if it has more to read.

    :param check: raises if the reader has lost access.
    :raises OrchestratorError: then.
    """
    if caller.expires_at is None and not access_topics(caller):
        await anyio.sleep_forever()
    with core.notifier.subscribe(*access_topics(caller)) as waiter:
        while True:
            waiter.clear()
            await _read(core, check)
            await _next_notification(core, caller, waiter)


async def _next_notification(core: Core, caller: Principal, waiter: Waiter) -> None:
    """Wait for a notification.

    :raises Unauthorized: if the reader's token has expired.
    """
    if (remaining_s := seconds_left(core, caller)) is None:
        await waiter.wait()
    else:
        with anyio.move_on_after(remaining_s):
            await waiter.wait()
        seconds_left(core, caller)


class _SessionReader:
    """A reader of one session's events. Its cursor is a ``seq``."""

    def __init__(
        self,
        core: Core,
        caller: Principal,
        waiter: Waiter,
        session_id: str,
        cursor: str | None,
        epoch: str | None,
    ) -> None:
        """:param cursor: None means the oldest event.
        :param epoch: the epoch in which the cursor was read, if known.
        """
        self.epoch = epoch
        self._core = core
        self._caller = caller
        self._waiter = waiter
        self._session_id = session_id
        self._cursor = 0
        self._starts_at_head = cursor == HEAD
        self._first_cursor = None if cursor in (None, HEAD) else _sequence(cursor)
        self._head_at_start = 0
        self._caught_up = False
        self._is_at_end = False
        """Whether there was nothing to read, and no notification since. A keepalive then needs no read."""

    async def open(self) -> None:
        """Check access and cursor, and record the current end of the log."""

        def query(view: View) -> tuple[int, int, str | None]:
            _, cursor, last_seq = _page_after(
                view, self._caller, self._session_id, self._first_cursor, 0, epoch=self.epoch
            )
            return cursor, last_seq, view.epoch()

        # The end is checked only once, because that of an open store's log never moves back.
        self._cursor, self._head_at_start, self.epoch = await self._core.store.read(query)
        if self._starts_at_head:
            self._cursor = self._head_at_start

    async def receive(self) -> Sequence[StreamItem | CaughtUp]:
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()  # also if there is always more to read
            seconds_left(self._core, self._caller)
            limit = BATCH
            if not self._caught_up:
                if self._cursor >= self._head_at_start:
                    self._caught_up = True
                    # The waiter was subscribed before the head was read, and not cleared since.
                    self._is_at_end = True
                    return (CaughtUp(str(self._cursor)),)
                limit = min(limit, self._head_at_start - self._cursor)
            if self._is_at_end:
                await _next_notification(self._core, self._caller, self._waiter)
                self._is_at_end = False
            if self._caught_up:
                self._waiter.clear()
            read = partial(
                self._core.shared_reads.page, self._caller, self._require_events, self._session_id
            )
            page = await _when_reachable(partial(read, self._cursor, limit))
            self._is_at_end = self._caught_up and not page
            if page:
                self._cursor = page[-1].event.seq
                return page

    async def wait_revoked(self) -> None:
        await _wait_revoked(self._core, self._caller, self._require_access)

    def _require_access(self, view: View) -> Session:
        return session_for(view, self._caller, Action.READ, self._session_id)

    def _require_events(self, view: View) -> None:
        _require_kept(self._require_access(view), self._cursor)


class _FeedReader:
    """A reader of several sessions' events. Its cursor is the store's."""

    def __init__(
        self,
        core: Core,
        caller: Principal,
        waiter: Waiter,
        session_ids: tuple[str, ...],
        cursor: str | None,
    ) -> None:
        self._core = core
        self._caller = caller
        self._waiter = waiter
        self.epoch: str | None = None
        self._session_ids = session_ids
        self._cursor = None if cursor == HEAD else cursor
        self._starts_at_head = cursor == HEAD
        self._head_at_start: str | None = None
        """The cursor of the log's end when the stream was opened. None once it is passed."""
        self._is_at_end = False

    async def open(self) -> None:
        """Check access and cursor, and record the current end of the log."""

        def query(view: View) -> tuple[str, str | None]:
            self._next(view)
            return view.feed_head(), view.epoch()

        self._head_at_start, self.epoch = await self._core.store.read(query)
        if self._starts_at_head:
            self._cursor = self._head_at_start

    async def wait_revoked(self) -> None:
        await _wait_revoked(self._core, self._caller, self._require_access)

    def _require_access(self, view: View) -> None:
        require_active(view, self._caller)
        for session_id in self._session_ids:
            session_for(view, self._caller, Action.READ, session_id)

    def _next(self, view: View) -> tuple[list[StreamItem], str]:
        self._require_access(view)
        items = view.feed(
            after=self._cursor,
            until=self._head_at_start,
            sessions=self._session_ids,
            within=visibility(view, self._caller),
            limit=BATCH,
            size=BATCH_SIZE,
        )
        return items, self._head_at_start or view.feed_head()

    async def receive(self) -> Sequence[StreamItem | CaughtUp]:
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()  # also if there is always more to read
            seconds_left(self._core, self._caller)
            if self._is_at_end:
                await _next_notification(self._core, self._caller, self._waiter)
                self._is_at_end = False
            self._waiter.clear()
            items, head = await _read(self._core, self._next)
            if items:
                self._cursor = items[-1].cursor
                return items
            # No event of these sessions is left up to the head, so the next read starts there.
            self._cursor = head
            if self._head_at_start is not None:
                self._head_at_start = None
                return [CaughtUp(head)]
            self._is_at_end = True

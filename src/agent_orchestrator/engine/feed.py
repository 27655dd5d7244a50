"""Reading the log: pages of it, and streams that follow it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import CursorAhead, InvalidRequest, OrchestratorError
from agent_orchestrator.domain.model import Event
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import (
    in_scope,
    present,
    reach,
    remaining,
    session_for,
    topics,
)
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.notifier import Waiter
from agent_orchestrator.engine.paging import BATCH_SIZE, PAGE_SIZE
from agent_orchestrator.fields import MAX_ID, MAX_INTEGER
from agent_orchestrator.operations import (
    HEAD,
    CaughtUp,
    EventPage,
    ListEvents,
    StreamItem,
    StreamRequest,
)
from agent_orchestrator.ports import Subscription, View

BATCH = 200
"""Events read at once: few enough to keep a reader's turn short."""

MAX_STREAM_SESSIONS = 100


def _after(
    view: View,
    who: Principal,
    session_id: str,
    cursor: int,
    limit: int,
    size: int = BATCH_SIZE,
    *,
    epoch: str | None = None,
) -> tuple[list[Event], int]:
    """Return what comes after a cursor, and the last event's ``seq``.

    :param epoch: in which the cursor, or one before it, was read.
    :raises CursorAhead: if the log has no such place, or went on otherwise since that epoch.
    """
    session = session_for(view, who, Action.READ, session_id)
    common = 0
    if epoch is not None and cursor > (common := view.last_common_seq(session_id, epoch)):
        details = {"cursor": cursor, "last_seq": session.last_seq, "resume_cursor": common}
        raise CursorAhead.restored(details)
    if cursor > session.last_seq:
        raise CursorAhead(
            f"cursor {cursor} is beyond the last event, {session.last_seq}",
            {"cursor": cursor, "last_seq": session.last_seq, "resume_cursor": 0},
        )
    events = view.events(session_id, after=cursor, limit=limit, size=size)
    return events, session.last_seq


async def list_events(core: Core, who: Principal, command: ListEvents) -> EventPage:
    def look(view: View) -> tuple[list[Event], int, str | None]:
        at, most, epoch = command.cursor, command.limit, command.epoch
        return (
            *_after(view, who, command.session_id, at, most, PAGE_SIZE, epoch=epoch),
            view.epoch(),
        )

    with core.notifier.subscribe(f"session:{command.session_id}", *topics(who)) as waiter:
        found, last_seq, epoch = await core.store.read(look)
        if not found and command.wait_s:
            with anyio.move_on_after(command.wait_s):
                while not found:
                    await waiter.wait()
                    waiter.clear()
                    found, last_seq, epoch = await core.store.read(look)
    next_cursor = found[-1].seq if found else command.cursor
    return EventPage(tuple(found), next_cursor, has_more=next_cursor < last_seq, epoch=epoch)


@asynccontextmanager
async def subscribe(
    core: Core, who: Principal, request: StreamRequest
) -> AsyncIterator[Subscription]:
    """Open a stream of one, several or all sessions the caller may read.

    :raises OrchestratorError: if it is refused.
    """
    ids = tuple(dict.fromkeys(request.session_ids))
    if len(ids) > MAX_STREAM_SESSIONS:
        raise InvalidRequest.of({"sessionId": f"must be at most {MAX_STREAM_SESSIONS} sessions"})
    if any(len(session_id) > MAX_ID for session_id in ids):
        raise InvalidRequest.of({"sessionId": f"must be at most {MAX_ID} characters"})
    in_scope(core, who, "read")
    heard = [f"session:{session_id}" for session_id in ids] or ["events"]
    with core.notifier.subscribe(*heard, *topics(who)) as waiter:
        reader: _SessionReader | _FeedReader
        if len(ids) == 1:
            after = None if request.cursor == HEAD else _sequence(request.cursor)
            reader = _SessionReader(core, who, waiter, ids[0], after, request.epoch)
        else:
            reader = _FeedReader(core, who, waiter, ids, request.cursor)
        try:
            await reader.check()
        except OrchestratorError as error:
            await audit.refused(core, who, "stream", ",".join(ids) or None, error)
            raise
        yield reader


def _sequence(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19):
        raise InvalidRequest.of({"cursor": "must be the seq of an event, or 0"})
    return min(int(cursor), MAX_INTEGER)


async def _until_over(core: Core, who: Principal, may: Callable[[View], object]) -> None:
    """Wait until a reader may not go on, however much it has yet to read.

    :param may: a look that is refused then.
    :raises OrchestratorError: when it is so.
    """
    if who.expires_at is None and not topics(who):
        await anyio.sleep_forever()
    with core.notifier.subscribe(*topics(who)) as waiter:
        while True:
            waiter.clear()
            await core.store.read(may)
            await _next_notification(core, who, waiter)


async def _next_notification(core: Core, who: Principal, waiter: Waiter) -> None:
    """Wait until there may be something new to read.

    :raises Unauthorized: if the reader's time is up.
    """
    if (left := remaining(core, who)) is None:
        await waiter.wait()
    else:
        with anyio.move_on_after(left):
            await waiter.wait()
        remaining(core, who)


class _SessionReader:
    """A place in one session's log; the cursor is its ``seq``."""

    def __init__(
        self,
        core: Core,
        who: Principal,
        waiter: Waiter,
        session_id: str,
        cursor: int | None,
        epoch: str | None,
    ) -> None:
        """:param cursor: None is the end of the log.
        :param epoch: in which the cursor was read, if that is known.
        """
        self.epoch = epoch
        self._core = core
        self._who = who
        self._waiter = waiter
        self._session_id = session_id
        self._cursor = cursor or 0
        self._from_head = cursor is None
        self._goal = 0
        self._caught_up = False

    async def check(self) -> None:
        """Refuse a stream that may not be read, and note how far the log goes now."""

        def look(view: View) -> tuple[int, str | None]:
            last_seq = _after(view, self._who, self._session_id, self._cursor, 0, epoch=self.epoch)[
                1
            ]
            return last_seq, view.epoch()

        # Checked once: the log of a store that is open does not go back.
        self._goal, self.epoch = await self._core.store.read(look)
        if self._from_head:
            self._cursor = self._goal

    async def receive(self) -> Sequence[StreamItem | CaughtUp]:
        while True:
            remaining(self._core, self._who)
            self._waiter.clear()
            events = await self._read(BATCH)
            items: list[StreamItem | CaughtUp] = []
            if not self._caught_up and self._cursor >= self._goal:
                items.append(self._catch_up())
            for event in events:
                self._cursor = event.seq
                items.append(StreamItem(str(event.seq), event))
                if not self._caught_up and event.seq >= self._goal:
                    items.append(self._catch_up())
            if items:
                return items
            await _next_notification(self._core, self._who, self._waiter)

    async def over(self) -> None:
        await _until_over(self._core, self._who, self._may)

    def _may(self, view: View) -> None:
        session_for(view, self._who, Action.READ, self._session_id)

    def _catch_up(self) -> CaughtUp:
        self._caught_up = True
        return CaughtUp(str(self._cursor))

    async def _read(self, limit: int) -> list[Event]:
        return await self._core.store.read(
            lambda view: _after(view, self._who, self._session_id, self._cursor, limit)[0]
        )


class _FeedReader:
    """A place in the log of several sessions; the cursor is the store's."""

    def __init__(
        self,
        core: Core,
        who: Principal,
        waiter: Waiter,
        session_ids: tuple[str, ...],
        cursor: str | None,
    ) -> None:
        self._core = core
        self._who = who
        self._waiter = waiter
        self.epoch: str | None = None
        self._session_ids = session_ids
        self._cursor = None if cursor == HEAD else cursor
        self._from_head = cursor == HEAD
        self._goal: str | None = None
        """The head when the reader came, until that is passed."""

    async def check(self) -> None:
        """Refuse a stream that may not be read, and note how far the log goes now."""

        def look(view: View) -> tuple[str, str | None]:
            self._next(view)
            return view.feed_head(), view.epoch()

        self._goal, self.epoch = await self._core.store.read(look)
        if self._from_head:
            self._cursor = self._goal

    async def over(self) -> None:
        await _until_over(self._core, self._who, self._may)

    def _may(self, view: View) -> None:
        present(view, self._who)
        for session_id in self._session_ids:
            session_for(view, self._who, Action.READ, session_id)

    def _next(self, view: View) -> tuple[list[StreamItem], str]:
        self._may(view)
        items = view.feed(
            after=self._cursor,
            until=self._goal,
            sessions=self._session_ids,
            within=reach(view, self._who),
            limit=BATCH,
            size=BATCH_SIZE,
        )
        return items, self._goal or view.feed_head()

    async def receive(self) -> Sequence[StreamItem | CaughtUp]:
        while True:
            remaining(self._core, self._who)
            self._waiter.clear()
            items, head = await self._core.store.read(self._next)
            if items:
                self._cursor = items[-1].cursor
                return items
            # Nothing of ours is left up to the head: the next look need not pass over it again.
            self._cursor = head
            if self._goal is not None:
                self._goal = None
                return [CaughtUp(head)]
            await _next_notification(self._core, self._who, self._waiter)

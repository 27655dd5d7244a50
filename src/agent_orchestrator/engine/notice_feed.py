"""The task that fills the outbox of notices from the log."""

import logging
from typing import Final

import anyio
from attrs import define, field

from agent_orchestrator.domain.errors import CursorAhead, InvalidRequest, Unavailable
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.notice_outbox import NOTICEABLE, add_request_notices, apply_event
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

logger = logging.getLogger("agent_orchestrator.notices")

SUBSCRIPTIONS_TOPIC: Final = "push"
"""Notified when a browser subscribes."""

BATCH: Final = 16
"""Maximum number of events that one transaction handles, because other changes wait for it."""

PAUSE_S: Final = 0.5
"""Seconds between two reads of the log. A working agent writes many events, few of which
make notices."""

RETRY_S: Final = 5.0
"""Seconds until the next read if the store is unavailable."""

LONGEST_LAG_S: Final = 60.0
"""Seconds after which the cursor is stored even if no event made a notice, so that a restart reads little."""


async def follow_log(core: Core) -> None:
    """Fill the outbox as long as the engine runs, while there is somebody to notify."""
    reader = _Reader(core)
    while True:
        is_active = reader.is_active
        with core.notifier.subscribe("events" if is_active else SUBSCRIPTIONS_TOPIC) as waiter:
            while reader.is_active == is_active:
                waiter.clear()
                try:
                    has_more = await reader.handle_next()
                except Exception as error:
                    is_known = isinstance(error, Unavailable)
                    text = "notices cannot be made now, trying again: %s"
                    logger.warning(text, error, exc_info=not is_known)
                    await anyio.sleep(RETRY_S)
                    continue
                if has_more or reader.is_active != is_active:
                    continue
                await waiter.wait()
                if is_active:
                    await anyio.sleep(PAUSE_S)


@define
class _Reader:
    """Reads the log once there is somebody to notify."""

    core: Core
    is_active: bool = False
    cursor: str | None = None
    stored_at: float = field(factory=anyio.current_time)

    async def handle_next(self) -> bool:
        """Handle the next events, if there is somebody to notify. Return whether there may be more."""
        if not self.is_active:
            self.is_active = await self.core.store.read(
                lambda view: _has_recipients(self.core, view)
            )
        if not self.is_active:
            await _forget_cursor(self.core)
            return False
        self.cursor, is_at_end = await handle_events(self.core, self.cursor)
        if is_at_end and anyio.current_time() - self.stored_at > LONGEST_LAG_S:
            await _store_cursor(self.core, self.cursor)
            self.stored_at = anyio.current_time()
        return not is_at_end


def _has_recipients(core: Core, view: View) -> bool:
    if core.config.targets:
        return True
    return core.config.push is not None and bool(view.push_subscriptions(limit=1))


async def handle_events(core: Core, cursor: str | None) -> tuple[str, bool]:
    """Handle the next events of the log.

    :param cursor: the position in the log; None means the stored one.
    :return: the next position, and whether it is the end of the log.
    """

    def query(view: View) -> tuple[list[StreamItem], str] | None:
        after = cursor or view.notice_cursor()
        if after is None:
            return None
        try:
            items = view.feed_of_types(NOTICEABLE, after=after, limit=BATCH, size=BATCH_SIZE)
        except (CursorAhead, InvalidRequest):
            return None  # the cursor is of another log: a backup was restored
        return items, view.feed_head()

    found = await core.store.read(query)
    if found is None:
        return await core.store.transact(lambda tx: start_over(core, tx)), True
    items, head = found
    if not items:
        return head, True
    await core.store.transact(lambda tx: _apply(core, tx, items))
    return items[-1].cursor, False


def _apply(core: Core, tx: Transaction, items: list[StreamItem]) -> None:
    for item in items:
        apply_event(core, tx, item.event)
    tx.set_notice_cursor(items[-1].cursor)


def start_over(core: Core, tx: Transaction) -> str:
    """Begin at the end of the log, with notices of the requests that are open now. Return the cursor."""
    after = None
    while pending := tx.requests(status="pending", after=after, limit=MAX_READ_ROWS):
        for request in pending:
            add_request_notices(core, tx, request)
        after = pending[-1].id
    head = tx.feed_head()
    tx.set_notice_cursor(head)
    return head


async def _store_cursor(core: Core, cursor: str) -> None:
    await core.store.transact(lambda tx: tx.set_notice_cursor(cursor))


async def _forget_cursor(core: Core) -> None:
    """Forget the cursor, because nobody is notified. Later subscribers get no notices of
    earlier events.
    """
    if await core.store.read(lambda view: view.notice_cursor()) is not None:
        await core.store.transact(lambda tx: tx.set_notice_cursor(None))

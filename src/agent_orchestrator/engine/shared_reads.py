"""Pages of a session's log that many readers read at once.

After a commit all readers that follow a session want the same page. It is read once, and all get the same object.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import OrchestratorError
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Store
from agent_orchestrator.wire.encoded import Encoded

Page: TypeAlias = tuple[StreamItem, ...]

KEPT_PAGES: Final = 8
"""Number of pages that are kept. Each has about a mebibyte of JSON at most."""


@frozen
class _Key:
    session_id: str
    after: int
    limit: int

    def page(self, view: View) -> Page:
        events = view.events(self.session_id, after=self.after, limit=self.limit, size=BATCH_SIZE)
        return tuple(StreamItem(str(event.seq), event) for event in events)


Check: TypeAlias = Callable[[View], object]
"""Raises if a reader may not read the session."""


@define(eq=False)
class _Read:
    """A read, and its result.

    :param checks: the check of each caller that shares it.
    :param pages: the page for each caller that may read the session.
    """

    key: _Key
    checks: dict[Principal, Check]
    pages: dict[Principal, Page] = field(factory=dict)
    done: anyio.Event = field(factory=anyio.Event)

    def perform(self, known: Page | None, view: View) -> None:
        allowed = [caller for caller, check in self.checks.items() if _passes(check, view)]
        if allowed:
            page = self.key.page(view) if known is None else known
            self.pages = dict.fromkeys(allowed, page)


def _passes(check: Check, view: View) -> bool:
    try:
        check(view)
    except OrchestratorError:
        return False
    return True


@define(eq=False)
class SharedReads:
    """The reads of a store that have not begun yet, which further readers can share, and the last pages.

    A page with as many events as were wanted never changes, so it is kept for readers that come later.
    """

    _store: Store
    _open: dict[_Key, _Read] = field(factory=dict)
    _full: OrderedDict[_Key, Page] = field(factory=OrderedDict)

    async def page(
        self, caller: Principal, check: Check, session_id: str, after: int, limit: int
    ) -> Page:
        """Return at most ``limit`` events of a session after a ``seq``.

        Access is checked for each caller in the transaction that reads.

        :raises OrchestratorError: if the caller may not read the session, or the store fails.
        """
        key = _Key(session_id, after, limit)
        if (read := self._open.get(key)) is None:
            read = self._open[key] = _Read(key, {caller: check})
            await self._perform(read)
        else:
            read.checks[caller] = check
            await read.done.wait()
        if (page := read.pages.get(caller)) is not None:
            return page

        # It is refused, or the shared read has failed: its own read raises its own error.
        def alone(view: View) -> Page:
            check(view)
            return key.page(view)

        return await self._store.read(alone)

    async def _perform(self, read: _Read) -> None:
        try:
            try:
                # Readers that the same commit woke come now.
                await anyio.lowlevel.checkpoint()
            finally:
                del self._open[read.key]
            known = self._full.get(read.key)
            await self._store.read(partial(read.perform, known))
            if known is None:
                self._keep(read)
        except OrchestratorError:
            pass  # each reader reads again, and gets the error
        finally:
            # Also if this reader leaves: the others then read for themselves.
            read.done.set()

    def _keep(self, read: _Read) -> None:
        for page in read.pages.values():
            if len(page) == read.key.limit and not any(map(_is_long, page)):
                self._full[read.key] = page
                if len(self._full) > KEPT_PAGES:
                    self._full.popitem(last=False)
            return


def _is_long(item: StreamItem) -> bool:
    return isinstance(item.event.data, Encoded)

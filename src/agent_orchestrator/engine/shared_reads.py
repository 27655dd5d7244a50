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
"""Number of full pages that are kept. Each has about a mebibyte of JSON at most."""


@frozen
class _Key:
    session_id: str
    after: int
    limit: int

    def read(self, view: View) -> Page:
        events = view.events(self.session_id, after=self.after, limit=self.limit, size=BATCH_SIZE)
        return tuple(StreamItem(str(event.seq), event) for event in events)


Check: TypeAlias = Callable[[View], object]
"""Raises if a reader may not read the session."""


@frozen
class _FullPage:
    """A page that changes only if events of it are deleted.

    :param deleted_count: number of events of the session that had been deleted when it was read.
    """

    page: Page
    deleted_count: int


@define(eq=False)
class _Read:
    """A read that several callers share, and its result.

    :param checks: the access check of each caller.
    :param pages: the page, for each caller that may read the session.
    :param full: the page, if it is to be kept.
    """

    key: _Key
    checks: dict[Principal, Check]
    pages: dict[Principal, Page] = field(factory=dict)
    full: _FullPage | None = None
    done: anyio.Event = field(factory=anyio.Event)

    def perform(self, known: _FullPage | None, view: View) -> None:
        allowed = [caller for caller, check in self.checks.items() if _passes(check, view)]
        if not allowed:
            return
        if known is not None and known.deleted_count == self._deleted_count(view):
            page = known.page
        else:
            page = self.key.read(view)
            if len(page) == self.key.limit and not any(map(_is_long, page)):
                self.full = _FullPage(page, self._deleted_count(view))
        self.pages = dict.fromkeys(allowed, page)

    def _deleted_count(self, view: View) -> int:
        return view.pruned_log(self.key.session_id).count


def _passes(check: Check, view: View) -> bool:
    try:
        check(view)
    except OrchestratorError:
        return False
    return True


@define(eq=False)
class SharedReads:
    """Reads each page once for all callers that want it at the same time.

    A caller joins a read of the same page that has not begun. The last full pages, which have as many events
    as were asked for, are kept for later callers.
    """

    _store: Store
    _waiting: dict[_Key, _Read] = field(factory=dict)
    _full_pages: OrderedDict[_Key, _FullPage] = field(factory=OrderedDict)

    async def page(
        self, caller: Principal, check: Check, session_id: str, after: int, limit: int
    ) -> Page:
        """Return at most ``limit`` events of a session after a ``seq``.

        Access is checked for each caller in the transaction that reads.

        :raises OrchestratorError: if the caller may not read the session, or the store fails.
        """
        key = _Key(session_id, after, limit)
        if (read := self._waiting.get(key)) is None:
            read = self._waiting[key] = _Read(key, {caller: check})
            await self._perform(read)
        else:
            read.checks[caller] = check
            await read.done.wait()
        if (page := read.pages.get(caller)) is not None:
            return page

        # The caller has no access, or the shared read failed. A separate read raises the error.
        def read_alone(view: View) -> Page:
            check(view)
            return key.read(view)

        return await self._store.read(read_alone)

    async def _perform(self, read: _Read) -> None:
        try:
            try:
                # Lets the other readers that the same commit woke join this read.
                await anyio.lowlevel.checkpoint()
            finally:
                del self._waiting[read.key]
            known = self._full_pages.get(read.key)
            await self._store.read(partial(read.perform, known))
            if read.full is not None:
                self._keep(read.key, read.full)
        except OrchestratorError:
            pass  # each reader reads again, and gets the error
        finally:
            # Also if this reader was canceled: the others then read for themselves.
            read.done.set()

    def _keep(self, key: _Key, page: _FullPage) -> None:
        self._full_pages[key] = page
        if len(self._full_pages) > KEPT_PAGES:
            self._full_pages.popitem(last=False)


def _is_long(item: StreamItem) -> bool:
    return isinstance(item.event.data, Encoded)

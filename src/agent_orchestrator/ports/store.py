"""Stores: what an engine needs of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar, runtime_checkable

import anyio

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.clock import Clock
from agent_orchestrator.ports.queries import View

T = TypeVar("T")

UNREACHABLE: Final = "database_unreachable"
"""The problem of a store whose server does not answer. It ends by itself. Refusals have it in their details."""

ANY_TOPIC: Final = "*"
"""The topic of a notification that means: anything may have changed."""


DAEMONS_TOPIC: Final = "daemons"
"""Notified when a daemon that shares the store has joined, or has ended."""


INQUIRIES_TOPIC: Final = "inquiries"
"""Notified when a daemon asks another one that shares the store."""


def answer_topic(inquiry_id: str) -> str:
    """Return the topic that is notified when a question of a daemon was answered."""
    return f"answer:{inquiry_id}"


class Transactions(Protocol):
    """Reads and changes of a store.

    A change is a function of a :class:`Transaction`. Changes are serializable, and may run on another
    thread. A change must not wait, must affect only the transaction, and may be called again if the
    store retries. If it raises, its writes are rolled back and the caller gets the exception.
    """

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        """Run a change and return its value once it is durable.

        :param reserve: whether the change may use the space reserved for a full disk. Only for a change
            that records an outcome and starts nothing new.
        :raises Unavailable: if it could not be made durable.
        """
        ...

    async def read(self, query: Callable[[View], T]) -> T:
        """Run a function of a consistent view. It should read at most 500 rows."""
        ...


class CommitNotifications(Protocol):
    """Notifications of commits, for tasks that wait for a change."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        """Call ``listener`` with the topics of each commit, also of other processes.

        If :data:`ANY_TOPIC` is among them, any topic may have changed. A store reports it after it lost
        its connection, as it cannot know what it missed.

        It is called in the event loop's thread, after the commit and before :meth:`Transactions.transact`
        returns. It must not wait or raise. Notifications carry no data: a subscriber reads the store.
        """
        ...


class StoreStatus(Protocol):
    """The store's part of the daemon's status."""

    @property
    def backend(self) -> str:
        """The kind of store, such as ``sqlite``."""
        ...

    @property
    def location(self) -> str | None:
        """The path or URL, without secrets."""
        ...

    @property
    def schema_version(self) -> int: ...

    async def problems(self) -> Sequence[Problem]:
        """Return the current problems of the store."""
        ...


class Lease(Protocol):
    """The right of a daemon to change a store that others can use as well.

    When it has expired, another daemon may take over this one's runs.
    """

    @property
    def daemon_id(self) -> str:
        """The daemon's name in the store. A daemon that begins anew has another one."""
        ...

    @property
    def expires_at(self) -> float:
        """When the lease ends, by :func:`time.monotonic`, as far as the store has confirmed it. It moves
        while the daemon works. By the store's clock, the lease ends later, never earlier.
        """
        ...

    @property
    def clock_offset_s(self) -> float:
        """Seconds that this daemon's clock is certainly ahead of the store's; negative if it is behind."""
        ...

    @property
    def lost(self) -> anyio.Event:
        """Set when another daemon has taken over. This lease can change nothing more."""
        ...


class Store(Transactions, CommitNotifications, StoreStatus, Protocol):
    """The storage of an engine. It is an async context manager; many tasks may call it at once."""

    @property
    def lease(self) -> Lease | None:
        """The present lease of this daemon; None if no other daemon can use the store."""
        ...

    async def join(self, profile: DaemonProfile) -> Lease | None:
        """Record what this daemon says of itself, and return its lease, as :attr:`lease` does.

        After a lost lease, this begins a new one, under another id.

        :raises StoreOpenError: if another daemon prevents that.
        :raises Unavailable: if the store cannot be reached.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class Synchronizing(Protocol):
    """A store of several daemons, whose clocks may differ. Optional."""

    def synchronize(self, clock: Clock, ids: SortableIds | None) -> None:
        """Measure how far a daemon's clock is off, and keep its ids in the order of all changes.

        Each id that is made in a change sorts after those of all earlier changes, also of other daemons. Must
        be called before :meth:`Store.join`.

        :param clock: the daemon's clock.
        :param ids: the source of its ids; None if its ids have no order.
        """
        ...


@runtime_checkable
class Inquiring(Protocol):
    """A store whose daemons can ask each other about their machines. Optional.

    All methods raise ``Unavailable`` if the store cannot be reached.
    """

    async def ask(self, daemon_id: str, question: str) -> str:
        """Ask a daemon, which is notified of :data:`INQUIRIES_TOPIC`, and return the question's id."""
        ...

    async def inquiries(self) -> Sequence[tuple[str, str]]:
        """Return the ids and texts of the questions to this daemon that have no answer."""
        ...

    async def answer(self, inquiry_id: str, text: str) -> None:
        """Answer a question to this daemon. Whoever asked is notified of :func:`answer_topic`."""
        ...

    async def take_answer(self, inquiry_id: str) -> str | None:
        """Return the answer to a question, once; None if there is none yet."""
        ...


@runtime_checkable
class Reachable(Protocol):
    """A store on a server, which may not be reached. Optional."""

    async def reach(self) -> str:
        """Connect, change nothing, and return what was found, in words. The store need not be open.

        :raises StoreOpenError: if the store cannot be used.
        """
        ...


@runtime_checkable
class Maintaining(Protocol):
    """A store that supports backup and check. Optional."""

    async def back_up(self, path: Path, *, replace: bool) -> int:
        """Write a consistent, durable copy to an absolute path and return its size in bytes.

        :raises Conflict: if the file exists and may not be replaced.
        :raises InvalidRequest: if the path cannot be written.
        """
        ...

    async def check(self) -> Sequence[str]:
        """Check the integrity of the whole store and return the problems found."""
        ...

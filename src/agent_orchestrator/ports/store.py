"""Stores: what an engine needs of one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar, runtime_checkable

from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

T = TypeVar("T")

UNREACHABLE: Final = "database_unreachable"
"""The problem of a store whose server does not answer. It ends by itself. Refusals have it in their details."""

ANY_TOPIC: Final = "*"
"""The topic of a notification that means: anything may have changed."""


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


class Store(Transactions, CommitNotifications, StoreStatus, Protocol):
    """The storage of an engine. It is an async context manager; many tasks may call it at once."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


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

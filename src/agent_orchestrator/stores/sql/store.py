"""The base of stores on SQL databases: one writer thread, several reader threads, and their shutdown."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.listeners import CommitListeners
from agent_orchestrator.stores.sql.search import BacklogPart
from agent_orchestrator.stores.sql.transaction import SqlTransaction
from agent_orchestrator.stores.sql.view import SqlView
from agent_orchestrator.stores.sql.writer import GroupWriter, Pending

T = TypeVar("T")
Reader = TypeVar("Reader")


_INDEX_RETRY_S: Final = 5.0
"""Seconds to wait while the store refuses changes, before the index of words is continued."""


def _backlog_part(view: View) -> BacklogPart | None:
    assert isinstance(view, SqlView)
    return view.backlog_part()


def _add_backlog_part(part: BacklogPart, tx: Transaction) -> None:
    assert isinstance(tx, SqlTransaction)
    tx.add_backlog_part(part)


class SqlStore(ABC, Generic[Reader]):
    """A store whose changes are committed in groups by one thread.

    Reads run in a few other threads, each with a separate connection and in one read transaction. Reads
    and changes do not wait for each other.
    """

    _writer: GroupWriter

    def __init__(self) -> None:
        self._listeners = CommitListeners()
        self._accepting = False
        self._process = os.getpid()

    async def _begin(
        self,
        writer: GroupWriter,
        readers: Collection[Reader],
        tasks: Mapping[str, Callable[[], Coroutine[Any, Any, None]]],
    ) -> None:
        """Accept reads and changes.

        :param tasks: further tasks by name. They end when ``_closing`` is set.
        """
        self._process = os.getpid()
        self._threads = anyio.CapacityLimiter(1)
        self._reads = anyio.CapacityLimiter(len(readers))
        self._idle: SimpleQueue[Reader | None] = SimpleQueue()
        for reader in readers:
            self._idle.put(reader)
        self._writer = writer
        self._closing = anyio.Event()
        self._scope: TaskGroup = anyio.create_task_group()
        await self._scope.__aenter__()
        for name, task in (
            ("gatherer", writer.gather),
            ("writer", self._write),
            ("index", self._index_backlog),
            *tasks.items(),
        ):
            self._scope.start_soon(task, name=f"store's {name}")
        self._accepting = True

    async def __aexit__(self, *exc: object) -> None:
        """Commit queued changes, then close. An outer cancellation does not interrupt this."""
        self._accepting = False
        self._closing.set()
        self._writer.committed.set()
        self._writer.finish()
        # The task group only waits for the writer. The body's exception propagates unchanged, not
        # in an exception group.
        self._scope.cancel_scope.shield = True
        await self._scope.__aexit__(None, None, None)

    async def _write(self) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.to_thread.run_sync(self._writer.run, limiter=self._threads)
            finally:
                self._accepting = False
                self._writer.refuse_queued()
                await self._end_other_work()
                readers = int(self._reads.total_tokens)
                for _ in range(readers):  # after the reads that already wait for their turn
                    await self._reads.acquire_on_behalf_of(object())
                await anyio.to_thread.run_sync(self._close, readers, limiter=self._threads)

    async def _index_backlog(self) -> None:
        """Add the texts of an earlier version to the index of words, in small parts.

        At most half of the time is used, so that it delays others little.
        """
        while not self._closing.is_set():
            began = anyio.current_time()
            pause_s = _INDEX_RETRY_S
            with contextlib.suppress(Unavailable):
                part = await self.read(_backlog_part)
                if part is None:
                    return
                await self.transact(partial(_add_backlog_part, part))
                pause_s = anyio.current_time() - began
            with anyio.move_on_after(pause_s):
                await self._closing.wait()

    async def _end_other_work(self) -> None:
        """Wait for the end of work that is neither a read nor a change, such as a backup."""

    def _close(self, readers: int) -> None:
        for _ in range(readers):
            self._idle.get()  # waits for running reads whose tasks were cancelled
        try:
            self._close_database()
        finally:
            self._idle.put(None)

    @abstractmethod
    def _close_database(self) -> None:
        """Close all connections. Called in a thread, after the last read and the last change."""

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        self._check_accepting()
        pending = Pending(change, reserve=reserve)
        self._writer.submit(pending)
        await pending.done.wait()
        if pending.error is not None:
            try:
                raise pending.error
            finally:
                del pending  # breaks the cycle of exception, traceback and frame
        value: T = pending.value
        return value

    async def read(self, query: Callable[[View], T]) -> T:
        self._check_accepting()
        return await anyio.to_thread.run_sync(self._read, query, limiter=self._reads)

    def _read(self, query: Callable[[View], T]) -> T:
        # Taken and returned in the thread: asyncio can cancel a task while its thread continues.
        reader = self._idle.get()
        try:
            if reader is None:
                raise Unavailable("the store is closed")
            return self._query(reader, query)
        finally:
            self._idle.put(reader)

    @abstractmethod
    def _query(self, reader: Reader, query: Callable[[View], T]) -> T:
        """Call a function with a consistent view. Called in a thread."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        return self._listeners.listen(listener)

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise Unavailable("the store is not open")
        if os.getpid() != self._process:
            raise Unavailable(
                f"the store was opened by process {self._process}, from which this one was forked:"
                " only that one can use it"
            )

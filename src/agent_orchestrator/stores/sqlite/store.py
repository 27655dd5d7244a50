"""The store's life: open, take changes and looks from many tasks, close."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import apsw
from anyio.abc import TaskGroup

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.operations import Problem
from agent_orchestrator.ports import Transaction, View
from agent_orchestrator.stores.bells import Bells
from agent_orchestrator.stores.sqlite.condition import Condition, Fault
from agent_orchestrator.stores.sqlite.connection import (
    READERS,
    Database,
    Judge,
    open_database,
)
from agent_orchestrator.stores.sqlite.mirror import Mark, Mirror
from agent_orchestrator.stores.sqlite.schema import schema_version
from agent_orchestrator.stores.sqlite.upkeep import check_target, copy, findings
from agent_orchestrator.stores.sqlite.view import SqliteView
from agent_orchestrator.stores.sqlite.writer import GroupWriter, OnCommit, Pending, is_failure

T = TypeVar("T")

ASIDE_STEPS: Final = 20_000
"""Steps of SQLite's machine between two looks whether what takes long shall go on."""

MIRROR_S: Final = 1.0
"""Seconds between two notes of how far the database has come."""


class SqliteStore:
    """A store on one SQLite file.

    Changes go to one thread that owns the writing connection and commits what has gathered
    together; looks go to a few threads with connections of their own, each in one read transaction,
    and neither wait for changes nor hold them up.

    :param path: the file; it and a missing directory are made, for their owner only.
    :param accept_loss: open it though it lacks commits it once had (see :class:`CommitsLost`).
    :param may_use: asked whether a database that is there may be used, before anything is done with
        it. It gets the names the database gives itself: its own, and that of what it is a backup of.
    :param on_commit: called after each commit with the number of changes in it and the seconds it
        took, in the writer's thread; it must not wait or raise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        accept_loss: bool = False,
        may_use: Judge | None = None,
        on_commit: OnCommit | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._accept_loss = accept_loss
        self._may_use = may_use
        self._on_commit = on_commit
        self._bells = Bells()
        self._accepting = False
        self._process = os.getpid()
        self._noted: Mark | None = None
        """What the mirror says, as far as this process knows."""
        self._noting = threading.Lock()

    @property
    def backend(self) -> str:
        return "sqlite"

    @property
    def location(self) -> str | None:
        return str(self._path)

    @property
    def database(self) -> str:
        """What the open database is called: a random name, of which every backup makes another."""
        return self._database.mark.database

    @property
    def schema_version(self) -> int:
        return schema_version()

    async def __aenter__(self) -> Self:
        """Open the database.

        :raises StoreOpenError: one of its kinds, if it cannot or must not be used.
        """
        self._process = os.getpid()
        self._threads = anyio.CapacityLimiter(1)
        self._looks = anyio.CapacityLimiter(READERS)
        self._asides = anyio.Lock()
        self._database = await anyio.to_thread.run_sync(
            partial(
                open_database, self._path, accept_loss=self._accept_loss, may_use=self._may_use
            ),
            limiter=self._threads,
        )
        self._condition = await anyio.to_thread.run_sync(
            Condition, self._database, limiter=self._threads
        )
        self._noted = self._database.noted
        self._idle: SimpleQueue[apsw.Connection | None] = SimpleQueue()
        for reader in self._database.readers:
            self._idle.put(reader)
        self._writer = GroupWriter(self._bells, self._condition, self._on_commit)
        self._closing = anyio.Event()
        self._scope: TaskGroup = anyio.create_task_group()
        await self._scope.__aenter__()
        self._scope.start_soon(self._writer.gather, name="sqlite gatherer")
        self._scope.start_soon(self._write, self._database, name="sqlite writer")
        self._scope.start_soon(self._reflect, Mirror(self._database.path), name="sqlite mirror")
        self._accepting = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Finish what is queued, then close. Not cut short by a cancellation from outside."""
        self._accepting = False
        self._closing.set()
        self._writer.committed.set()
        self._writer.finish()
        # The scope only waits for the writer: what ended the body passes by as it is, not in a
        # group of exceptions.
        self._scope.cancel_scope.shield = True
        await self._scope.__aexit__(None, None, None)

    async def _write(self, database: Database) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.to_thread.run_sync(self._writer.run, limiter=self._threads)
            finally:
                self._accepting = False
                self._writer.refuse_queued()
                await self._asides.acquire()
                for _ in range(READERS):  # behind the looks that wait for their turn
                    await self._looks.acquire_on_behalf_of(object())
                await anyio.to_thread.run_sync(self._close, database, limiter=self._threads)

    def _close(self, database: Database) -> None:
        for _ in range(READERS):
            self._idle.get()  # waits for looks under way whose tasks were cancelled
        try:
            self._note(Mirror(database.path))
            database.close()
        finally:
            self._idle.put(None)

    async def _reflect(self, mirror: Mirror) -> None:
        """Note in the mirror how far the database has come, when it has, at most once a second."""
        alone = anyio.CapacityLimiter(1)
        while not self._closing.is_set():
            self._writer.committed = anyio.Event()
            await anyio.to_thread.run_sync(self._note, mirror, limiter=alone)
            with anyio.move_on_after(MIRROR_S):
                await self._closing.wait()
            await self._writer.committed.wait()

    def _note(self, mirror: Mirror) -> None:
        with self._noting:
            mark = self._condition.mark
            if mark == self._noted or self._condition.misplaced():
                return  # what stands beside another file is not ours to write over
            try:
                mirror.write(mark)
            except OSError as error:
                if self._condition.misplaced():
                    return  # the database went while this was written: that is the problem to tell
                text = f"{mirror.path} cannot be written: {error.strerror}"
                self._condition.problems["mirror_failed"] = Problem("mirror_failed", text)
            else:
                self._noted = mark
                self._condition.problems.pop("mirror_failed", None)

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        self._check_accepting()
        pending = Pending(change, reserve=reserve)
        self._writer.submit(pending)
        await pending.done.wait()
        if pending.error is not None:
            try:
                raise pending.error
            finally:
                del pending  # or error, traceback and this frame keep each other alive
        value: T = pending.value
        return value

    async def read(self, look: Callable[[View], T]) -> T:
        self._check_accepting()
        return await anyio.to_thread.run_sync(self._look, look, limiter=self._looks)

    def _look(self, look: Callable[[View], T]) -> T:
        # Taken and given back in the thread: a task that asyncio cancels leaves its thread at work.
        connection = self._idle.get()
        try:
            if connection is None:
                raise Unavailable("the store is closed")
            connection.execute("BEGIN")
            try:
                return look(SqliteView(connection, self._database.epoch))
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except apsw.Error as error:
            if is_failure(error):
                raise self._condition.unreadable(error) from error
            raise
        finally:
            self._idle.put(connection)

    async def back_up(self, path: Path, *, replace: bool) -> int:
        target = await anyio.to_thread.run_sync(check_target, self._database.path, path)
        return await self._aside(partial(copy, target=target, replace=replace))

    async def check(self) -> Sequence[str]:
        try:
            found = await self._aside(findings)
        except Unavailable as error:
            if "problem" not in error.details:
                raise
            found = [error.message]
        self._condition.checked(found)
        misplaced = await self._misplaced()
        return found if misplaced is None else [misplaced.message, *found]

    async def _misplaced(self) -> Fault | None:
        return await anyio.to_thread.run_sync(
            self._condition.misplaced, limiter=anyio.CapacityLimiter(1)
        )

    async def _aside(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run what takes long on the connection kept for it; it ends when its caller or the store does."""
        stop, ended = threading.Event(), threading.Event()
        connection = self._database.aside

        def run() -> T:
            try:
                connection.release_memory()  # what is checked is what is on the disk
                connection.set_progress_handler(
                    lambda: stop.is_set() or not self._accepting, ASIDE_STEPS
                )
                return work(connection)
            except apsw.InterruptError:
                raise Unavailable("the store is closing") from None
            except apsw.Error as error:
                raise self._condition.unreadable(error) from error
            finally:
                ended.set()

        async with self._asides:
            self._check_accepting()
            try:
                return await anyio.to_thread.run_sync(
                    run, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
            except anyio.get_cancelled_exc_class():
                stop.set()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(ended.wait, limiter=anyio.CapacityLimiter(1))
                raise

    async def problems(self) -> Sequence[Problem]:
        if self._condition.fault is not None:
            with contextlib.suppress(Unavailable):
                await self.transact(lambda _: None)  # is there one still?
        told = self._condition.told()
        if self._condition.fault is None and (found := await self._misplaced()) is not None:
            return (Problem(found.code, found.message), *told)
        return told

    def listen(self, bell: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        return self._bells.listen(bell)

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise Unavailable("the store is not open")
        if os.getpid() != self._process:
            raise Unavailable(
                f"the store was opened by process {self._process}, from which this one was forked:"
                " only that one can use it"
            )

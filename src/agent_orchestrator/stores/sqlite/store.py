"""The SQLite store."""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import apsw

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.registry import OnCommit
from agent_orchestrator.stores.sql.faults import Fault
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.store import SqlStore
from agent_orchestrator.stores.sqlite.connection import (
    DatabaseJudge,
    open_database,
)
from agent_orchestrator.stores.sqlite.health import Health
from agent_orchestrator.stores.sqlite.maintenance import check_target, copy, findings
from agent_orchestrator.stores.sqlite.schema import schema_version
from agent_orchestrator.stores.sqlite.view import SqliteView
from agent_orchestrator.stores.sqlite.watermark import Watermark, WatermarkFile
from agent_orchestrator.stores.sqlite.writer import SqliteWriter, is_failure

T = TypeVar("T")

MAINTENANCE_STEPS: Final = 20_000
"""Instructions of SQLite's virtual machine between two checks whether a long task was cancelled."""

WATERMARK_S: Final = 1.0
"""Minimum seconds between two writes of the commit counter's copy."""


class SqliteStore(SqlStore[apsw.Connection]):
    """A store in one SQLite file.

    :param path: the file. A missing file or directory is created, accessible to its owner only.
    :param accept_loss: open the database even if it has lost commits (see :class:`CommitsLost`).
    :param may_use: called before an existing database is used, and returns whether it may be used.
        It gets the database's name and the name of the database of which it is a backup.
    :param on_commit: called in the writer's thread after each commit, with the number of its
        changes and its duration in seconds. It must not block or raise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        accept_loss: bool = False,
        may_use: DatabaseJudge | None = None,
        on_commit: OnCommit | None = None,
    ) -> None:
        super().__init__()
        self._path = Path(path).absolute()
        self._accept_loss = accept_loss
        self._may_use = may_use
        self._on_commit = on_commit
        self._noted_watermark: Watermark | None = None
        """The last copy of the commit counter that this process wrote or read."""
        self._watermark_lock = threading.Lock()

    @property
    def backend(self) -> str:
        return "sqlite"

    @property
    def location(self) -> str | None:
        return str(self._path)

    @property
    def database(self) -> str:
        """The random name of the open database. Every backup gets a new one."""
        return self._database.watermark.database

    @property
    def schema_version(self) -> int:
        return schema_version()

    @property
    def lease(self) -> None:
        return None

    async def join(self, profile: DaemonProfile) -> None:
        """Do nothing: no other daemon can use the store."""

    async def __aenter__(self) -> Self:
        """Open the database.

        :raises StoreOpenError: a subclass of it, if the database cannot or must not be used.
        """
        opener = anyio.CapacityLimiter(1)
        self._long_values = LongValues()
        self._aside_lock = anyio.Lock()
        self._database = await anyio.to_thread.run_sync(
            partial(
                open_database, self._path, accept_loss=self._accept_loss, may_use=self._may_use
            ),
            limiter=opener,
        )
        self._health = await anyio.to_thread.run_sync(Health, self._database, limiter=opener)
        self._noted_watermark = self._database.noted_watermark
        writer = SqliteWriter(self._listeners, self._health, self._on_commit)
        self._watermark_file = WatermarkFile(self._database.path)
        await self._begin(writer, self._database.readers, {"watermark": self._write_watermarks})
        return self

    async def _end_other_work(self) -> None:
        await self._aside_lock.acquire()

    def _close_database(self) -> None:
        try:
            self._write_watermark()
        finally:
            self._database.close()

    async def _write_watermarks(self) -> None:
        """Write the copy of the commit counter after commits, at most once a second."""
        alone = anyio.CapacityLimiter(1)
        while not self._closing.is_set():
            self._writer.committed = anyio.Event()
            await anyio.to_thread.run_sync(self._write_watermark, limiter=alone)
            with anyio.move_on_after(WATERMARK_S):
                await self._closing.wait()
            await self._writer.committed.wait()

    def _write_watermark(self) -> None:
        with self._watermark_lock:
            watermark = self._health.watermark
            if watermark == self._noted_watermark or self._health.files_fault():
                return  # never overwrite the copy beside another file
            try:
                self._watermark_file.write(watermark)
            except OSError as error:
                if self._health.files_fault():
                    return  # the database was removed meanwhile: that is the problem to report
                text = f"{self._watermark_file.path} cannot be written: {error.strerror}"
                self._health.problems["watermark_failed"] = Problem("watermark_failed", text)
            else:
                self._noted_watermark = watermark
                self._health.problems.pop("watermark_failed", None)

    def _query(self, reader: apsw.Connection, query: Callable[[View], T]) -> T:
        try:
            reader.execute("BEGIN")
            try:
                return query(SqliteView(reader, self._database.epoch, self._long_values))
            finally:
                if reader.in_transaction:
                    reader.execute("ROLLBACK")
        except apsw.Error as error:
            if is_failure(error):
                raise self._health.note_unreadable(error) from error
            raise

    async def back_up(self, path: Path, *, replace: bool) -> int:
        target = await anyio.to_thread.run_sync(check_target, self._database.path, path)
        return await self._run_aside(partial(copy, target=target, replace=replace))

    async def check(self) -> Sequence[str]:
        try:
            problems = await self._run_aside(findings)
        except Unavailable as error:
            if "problem" not in error.details:
                raise
            problems = [error.message]
        self._health.note_findings(problems)
        misplaced = await self._check_files()
        return problems if misplaced is None else [misplaced.message, *problems]

    async def _check_files(self) -> Fault | None:
        return await anyio.to_thread.run_sync(
            self._health.files_fault, limiter=anyio.CapacityLimiter(1)
        )

    async def _run_aside(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run a long task on its separate connection. It is interrupted when its caller or the store ends."""
        stop, ended = threading.Event(), threading.Event()
        connection = self._database.maintenance

        def run() -> T:
            try:
                connection.release_memory()  # so that a check reads the disk, not the cache
                connection.set_progress_handler(
                    lambda: stop.is_set() or not self._accepting, MAINTENANCE_STEPS
                )
                return work(connection)
            except apsw.InterruptError:
                raise Unavailable("the store is closing") from None
            except apsw.Error as error:
                raise self._health.note_unreadable(error) from error
            finally:
                ended.set()

        async with self._aside_lock:
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
        if self._health.fault is not None:
            with contextlib.suppress(Unavailable):
                await self.transact(lambda _: None)  # ends the fault if it is over
        known = self._health.all_problems()
        if self._health.fault is None and (fault := await self._check_files()) is not None:
            return (Problem(fault.code, fault.message), *known)
        return known

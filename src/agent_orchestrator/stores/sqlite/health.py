"""Faults of an open database: how they are found, what callers get meanwhile, and how they end.

Nothing polls the disk. A failed write reveals a fault. The next caller finds its end: the writer
first replaces the connection if needed, and makes a commit that only increments the counter. If
that succeeds, the fault is over and the caller's change is tried.
"""

import errno
import logging
import time
from collections.abc import Sequence
from math import inf
from typing import Final

import apsw
from attrs import evolve

from agent_orchestrator.domain.errors import StoreOpenError, Unavailable
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.stores.sql.faults import Fault
from agent_orchestrator.stores.sqlite.ballast import NO_ROOM, Ballast
from agent_orchestrator.stores.sqlite.connection import (
    BUSY_TIMEOUT_MS,
    Database,
    is_damaged,
    is_unreadable,
    open_existing,
)
from agent_orchestrator.stores.sqlite.schema import immediate
from agent_orchestrator.stores.sqlite.watermark import COUNT_COMMIT

_log = logging.getLogger("agent_orchestrator.store")

RETRY_S: Final = 0.25
"""Seconds between two attempts to recover."""

RECHECK_S: Final = 5.0
"""Seconds for which the result of a check for damage is reused."""

PROBE_TIMEOUT_MS: Final = 100
"""Milliseconds to wait for another program's lock, after a first wait was in vain."""


class Health:
    """The health of one open database, used by its writer thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ballast = Ballast(database.path)
        self._must_reopen = False
        self._next_retry = 0.0
        self._checked_at = -inf
        self._was_damaged = False
        self.watermark = database.watermark
        """The last commit that this process knows to be durable."""
        self.fault: Fault | None = None
        self.problems: dict[str, Problem] = {problem.code: problem for problem in database.found}
        """Problems that do not prevent writes, by code."""
        try:
            self._ballast.fill()
        except OSError as error:
            if error.errno in NO_ROOM:
                self.fault = self._fault(error)
            else:
                text = f"{self._ballast.path} cannot be made: {error.strerror}"
                self.problems["ballast_failed"] = Problem("ballast_failed", text)

    @property
    def writer(self) -> apsw.Connection:
        return self._database.writer

    @property
    def epoch(self) -> str | None:
        return self._database.epoch

    def files_fault(self) -> Fault | None:
        """Return a fault if an open file was removed, renamed or replaced, else None.

        The next start would not find what is written to such a file. Safe to call in any thread.
        """
        problem = self._database.files.moved_file()
        return None if problem is None else Fault("database_replaced", problem, 5)

    def check_files(self, *, is_written: bool) -> bool:
        """Return whether an open file was removed, renamed or replaced, and record that as the fault.

        :param is_written: True if a change was written just before.
        """
        fault = self.files_fault()
        if fault is None:
            return False
        if self.fault is None:
            _log.error("%s", fault.message)
        if is_written:
            text = f"{fault.message}; it is unknown whether the change is lost"
            fault = evolve(fault, message=text)
        self.fault = fault
        return True

    def all_problems(self) -> tuple[Problem, ...]:
        """Return all current problems, for the daemon's status."""
        fault = self.fault
        current = () if fault is None else (Problem(fault.code, fault.message),)
        return (*current, *tuple(self.problems.values()))

    def note_commit(self) -> None:
        """Record a successful commit."""
        self.watermark = evolve(self.watermark, commits=self.watermark.commits + 1)

    def note_failure(self, error: apsw.Error, *, is_outcome_known: bool) -> Fault:
        """Record a failed transaction, and prepare the recovery.

        :param is_outcome_known: True if it was not committed; False if SQLite could not tell.
        """
        fault = self.files_fault() or self._fault(error)
        if fault.code == "disk_full":
            self._ballast.release()
        elif fault.code == "database_locked":
            self.writer.set_busy_timeout(PROBE_TIMEOUT_MS)
        else:
            self._must_reopen = True
        if not is_outcome_known and self._must_reopen:
            text = f"{fault.message}; it is unknown whether the change was made"
            fault = evolve(fault, message=text)
        if self.fault is None:
            _log.error("%s", fault.message)
        self.fault = fault
        return fault

    def note_unreadable(self, error: BaseException) -> Unavailable:
        """Record an unreadable page as a problem. Other pages may still be readable."""
        fault = self._fault(error)
        self.problems[fault.code] = Problem(fault.code, fault.message)
        return fault.refusal()

    def note_findings(self, findings: Sequence[str]) -> None:
        """Record the findings of a check of the whole database."""
        if findings and is_unreadable(findings[0]):
            text = f"{self._database.path} cannot be read completely: {findings[0][:500]}"
            self.problems["disk_error"] = Problem("disk_error", text)
        elif findings:
            text = f"{self._database.path} is damaged ({findings[0][:500]}): restore a backup"
            self.problems["database_damaged"] = Problem("database_damaged", text)
        else:
            self.problems.pop("database_damaged", None)
            self.problems.pop("disk_error", None)

    def recheck(self) -> Fault | None:
        """Try to recover from the current fault. Return None on success, else the fault."""
        if self.fault is None or self.fault.is_final or time.monotonic() < self._next_retry:
            return self.fault
        if self.check_files(is_written=False):
            return self.fault
        try:
            if self._must_reopen:
                self._reopen()
            if "ballast_failed" not in self.problems:
                self._ballast.fill()
            self._probe()
        except (apsw.Error, StoreOpenError, OSError) as error:
            self.fault = self._fault(error)
            if self.fault.code == "disk_full":
                self._ballast.release()
            self._next_retry = time.monotonic() + RETRY_S
        else:
            _log.warning("%s can be written again", self._database.path)
            self.fault = None
        return self.fault

    def _reopen(self) -> None:
        reopened = self._database.reopen()
        lost = self.watermark.commits - reopened.commits
        if reopened.database != self.watermark.database:
            raise _WrongDatabase(
                f"{self._database.path} is a different database now: restart agentd with the right one"
            )
        if lost > 0:
            raise _WrongDatabase(
                f"{self._database.path}: {lost} commits lost while it was open: restore a backup"
            )
        if lost < 0:
            _log.warning("a commit with an unknown outcome was made")
        self.watermark = reopened
        self._must_reopen = False

    def _probe(self) -> None:
        self._must_reopen = True  # unless all goes well
        try:
            with immediate(self.writer):
                self.writer.execute(COUNT_COMMIT)
        except (apsw.BusyError, apsw.FullError):
            self._must_reopen = False
            raise
        self._must_reopen = False
        self.note_commit()
        self.writer.set_busy_timeout(BUSY_TIMEOUT_MS)

    def _is_damaged(self) -> bool:
        """Return True if a page that SQLite calls malformed is damaged, False if the disk failed."""
        if time.monotonic() >= self._checked_at + RECHECK_S:
            path = self._database.path
            self._was_damaged = is_damaged(lambda: open_existing(path))
            self._checked_at = time.monotonic()
        return self._was_damaged

    def _fault(self, error: BaseException) -> Fault:
        path = self._database.path
        no_room = Fault(
            "disk_full",
            f"the disk that holds {path} is full: until there is space, only results of runs are recorded",
            5,
        )
        match error:
            case _WrongDatabase():
                return Fault("commits_lost", str(error), 60, is_final=True)
            case apsw.FullError():
                return no_room
            case apsw.BusyError():
                return Fault("database_locked", f"{path} is locked by another program")
            case apsw.CorruptError() if not self._is_damaged():
                return Fault("disk_error", f"{path} could not be read: {error}", 5)
            case apsw.CorruptError() | apsw.NotADBError():
                text = f"{path} is damaged ({error}): see `agentctl daemon check`"
                return Fault("database_damaged", text, 60)
            case apsw.ReadOnlyError():
                return Fault("database_read_only", f"{path} cannot be written: {error}", 5)
            case OSError() if error.errno in NO_ROOM:
                return no_room
            case OSError():
                return Fault("disk_error", f"{path}: {error.strerror or error}", 5)
            case apsw.IOError() if self.writer_errno in NO_ROOM:
                return no_room
        return Fault("disk_error", f"{path} cannot be read or written: {error}", 5)

    @property
    def writer_errno(self) -> int:
        try:
            return self.writer.system_errno
        except apsw.ConnectionClosedError:
            return errno.EIO


class _WrongDatabase(StoreOpenError):
    """The reopened database is not the one that was open."""

"""Whether the database can be written; what callers are told while it cannot; and how it heals.

Nothing watches a disk. What finds the fault is a write that failed; what finds its end is the next
caller: before a change is tried again the connection is replaced where it must be, and a commit of
nothing but the count is made. So an outage ends with it, and costs what the callers' own tries cost.
"""

import errno
import logging
import time
from collections.abc import Sequence
from math import inf
from typing import Final

import apsw
from attrs import evolve, frozen

from agent_orchestrator.domain.errors import StoreOpenError, Unavailable
from agent_orchestrator.operations import Problem
from agent_orchestrator.stores.sqlite.ballast import NO_ROOM, Ballast
from agent_orchestrator.stores.sqlite.connection import (
    BUSY_TIMEOUT_MS,
    Database,
    is_damaged,
    is_unreadable,
    open_existing,
)
from agent_orchestrator.stores.sqlite.mirror import COUNT_UP
from agent_orchestrator.stores.sqlite.schema import immediate

_log = logging.getLogger("agent_orchestrator.store")

RETRY_S: Final = 0.25
"""Seconds between two tries to heal."""

LOOK_AGAIN_S: Final = 5.0
"""Seconds for which it is taken as known whether a page that cannot be read is damaged."""

IMPATIENT_MS: Final = 100
"""How long the lock of another program is waited for once it has been waited for in vain."""


@frozen
class Fault:
    """Why nothing can be written.

    :param retry_after_s: when a caller may try again.
    :param is_final: nothing this process does can end it.
    """

    code: str
    message: str
    retry_after_s: int = 2
    is_final: bool = False

    def refusal(self) -> Unavailable:
        """Return what one caller is told. One for each: a traceback belongs to one."""
        details = {"problem": self.code}
        return Unavailable(self.message, details, retry_after_s=self.retry_after_s)


class Condition:
    """The state of one open database, for the thread that writes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ballast = Ballast(database.path)
        self._must_reopen = False
        self._next_try = 0.0
        self._looked_at = -inf
        self._was_damaged = False
        self.mark = database.mark
        """How far the database has come, durably, as far as this process knows."""
        self.fault: Fault | None = None
        self.problems: dict[str, Problem] = {problem.code: problem for problem in database.found}
        """What is wrong and does not keep the database from being written."""
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

    def misplaced(self) -> Fault | None:
        """Return the fault if the files that are open are not at their places any more.

        What is written to them then would not be there at the next start. May be called in any thread.
        """
        found = self._database.files.misplaced()
        return None if found is None else Fault("database_replaced", found, 5)

    def find_misplaced(self, *, is_written: bool) -> bool:
        """Note whether the files are not at their places any more, and return it.

        :param is_written: a change was written to them just before.
        """
        fault = self.misplaced()
        if fault is None:
            return False
        if self.fault is None:
            _log.error("%s", fault.message)
        if is_written:
            text = f"{fault.message}; whether the change is lost is not known"
            fault = evolve(fault, message=text)
        self.fault = fault
        return True

    def told(self) -> tuple[Problem, ...]:
        """Return all that is wrong, for the daemon's status."""
        fault = self.fault
        found = () if fault is None else (Problem(fault.code, fault.message),)
        return (*found, *tuple(self.problems.values()))

    def counted(self) -> None:
        """Note that a commit was made."""
        self.mark = evolve(self.mark, commits=self.mark.commits + 1)

    def failed(self, error: apsw.Error, *, is_outcome_known: bool) -> Fault:
        """Note that a transaction failed, and prepare for better times.

        :param is_outcome_known: it was not committed; otherwise SQLite could not tell.
        """
        fault = self.misplaced() or self._fault(error)
        if fault.code == "disk_full":
            self._ballast.release()
        elif fault.code == "database_locked":
            self.writer.set_busy_timeout(IMPATIENT_MS)
        else:
            self._must_reopen = True
        if not is_outcome_known and self._must_reopen:
            text = f"{fault.message}; whether the change was made is not known"
            fault = evolve(fault, message=text)
        if self.fault is None:
            _log.error("%s", fault.message)
        self.fault = fault
        return fault

    def unreadable(self, error: BaseException) -> Unavailable:
        """Note that a page of the database cannot be read, which others may be."""
        fault = self._fault(error)
        self.problems[fault.code] = Problem(fault.code, fault.message)
        return fault.refusal()

    def checked(self, findings: Sequence[str]) -> None:
        """Note what a look at the whole database found."""
        if findings and is_unreadable(findings[0]):
            text = f"{self._database.path} cannot be read whole: {findings[0][:500]}"
            self.problems["disk_error"] = Problem("disk_error", text)
        elif findings:
            text = f"{self._database.path} is damaged ({findings[0][:500]}): restore a backup"
            self.problems["database_damaged"] = Problem("database_damaged", text)
        else:
            self.problems.pop("database_damaged", None)
            self.problems.pop("disk_error", None)

    def heal(self) -> Fault | None:
        """Return why nothing can be written, once more looked into; None when it can."""
        if self.fault is None or self.fault.is_final or time.monotonic() < self._next_try:
            return self.fault
        if self.find_misplaced(is_written=False):
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
            self._next_try = time.monotonic() + RETRY_S
        else:
            _log.warning("%s can be written again", self._database.path)
            self.fault = None
        return self.fault

    def _reopen(self) -> None:
        found = self._database.reopen()
        lost = self.mark.commits - found.commits
        if found.database != self.mark.database:
            raise _Final(
                f"{self._database.path} is not the database it was: restart with the right one"
            )
        if lost > 0:
            raise _Final(
                f"{self._database.path}: {lost} commits lost while it was open: restore a backup"
            )
        if lost < 0:
            _log.warning("a commit whose outcome was not known was made")
        self.mark = found
        self._must_reopen = False

    def _probe(self) -> None:
        self._must_reopen = True  # unless all goes well
        try:
            with immediate(self.writer):
                self.writer.execute(COUNT_UP)
        except (apsw.BusyError, apsw.FullError):
            self._must_reopen = False
            raise
        self._must_reopen = False
        self.counted()
        self.writer.set_busy_timeout(BUSY_TIMEOUT_MS)

    def _is_damaged(self) -> bool:
        """Tell whether a page that SQLite calls malformed is, or could not be read."""
        if time.monotonic() >= self._looked_at + LOOK_AGAIN_S:
            path = self._database.path
            self._was_damaged = is_damaged(lambda: open_existing(path))
            self._looked_at = time.monotonic()
        return self._was_damaged

    def _fault(self, error: BaseException) -> Fault:
        path = self._database.path
        no_room = Fault(
            "disk_full",
            f"the disk that holds {path} is full: only outcomes are recorded until there is room",
            5,
        )
        match error:
            case _Final():
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


class _Final(StoreOpenError):
    """The database that was reopened is not the one that was open."""

"""A commit counter in the database and a copy of it beside the database, to detect lost commits.

SQLite reads a damaged write-ahead log up to the damage. The database opens without an error, but
lacks the later commits. Therefore each commit increments a counter, and a small file beside the
database keeps a copy of that counter.
"""

import json
import os
import stat
import zlib
from pathlib import Path
from typing import Final

import apsw
from attrs import frozen

from agent_orchestrator.domain.errors import CommitsLost
from agent_orchestrator.operations.daemon import Problem

SINCE_SCHEMA: Final = 2
"""The schema version that counts commits."""

COUNT_COMMIT: Final = "UPDATE commits SET count = count + 1"


@frozen
class Watermark:
    """The commit counter of a database.

    :param database: the random name of the database.
    :param commits: the number of its commits.
    :param backup_of: the name of the database of which this one is a backup, if it is one.
    """

    database: str
    commits: int
    backup_of: str | None = None


def read_watermark(connection: apsw.Connection) -> Watermark | None:
    """Return the database's commit counter, or None if its schema is older than the counter."""
    if connection.pragma("user_version") < SINCE_SCHEMA:
        return None
    row = connection.execute("SELECT database, count, backup_of FROM commits").fetchone()
    return None if row is None else Watermark(*row)


SLOTS: Final = (0, 4096)
"""Offsets of the two copies in the file. They are in separate disk blocks, so an interrupted write can damage
only one."""

_SLOT_SIZE: Final = 256


@frozen
class _Copy:
    """A copy in the file.

    :param write: how many copies were written before it.
    """

    watermark: Watermark
    write: int


class WatermarkFile:
    """The file beside the database with the copy of its commit counter.

    The copy is written after the commit is durable, so it is never ahead. If the process is
    killed, it can be a second behind.

    The file has two copies, which are overwritten in turn. It stays the same file, because a sandbox
    can have mounted it: commands fail in a sandbox whose mounts disappear.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".commits")

    def read(self) -> Watermark | None:
        """Return the last copy, or None if there is no file.

        :raises ValueError: if the file is damaged.
        :raises OSError: if it cannot be read.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            return _last(descriptor)[0].watermark
        finally:
            os.close(descriptor)

    def write(self, watermark: Watermark) -> None:
        """Write a copy durably.

        :raises OSError: if that fails. The old copy is then still there.
        """
        if not self._overwrite(watermark):
            self._replace(watermark)

    def _overwrite(self, watermark: Watermark) -> bool:
        """Overwrite the older copy. Return False if the file is missing, damaged or not our own."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                return False  # an agent may have linked it to another file
            last, place = _last(descriptor)
            os.pwrite(descriptor, _line(watermark, last.write + 1), SLOTS[1 - SLOTS.index(place)])
            os.fsync(descriptor)
        except ValueError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _replace(self, watermark: Watermark) -> None:
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link that an agent made
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, _line(watermark, 0))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(self.path)
        sync_directory(self.path.parent)

    def compare(
        self, path: Path, watermark: Watermark | None, *, accept_loss: bool
    ) -> "PriorState":
        """Compare the database's counter with the copy.

        :param path: the database.
        :param watermark: its counter; None if it has none, for instance because it is empty.
        :param accept_loss: continue even if commits were lost.
        :raises CommitsLost: if commits were lost, unless that is accepted.
        """
        unknown = f"agentd cannot tell whether {path} lost commits before this start"
        if watermark is not None and watermark.backup_of is not None:
            return PriorState()  # a restored backup that was not opened before
        try:
            copy = self.read()
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return PriorState("watermark_unusable", f"{self.path} is damaged ({reason}): {unknown}")
        if copy is None:
            if watermark is None or not watermark.commits:
                return PriorState()
            return PriorState("watermark_unusable", f"{self.path} is missing: {unknown}")
        if watermark is None and path.exists():
            watermark = Watermark(copy.database, 0)  # it once had tables
        if watermark is None or copy.database != watermark.database:
            return PriorState(
                "watermark_unusable", f"{self.path} belongs to another database: {unknown}"
            )
        lost = copy.commits - watermark.commits
        if lost <= 0:
            return PriorState(is_complete=True)
        message = f"{path}: {lost} commits lost (it has {watermark.commits}, had {copy.commits})"
        if accept_loss:
            return PriorState("commits_lost", f"{message}; accepted at this start")
        raise CommitsLost(
            f"{message}: restore a backup, or continue without them (agentd --accept-loss)"
        )


@frozen
class PriorState:
    """The result of comparing a database's commit counter with its copy.

    :param code: the code of a problem, if there is one.
    :param is_complete: True if the database has all commits that the copy knows.
    """

    code: str | None = None
    message: str = ""
    is_complete: bool = False

    @property
    def problem(self) -> Problem | None:
        return None if self.code is None else Problem(self.code, self.message)


def _line(watermark: Watermark, write: int) -> bytes:
    check = _check(watermark.database, watermark.commits, write)
    copy = {"database": watermark.database, "commits": watermark.commits, "write": write}
    return json.dumps({**copy, "check": check}).encode().ljust(_SLOT_SIZE - 1) + b"\n"


def _last(descriptor: int) -> tuple[_Copy, int]:
    """Return the last copy in a file, and its offset.

    :raises ValueError: if no copy is intact.
    """
    copies: list[tuple[_Copy, int]] = []
    problem = ValueError("it is empty")
    for place in SLOTS:
        try:
            copies.append((_parsed(os.pread(descriptor, _SLOT_SIZE, place)), place))
        except ValueError as error:
            problem = error
    if not copies:
        raise problem
    return max(copies, key=lambda candidate: candidate[0].write)


def _parsed(line: bytes) -> _Copy:
    """Return the copy in a line.

    :raises ValueError: if it is damaged.
    """
    copy = json.loads(line)
    if not isinstance(copy, dict):
        raise ValueError("not an object")  # noqa: TRY004 - of the file, not of our caller
    database, commits, write = (copy.get(name) for name in ("database", "commits", "write"))
    if not (isinstance(database, str) and isinstance(commits, int) and isinstance(write, int)):
        raise ValueError("not a note of commits")  # noqa: TRY004 - likewise
    if copy.get("check") != _check(database, commits, write):
        raise ValueError("its check sum is wrong")
    return _Copy(Watermark(database, commits), write)


def _check(database: str, commits: int, write: int) -> str:
    return f"{zlib.crc32(f'{database} {commits} {write}'.encode()):08x}"


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

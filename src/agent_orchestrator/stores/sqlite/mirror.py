"""How far a database has come, and a second note of it: what finds commits that were lost.

A damaged write-ahead log ends, for SQLite, where the damage begins: the database opens, is sound,
and lacks the commits behind it. So each commit counts up a row, and a small file beside the
database remembers the count.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Final

import apsw
from attrs import frozen

from agent_orchestrator.domain.errors import CommitsLost
from agent_orchestrator.operations import Problem

SINCE_SCHEMA: Final = 2
"""The schema version that counts commits."""

COUNT_UP: Final = "UPDATE commits SET count = count + 1"


@frozen
class Mark:
    """How far a database has come.

    :param database: the name of the database.
    :param commits: how many commits it has seen.
    :param backup_of: the name of the one it was copied from by a backup.
    """

    database: str
    commits: int
    backup_of: str | None = None


def read_mark(connection: apsw.Connection) -> Mark | None:
    """Return how far the database has come; None where its schema does not count yet."""
    if connection.pragma("user_version") < SINCE_SCHEMA:
        return None
    row = connection.execute("SELECT database, count, backup_of FROM commits").fetchone()
    return None if row is None else Mark(*row)


class Mirror:
    """The file beside the database that remembers how far it has come.

    It may lag behind (a second, when the process is killed) and is never ahead: it is written after
    the commit is durable.
    """

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".commits")

    def read(self) -> Mark | None:
        """Return what was noted last; None where nothing was.

        :raises ValueError: if the file is damaged.
        :raises OSError: if it cannot be read.
        """
        try:
            text = self.path.read_bytes()[:4096].decode()
        except FileNotFoundError:
            return None
        noted = json.loads(text)
        if not isinstance(noted, dict):
            raise ValueError("not an object")  # noqa: TRY004 - of the file, not of our caller
        database, commits = noted.get("database"), noted.get("commits")
        if not isinstance(database, str) or not isinstance(commits, int):
            raise ValueError("not a note of commits")  # noqa: TRY004 - likewise
        if noted.get("check") != _check(database, commits):
            raise ValueError("its check sum is wrong")
        return Mark(database, commits)

    def write(self, mark: Mark) -> None:
        """Note how far the database has come: durably, and whole or not at all.

        :raises OSError: if that fails; then the note before is still there.
        """
        check = _check(mark.database, mark.commits)
        noted = {"database": mark.database, "commits": mark.commits, "check": check}
        fresh = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, json.dumps(noted).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(self.path)
        sync_directory(self.path.parent)

    def compare(self, path: Path, mark: Mark | None, *, accept_loss: bool) -> "History":
        """Compare the database with what was noted.

        :param path: the database.
        :param mark: how far it has come; None where it does not tell, as when it has nothing yet.
        :param accept_loss: go on without commits that were lost.
        :raises CommitsLost: if the database is behind.
        """
        unknown = f"whether {path} lost commits before this start cannot be told"
        if mark is not None and mark.backup_of is not None:
            return History()  # a backup that was put here, and has been opened nowhere else
        try:
            noted = self.read()
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return History("mirror_unusable", f"{self.path} is damaged ({reason}): {unknown}")
        if noted is None:
            if mark is None or not mark.commits:
                return History()
            return History("mirror_unusable", f"{self.path} is not there any more: {unknown}")
        if mark is None and path.exists():
            mark = Mark(noted.database, 0)  # it once had tables
        if mark is None or noted.database != mark.database:
            return History("mirror_unusable", f"{self.path} is of another database: {unknown}")
        lost = noted.commits - mark.commits
        if lost <= 0:
            return History(is_unbroken=True)
        told = f"{path}: {lost} commits lost (it has {mark.commits}, had {noted.commits})"
        if accept_loss:
            return History("commits_lost", f"{told}; accepted at this start")
        raise CommitsLost(
            f"{told}: restore a backup, or accept that they are gone (agentd --accept-loss)"
        )


@frozen
class History:
    """What a database and its mirror tell of the time before.

    :param code: of what could not be told, or was accepted, if anything.
    :param is_unbroken: it has all that was ever noted of it.
    """

    code: str | None = None
    message: str = ""
    is_unbroken: bool = False

    @property
    def problem(self) -> Problem | None:
        return None if self.code is None else Problem(self.code, self.message)


def _check(database: str, commits: int) -> str:
    return f"{zlib.crc32(f'{database} {commits}'.encode()):08x}"


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

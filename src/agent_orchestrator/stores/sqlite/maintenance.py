"""Integrity checks and backups of a database in use."""

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Final

import apsw

from agent_orchestrator.domain.errors import Conflict, InvalidRequest, StoreLocked, Unavailable
from agent_orchestrator.stores.sqlite.ballast import NO_ROOM
from agent_orchestrator.stores.sqlite.connection import header_is_ours
from agent_orchestrator.stores.sqlite.files import OWN_FILES
from agent_orchestrator.stores.sqlite.lock import FileLock
from agent_orchestrator.stores.sqlite.watermark import sync_directory

MAX_FINDINGS: Final = 100
"""Maximum number of reported findings."""


def findings(connection: apsw.Connection) -> list[str]:
    """Return the database's integrity errors; an empty list if there are none.

    Reads the whole file in one read transaction. Writes continue, and the write-ahead log grows
    meanwhile.
    """
    try:
        with connection:  # one read transaction, so that all of it is of one moment
            problems = _findings(connection)
        return problems[:MAX_FINDINGS]
    except (apsw.CorruptError, apsw.NotADBError, apsw.IOError) as error:
        return [str(error)]


def _findings(connection: apsw.Connection) -> list[str]:
    # SQLite's check of an FTS5 table uses what this connection remembers of it (3.54), and reports
    # damage if others have written since. Only a query makes it look again.
    list(connection.execute("SELECT 1 FROM search_index LIMIT 1"))
    problems = [
        str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({MAX_FINDINGS})")
    ]
    if problems != ["ok"]:
        return problems
    problems = [
        f"row {rowid} of {table} refers to a missing row of {parent}"
        for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check")
    ]
    [(count, first, last)] = connection.execute(
        "SELECT count(*), coalesce(min(position), 1), coalesce(max(position), 0) FROM events"
    )
    [(deleted,)] = connection.execute("SELECT coalesce(sum(count), 0) FROM pruned_logs")
    if first < 1 or count + deleted != last:
        problems.append(
            f"the log's positions are not 1 … {count + deleted}: they go from {first} to {last},"
            f" with {count} events, and {deleted} that were deleted"
        )
    return problems


def check_target(database: Path, target: Path) -> Path:
    """Return the path of a backup, with the links in its directory resolved.

    :raises InvalidRequest: if no backup can be written there.
    """
    if not target.is_absolute():
        raise InvalidRequest.of({"path": "must be absolute"})
    try:
        path = target.parent.resolve(strict=True) / target.name
        if path.is_dir():
            raise InvalidRequest.of({"path": f"is a directory: {target}"})
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest.of({"path": f"{target.parent}: {reason}"}) from None
    if path.parent == database.parent and path.name in {database.name + end for end in OWN_FILES}:
        raise InvalidRequest.of({"path": f"is one of the database's own files: {target}"})
    return path


def copy(connection: apsw.Connection, target: Path, *, replace: bool) -> int:
    """Write a consistent, checked and durable copy, and return its size in bytes.

    It is written under a temporary name and renamed when complete. The copy gets a new database
    name and records which database it is a backup of, so restoring it does not count as data loss.

    :param replace: overwrite an earlier copy at the target.
    :raises Conflict: if the target exists and must not be replaced.
    :raises InvalidRequest: if the target cannot be written.
    :raises Unavailable: if the disk is full or the copy fails its check.
    """
    if os.path.lexists(target):
        if not replace:
            raise _exists(target)
        _check_replaceable(target)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            connection.execute("VACUUM INTO ?", (str(temporary),))
            _set_backup_identity(temporary)
            return move_into_place(temporary, target, replace=replace)
        finally:
            temporary.unlink(missing_ok=True)
    except apsw.FullError:
        raise _disk_full_error(target) from None
    except FileExistsError:
        raise _exists(target) from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _disk_full_error(target) from None
        raise InvalidRequest.of({"path": f"{target}: {error.strerror}"}) from None


def _check_replaceable(target: Path) -> None:
    """Check that the file at the target is empty or one of our databases, and not in use.

    :raises Conflict: if it is not.
    """
    if target.is_symlink() or not target.is_file():
        raise Conflict(f"{target} is not a regular file", {"path": str(target)})
    with contextlib.ExitStack() as locks:
        lock = target.with_name(target.name + ".lock")
        for file in (target, lock):
            try:
                if file.exists():
                    locks.callback(FileLock.take(file, str(target), signed=lock).release)
            except StoreLocked as error:
                raise Conflict(str(error), {"path": str(target)}) from None
        if target.stat().st_size and not header_is_ours(target):
            raise Conflict(
                f"{target} is not a database of agentd: remove it first if you do not need it",
                {"path": str(target)},
            )


def _set_backup_identity(path: Path) -> None:
    copied = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        copied.pragma("journal_mode", "memory")  # the copy is discarded if this fails
        copied.execute(
            "UPDATE commits SET backup_of = database, database = lower(hex(randomblob(16)))"
        )
        if problems := findings(copied):
            raise Unavailable(f"the copy is not sound: {problems[0]}")
    finally:
        copied.close()


def move_into_place(temporary: Path, target: Path, *, replace: bool) -> int:
    """Make a complete file durable, give it its name, and return its size in bytes.

    :param replace: overwrite a file with that name.
    :raises FileExistsError: if there is one, and it must not be replaced.
    :raises Conflict: likewise, on a file system without hard links.
    :raises OSError: if the file cannot be renamed.
    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if replace:
        temporary.replace(target)
    else:
        try:
            os.link(temporary, target)  # unlike a rename, it fails if the target exists
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            if os.path.lexists(target):  # the file system has no hard links
                raise _exists(target) from None
            temporary.replace(target)
        else:
            temporary.unlink()
    sync_directory(target.parent)
    return size


def _exists(target: Path) -> Conflict:
    return Conflict(f"{target} already exists", {"path": str(target)})


def _disk_full_error(target: Path) -> Unavailable:
    return Unavailable(f"there is no space for the copy in {target.parent}", retry_after_s=60)

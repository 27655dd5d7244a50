"""Opening a database: check whose file it is and whether it is damaged, and configure connections."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import apsw
from attrs import define, evolve

from agent_orchestrator.data_directory import make_data_directory
from agent_orchestrator.domain.errors import (
    ForeignDatabase,
    SchemaTooNew,
    StoreDamaged,
    StoreOpenError,
    UnknownDatabase,
)
from agent_orchestrator.operations.daemon import Problem
from agent_orchestrator.stores.sqlite.ballast import Ballast
from agent_orchestrator.stores.sqlite.epochs import begin_epoch
from agent_orchestrator.stores.sqlite.files import OWN_FILES
from agent_orchestrator.stores.sqlite.identity import Files, refuse_own_mount
from agent_orchestrator.stores.sqlite.lock import FileLock
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrate, schema_version
from agent_orchestrator.stores.sqlite.watermark import Watermark, WatermarkFile, read_watermark

_log = logging.getLogger("agent_orchestrator.store")

READERS: Final = 4

BUSY_TIMEOUT_MS: Final = 5000
"""Milliseconds to wait for a lock. Only a checkpoint or another program's backup can hold one."""

_WAL_LIMIT: Final = 64 * 1024 * 1024
"""Bytes to which the write-ahead log is truncated after a checkpoint."""

_CHECKPOINT_PAGES: Final = 4000
"""Pages in the write-ahead log (16 MiB) before a checkpoint. A page that many commits change is then
written to the database once. With SQLite's default of 1000, an accepted message costs an eighth more."""

CHECK_LIMIT_S: Final = 1.0
"""Maximum seconds of the check for damage at a start."""


@define
class Database:
    """An open database: a connection for writes, some for reads, and the locks.

    :param maintenance: a connection for long tasks. It is opened with the others, so a check or
        backup always uses the open file, even if another file has its path by then.
    :param files: the identities of its files.
    :param locks: the locks on the database file and on its path.
    :param watermark: the commit counter at the opening.
    :param epoch: the id of this opening; None if it could not be written.
    :param found: problems found at the opening, for the daemon's status.
    """

    path: Path
    writer: apsw.Connection
    readers: tuple[apsw.Connection, ...]
    maintenance: apsw.Connection
    files: Files
    locks: tuple[FileLock, ...]
    watermark: Watermark
    epoch: str | None
    found: tuple[Problem, ...] = ()
    noted_watermark: Watermark | None = None
    """The copy of the commit counter that was written at the opening, if one was."""

    def reopen(self) -> Watermark:
        """Replace the writing connection, and return the commit counter.

        The readers stay open. As long as they do, SQLite does not take the remains of a failed
        commit in the write-ahead log for committed.

        :raises apsw.Error: if it cannot be opened. Then there is no writing connection.
        :raises StoreOpenError: if it is not writable. Then there is no writing connection.
        """
        with contextlib.suppress(apsw.Error):
            self.writer.close()
        writer = _connect(self.path)
        try:
            _prepare(self.path, writer)
            watermark = read_watermark(writer)
        except BaseException:
            writer.close()
            raise
        assert watermark is not None, "this schema counts commits"
        self.writer = writer
        return watermark

    def close(self) -> None:
        """Checkpoint the write-ahead log, close all connections and release the locks."""
        try:
            for connection in (self.maintenance, *self.readers):
                connection.close()
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            if self.files.moved_file() is None:
                _keep_log(self.writer, keep=False)
        except apsw.Error as error:
            # Nothing is lost: the next start reads the log.
            _log.warning("%s: checkpoint of the write-ahead log failed: %s", self.path, error)
        finally:
            with contextlib.suppress(apsw.Error):
                self.writer.close()
            for lock in self.locks:
                lock.release()


DatabaseJudge = Callable[[tuple[str, ...]], bool]
"""Decides whether a database with these names may be used."""


def open_database(
    path: Path, *, accept_loss: bool = False, may_use: DatabaseJudge | None = None
) -> Database:
    """Open the database at a path and migrate it to the current schema. Create it if missing.

    :param may_use: called with the names of an existing database before anything else is done.
    :param accept_loss: open the database even if it has lost commits.
    :raises StoreOpenError: a subclass of it, if the database cannot or must not be used. Then its
        files are unchanged.
    """
    absolute = path.absolute()
    try:
        path = Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a loop of links
        make_data_directory(path.parent)
        _refuse_links(path)
        if path.is_dir():
            raise StoreOpenError(f"{path} is a directory, not a database file")
        if path.exists() and path.stat().st_nlink > 1:
            # The write-ahead log belongs to a path. Opened by another path, the database would lack it.
            raise StoreOpenError(f"{path} has another name (a hard link); give it only one")
        with contextlib.ExitStack() as opening:
            database = _open_locked(
                absolute, path, opening, accept_loss=accept_loss, may_use=may_use
            )
            opening.pop_all()
            return database
    except apsw.Error as error:
        raise StoreOpenError(f"cannot open {path}: {error}") from error
    except OSError as error:
        raise StoreOpenError(f"cannot open {path}: {error.strerror or error}") from error


def _open_locked(
    absolute: Path,
    path: Path,
    opening: contextlib.ExitStack,
    *,
    accept_loss: bool,
    may_use: DatabaseJudge | None,
) -> Database:
    """Lock the file and its path, then open the database.

    :param opening: receives everything that must be closed if the opening fails.
    """
    locks: list[FileLock] = []
    lock_path = path.with_name(path.name + ".lock")

    def take(file: Path, *, create: bool = False) -> FileLock:
        lock = FileLock.take(file, str(path), create=create, signed=lock_path)
        opening.callback(lock.release)
        locks.append(lock)
        return lock

    is_new = not path.exists()
    if not is_new:
        # The file first: another process may have it open by another path.
        refuse_own_mount(path, take(path))
        if may_use is not None and path.stat().st_size and not may_use(names_of(path)):
            _inspect(path)  # a file of another program gets its own message
            raise UnknownDatabase(f"there is no record that you made or used the database {path}")
        _move_journal(path)
        if not lock_path.exists():
            _inspect(path)  # create no files beside a file of another program
    path_lock = take(lock_path, create=True)
    ballast = Ballast(path)
    if not ballast.has_room():
        ballast.release()  # opening the database needs space
    # Compared before any write: lost commits may still be in the write-ahead log.
    watermark = _inspect(path)
    history = WatermarkFile(path).compare(path, watermark, accept_loss=accept_loss)
    path_lock.sign()
    if is_new:
        take(path, create=True)

    def connect() -> apsw.Connection:
        connection = _connect(path)
        opening.callback(connection.close)
        return connection

    writer = connect()
    _prepare(path, writer)
    maintenance, *readers = (connect() for _ in range(1 + READERS))
    for reader in readers:
        reader.pragma("query_only", True)  # noqa: FBT003 - the setting's value
    is_restored = watermark is not None and not history.is_complete
    files = Files.of(absolute, path, next(lock for lock in locks if lock is not path_lock))
    epoch = begin_epoch(writer, is_restored=is_restored)
    watermark = read_watermark(writer)
    assert watermark is not None, "this schema counts commits"
    written_watermark = _write_first_watermark(path, writer, watermark)
    return Database(
        path,
        writer,
        tuple(readers),
        maintenance,
        files,
        tuple(locks),
        evolve(watermark, backup_of=None),
        epoch,
        () if history.problem is None else (history.problem,),
        written_watermark,
    )


def names_of(path: Path) -> tuple[str, ...]:
    """Return the name of a database and of the one it is a backup of; nothing if it has none."""
    opened = partial(open_existing if _has_log(path) else _opened_immutable, path)
    with contextlib.suppress(apsw.Error), contextlib.closing(opened()) as connection:
        if (watermark := read_watermark(connection)) is not None:
            names = (watermark.database, watermark.backup_of)
            return tuple(name for name in names if isinstance(name, str))
    return ()


def _refuse_links(path: Path) -> None:
    """Raise if a file beside a database is a symbolic link: writing to it would change another file.

    A link may come with a repository, or be made by an agent that may write to the directory.
    """
    for end in OWN_FILES:
        beside = path.with_name(path.name + end)
        if beside.is_symlink():
            raise StoreOpenError(
                f"{beside} is a symbolic link, not a file of the database: remove it"
            )


def _move_journal(path: Path) -> None:
    """Rename a rollback journal beside a database that was used before.

    SQLite plays back any journal it finds (https://sqlite.org/lockingv3.html, "hot journals"). From its
    first opening on, our database uses a write-ahead log, so the journal belongs to something else.
    """
    journal = path.with_name(path.name + "-journal")
    if WatermarkFile(path).path.exists() and os.path.lexists(journal):
        renamed = path.with_name(journal.name + ".unknown")
        journal.replace(renamed)
        _log.warning("%s does not belong to this database; renamed to %s", journal, renamed.name)


def _write_first_watermark(
    path: Path, writer: apsw.Connection, watermark: Watermark
) -> Watermark | None:
    """Write the copy of the commit counter before the first use. If the copy is missing later, it was
    removed. A backup becomes an ordinary database at its first opening.

    :return: the written copy; None if it was not needed or could not be written.
    """
    watermark_file = WatermarkFile(path)
    if watermark.backup_of is None and watermark_file.path.exists():
        return None
    try:
        watermark_file.write(watermark)
    except OSError:
        return None  # reported when the next write fails, too
    if watermark.backup_of is not None:
        with contextlib.suppress(apsw.FullError, apsw.IOError):
            writer.execute("UPDATE commits SET backup_of = NULL")
    return evolve(watermark, backup_of=None)


def _prepare(path: Path, writer: apsw.Connection) -> None:
    if writer.readonly("main"):
        raise StoreOpenError(f"{path} is not writable")
    if not writer.pragma("application_id"):
        # Before the switch to WAL, so that the database file has the id from the start.
        writer.pragma("application_id", APPLICATION_ID)
    if (mode := writer.pragma("journal_mode", "WAL")) != "wal":
        raise StoreOpenError(f"{path} cannot use a write-ahead log here (it uses {mode})")
    writer.pragma("journal_size_limit", _WAL_LIMIT)
    writer.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
    migrate(writer)


def open_existing(path: Path) -> apsw.Connection:
    """Open an existing database.

    Closing the connection does not remove the write-ahead log. Otherwise SQLite would remove the
    file that has its path by then. That could be the log of another database, or, if a forked
    process closes last, that of the next daemon.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    _keep_log(connection, keep=True)
    return connection


def _keep_log(connection: apsw.Connection, *, keep: bool) -> None:
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(keep))


def _connect(path: Path) -> apsw.Connection:
    connection = open_existing(path)
    for name, value in (
        ("synchronous", 2),  # FULL: acknowledged commits survive a power cut
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
    ):
        connection.pragma(name, value)
        if (current := connection.pragma(name)) != value:
            raise StoreOpenError(f"{path}: SQLite cannot set {name} to {value}; it stays {current}")
    return connection


def _inspect(path: Path) -> Watermark | None:
    """Refuse a file of another program, a newer schema or a damaged database, without changing it.

    An ``immutable`` connection takes no locks and writes nothing, but ignores the write-ahead
    log. If a process has left a log, an ordinary connection must read it too, without removing it
    at its close. A process that was killed during a checkpoint leaves a database file that cannot be
    read, or not correctly, without the log.

    :return: the commit counter, if the schema has one.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    has_log = _has_log(path)
    try:
        watermark = _check(path, partial(_opened_immutable, path), whole=not has_log)
    except StoreDamaged:
        if not has_log:
            raise
        watermark = None
    if has_log:
        without_log, watermark = watermark, _check(path, partial(open_existing, path), whole=True)
        if (
            without_log
            and watermark
            and without_log.database not in (watermark.database, watermark.backup_of)
        ):
            raise StoreDamaged(
                f"{path}-wal is the write-ahead log of another database: move it and {path}-shm away"
            )
    return watermark


def _opened_immutable(path: Path) -> apsw.Connection:
    return apsw.Connection(
        f"file:{quote(str(path))}?immutable=1",
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
    )


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _check(path: Path, opened: Callable[[], apsw.Connection], *, whole: bool) -> Watermark | None:
    try:
        return _checked_watermark(path, opened, whole=whole)
    except StoreDamaged:
        if is_damaged(opened):
            raise
        raise StoreOpenError(f"{path} cannot be read: the disk returned an error") from None


def is_damaged(opened: Callable[[], apsw.Connection]) -> bool:
    """Return True if a database that SQLite calls malformed is damaged, False if the disk failed.

    Reading rows, SQLite 3.54 reports both in the same way; its check of pages distinguishes them.
    The check may take a second. Without a result by then, the database counts as damaged.

    :param opened: opens a connection that has not read anything yet.
    """
    end = time.monotonic() + CHECK_LIMIT_S
    try:
        with contextlib.closing(opened()) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > end, 1000)
            messages = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    except apsw.IOError:
        return False
    except apsw.Error:
        return True
    return messages != ["ok"] and not is_unreadable(messages[0])


def is_unreadable(finding: str) -> bool:
    """Return True if a finding of SQLite means that the disk failed to return a page."""
    return f"error code={apsw.SQLITE_IOERR_CORRUPTFS}" in finding or "disk I/O error" in finding


def _checked_watermark(
    path: Path, opened: Callable[[], apsw.Connection], *, whole: bool
) -> Watermark | None:
    connection = opened()
    try:
        try:
            watermark = connection.pragma("application_id")
        except (apsw.NotADBError, apsw.CorruptError) as error:
            if header_is_ours(path):
                raise StoreDamaged(f"{path} is damaged: {error}") from None
            raise ForeignDatabase(f"{path} is not an SQLite database") from None
        if watermark != APPLICATION_ID:
            raise ForeignDatabase(f"{path} is a database of another program")
        if (version := connection.pragma("user_version")) > schema_version():
            raise SchemaTooNew(
                f"{path} has schema version {version}; this program supports up to"
                f" {schema_version()}: use a newer one"
            )
        if whole:
            _check_whole(path, connection)
        try:
            return read_watermark(connection)
        except apsw.Error as error:
            if not whole:
                return None  # without its log, the file may contain inconsistent pages
            raise StoreDamaged(f"{path} is damaged: {error}") from None
    finally:
        connection.close()


def header_is_ours(path: Path) -> bool:
    """Return True if a file that SQLite cannot read has our header (sqlite.org/fileformat2).

    Reads the file without SQLite. That is safe only while this process does not have it open.
    """
    with path.open("rb") as file:
        header = file.read(72)
    return header[:16] == b"SQLite format 3\0" and header[68:] == APPLICATION_ID.to_bytes(4)


def _check_whole(path: Path, connection: apsw.Connection) -> None:
    """Check for damage, for at most ``CHECK_LIMIT_S``. ``agentctl daemon check`` checks everything."""
    end = time.monotonic() + CHECK_LIMIT_S
    connection.set_progress_handler(lambda: time.monotonic() > end, 1000)
    try:
        connection.pragma("cell_size_check", 1)
        messages = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except apsw.InterruptError:
        _log.info("%s is large: not all of it was checked, see `agentctl daemon check`", path)
        return
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        messages = [str(error)]
    finally:
        connection.set_progress_handler(None)
    if messages != ["ok"]:
        raise StoreDamaged(f"{path} is damaged: {'; '.join(messages)}")

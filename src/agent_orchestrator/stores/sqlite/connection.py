"""Opening a database: whose file it is, whether it is sound, and how each connection is set."""

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
from agent_orchestrator.operations import Problem
from agent_orchestrator.stores.sqlite.ballast import Ballast
from agent_orchestrator.stores.sqlite.epochs import begin_epoch
from agent_orchestrator.stores.sqlite.identity import Files, refuse_own_mount
from agent_orchestrator.stores.sqlite.lock import FileLock
from agent_orchestrator.stores.sqlite.mirror import Mark, Mirror, read_mark
from agent_orchestrator.stores.sqlite.schema import APPLICATION_ID, migrate, schema_version

_log = logging.getLogger("agent_orchestrator.store")

READERS: Final = 4

BUSY_TIMEOUT_MS: Final = 5000
"""Nobody else writes; a checkpoint or another program's backup may be in the way for a moment."""

_WAL_LIMIT: Final = 64 * 1024 * 1024
"""Bytes the write-ahead log is cut back to once a checkpoint has emptied it."""

_CHECKPOINT_PAGES: Final = 4000
"""Pages in the log (16 MiB) before they go into the database: a page that many commits change goes
once. With SQLite's 1000 an accepted message costs an eighth more."""

LOOK_S: Final = 1.0
"""Seconds a start looks for damage."""

_WRITER_CACHE_KIB: Final = 16 * 1024


@define
class Database:
    """An open database: one connection that writes, some that only read, and the locks.

    :param aside: a connection for what takes long. It was opened with the others, so that a check or
        a backup is of the file that is open, whatever has its name by then.
    :param files: which files it consists of.
    :param locks: on the database file, whatever its name, and on the name.
    :param mark: how far it had come when it was opened.
    :param epoch: names this time of its being open; None where that could not be written.
    :param found: what its opening could not tell, for the daemon's status.
    """

    path: Path
    writer: apsw.Connection
    readers: tuple[apsw.Connection, ...]
    aside: apsw.Connection
    files: Files
    locks: tuple[FileLock, ...]
    mark: Mark
    epoch: str | None
    found: tuple[Problem, ...] = ()
    noted: Mark | None = None
    """What the mirror was given at the opening, if anything."""

    def reopen(self) -> Mark:
        """Replace the writing connection; return how far the database has come.

        The readers stay: while they do, what a failed commit left in the write-ahead log is not
        taken for committed.

        :raises apsw.Error: if it cannot be opened; then there is none to write with.
        :raises StoreOpenError: likewise.
        """
        with contextlib.suppress(apsw.Error):
            self.writer.close()
        writer = _connect(self.path)
        try:
            _prepare(self.path, writer)
            mark = read_mark(writer)
        except BaseException:
            writer.close()
            raise
        assert mark is not None, "this schema counts commits"
        self.writer = writer
        return mark

    def close(self) -> None:
        """Empty the write-ahead log into the database and let go of it."""
        try:
            for connection in (self.aside, *self.readers):
                connection.close()
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            if self.files.misplaced() is None:
                _keep_log(self.writer, keep=False)
        except apsw.Error as error:
            # Nothing is lost: the next start finds it in the log.
            _log.warning("%s: its write-ahead log cannot be emptied: %s", self.path, error)
        finally:
            with contextlib.suppress(apsw.Error):
                self.writer.close()
            for lock in self.locks:
                lock.release()


Judge = Callable[[tuple[str, ...]], bool]
"""Returns whether a database may be used that says it has one of these names."""


def open_database(
    path: Path, *, accept_loss: bool = False, may_use: Judge | None = None
) -> Database:
    """Open the database at the path, made if there is none, at the present schema.

    :param may_use: asked of a database that is there before anything else is done with it.
    :param accept_loss: open it though it lacks commits it once had.
    :raises StoreOpenError: one of its kinds, if it cannot or must not be used. Then the files are
        as they were.
    """
    given = path.absolute()
    try:
        path = path.resolve()
        make_data_directory(path.parent)
        if path.is_dir():
            raise StoreOpenError(f"{path} is a directory, not a database file")
        if path.exists() and path.stat().st_nlink > 1:
            # The write-ahead log goes by name: under another one what stands in it would be missing.
            raise StoreOpenError(f"{path} has another name (a hard link); give it only one")
        with contextlib.ExitStack() as opening:
            database = _open_locked(given, path, opening, accept_loss=accept_loss, may_use=may_use)
            opening.pop_all()
            return database
    except apsw.Error as error:
        raise StoreOpenError(f"cannot open {path}: {error}") from error
    except OSError as error:
        raise StoreOpenError(f"cannot open {path}: {error.strerror or error}") from error


def _open_locked(
    given: Path,
    path: Path,
    opening: contextlib.ExitStack,
    *,
    accept_loss: bool,
    may_use: Judge | None,
) -> Database:
    """Lock the file and its name, then open it.

    :param opening: is left with what has to be let go of if the database cannot be opened.
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
        # The file first, by whatever other name somebody may have it open.
        refuse_own_mount(path, take(path))
        if may_use is not None and path.stat().st_size and not may_use(names_of(path)):
            _look_first(path)  # that it is none of ours at all says more
            raise UnknownDatabase(f"there is no record that you made or used the database {path}")
        _set_aside_journal(path)
        if not lock_path.exists():
            _look_first(path)  # a file that is not ours is left without a trace
    named = take(lock_path, create=True)
    ballast = Ballast(path)
    if not ballast.has_room():
        ballast.release()  # to open the database takes some
    # Compared before anything is written: what was lost may still stand in the write-ahead log.
    mark = _look_first(path)
    history = Mirror(path).compare(path, mark, accept_loss=accept_loss)
    named.sign()
    if is_new:
        take(path, create=True)

    def connect() -> apsw.Connection:
        connection = _connect(path)
        opening.callback(connection.close)
        return connection

    writer = connect()
    _prepare(path, writer)
    aside, *readers = (connect() for _ in range(1 + READERS))
    for reader in readers:
        reader.pragma("query_only", True)  # noqa: FBT003 - the setting's value
    is_restored = mark is not None and not history.is_unbroken
    files = Files.of(given, path, next(lock for lock in locks if lock is not named))
    epoch = begin_epoch(writer, is_restored=is_restored)
    mark = read_mark(writer)
    assert mark is not None, "this schema counts commits"
    noted = _note_first(path, writer, mark)
    return Database(
        path,
        writer,
        tuple(readers),
        aside,
        files,
        tuple(locks),
        evolve(mark, backup_of=None),
        epoch,
        () if history.problem is None else (history.problem,),
        noted,
    )


def names_of(path: Path) -> tuple[str, ...]:
    """Return what a database says it is called and is a backup of; nothing where it cannot say."""
    opened = partial(open_existing if _has_log(path) else _opened_immutable, path)
    with contextlib.suppress(apsw.Error), contextlib.closing(opened()) as connection:
        if (mark := read_mark(connection)) is not None:
            names = (mark.database, mark.backup_of)
            return tuple(name for name in names if isinstance(name, str))
    return ()


def _set_aside_journal(path: Path) -> None:
    """Rename a rollback journal beside a database that was used before.

    SQLite plays back any journal it finds (https://sqlite.org/lockingv3.html, "hot journals"). A database
    in use here has a write-ahead log instead from its first opening on, so the journal is somebody else's.
    """
    journal = path.with_name(path.name + "-journal")
    if Mirror(path).path.exists() and os.path.lexists(journal):
        aside = path.with_name(journal.name + ".unknown")
        journal.replace(aside)
        _log.warning("%s is not of this database; renamed to %s", journal, aside.name)


def _note_first(path: Path, writer: apsw.Connection, mark: Mark) -> Mark | None:
    """Have a note of how far the database has come before it is used, so that one that is missing later
    was taken away. A copy becomes a database like any other by its first opening.

    :return: what was noted; None where there was no need, or it could not be.
    """
    mirror = Mirror(path)
    if mark.backup_of is None and mirror.path.exists():
        return None
    try:
        mirror.write(mark)
    except OSError:
        return None  # told of when the next note cannot be written, too
    if mark.backup_of is not None:
        with contextlib.suppress(apsw.FullError, apsw.IOError):
            writer.execute("UPDATE commits SET backup_of = NULL")
    return evolve(mark, backup_of=None)


def _prepare(path: Path, writer: apsw.Connection) -> None:
    if writer.readonly("main"):
        raise StoreOpenError(f"{path} is not writable")
    if not writer.pragma("application_id"):
        # Before the switch to WAL, so that the mark stands in the file itself from the start.
        writer.pragma("application_id", APPLICATION_ID)
    if (mode := writer.pragma("journal_mode", "WAL")) != "wal":
        raise StoreOpenError(f"{path} cannot use a write-ahead log here (it uses {mode})")
    writer.pragma("cache_size", -_WRITER_CACHE_KIB)
    writer.pragma("journal_size_limit", _WAL_LIMIT)
    writer.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
    migrate(writer)


def open_existing(path: Path) -> apsw.Connection:
    """Open a database that is there.

    The write-ahead log is left alone when the connection is closed. Otherwise SQLite would remove
    whatever has its name then: that of another database, or of the next daemon, where a process that
    was forked from this one is the last to close.
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
        ("synchronous", 2),  # FULL: what was acknowledged survives a power cut
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("cell_size_check", 1),
    ):
        connection.pragma(name, value)
        if (found := connection.pragma(name)) != value:
            raise StoreOpenError(f"{path}: SQLite keeps {name} at {found}, {value} is needed")
    return connection


def _look_first(path: Path) -> Mark | None:
    """Refuse a file that is not ours, too new or damaged, without a change to it.

    :return: how far the database has come, where it counts that.

    An ``immutable`` connection takes no locks and writes nothing, but does not see a write-ahead
    log; where a process ended without emptying its log, an ordinary one must look, and is told to
    leave the log alone when it closes. A process that ended while it emptied its log has left a
    file that cannot be read without it, or is read as nonsense.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    has_log = _has_log(path)
    try:
        mark = _check(path, partial(_opened_immutable, path), whole=not has_log)
    except StoreDamaged:
        if not has_log:
            raise
        mark = None
    if has_log:
        behind, mark = mark, _check(path, partial(open_existing, path), whole=True)
        if behind and mark and behind.database not in (mark.database, mark.backup_of):
            raise StoreDamaged(
                f"{path}-wal is the write-ahead log of another database: move it and {path}-shm away"
            )
    return mark


def _opened_immutable(path: Path) -> apsw.Connection:
    return apsw.Connection(
        f"file:{quote(str(path))}?immutable=1",
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
    )


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _check(path: Path, opened: Callable[[], apsw.Connection], *, whole: bool) -> Mark | None:
    try:
        return _looked(path, opened, whole=whole)
    except StoreDamaged:
        if is_damaged(opened):
            raise
        raise StoreOpenError(f"{path} cannot be read: the disk did not give all of it") from None


def is_damaged(opened: Callable[[], apsw.Connection]) -> bool:
    """Tell whether a database that SQLite calls malformed is, or could not be read: SQLite 3.54 says
    the same of both to who reads rows, and tells them apart in its check of pages. That is given a
    second; what is not known by then is taken for damaged.

    :param opened: makes a connection, one that has read nothing yet.
    """
    end = time.monotonic() + LOOK_S
    try:
        with contextlib.closing(opened()) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > end, 1000)
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    except apsw.IOError:
        return False
    except apsw.Error:
        return True
    return found != ["ok"] and not is_unreadable(found[0])


def is_unreadable(finding: str) -> bool:
    """Tell whether a finding of SQLite's says that the disk did not give a page, which may be sound."""
    return f"error code={apsw.SQLITE_IOERR_CORRUPTFS}" in finding or "disk I/O error" in finding


def _looked(path: Path, opened: Callable[[], apsw.Connection], *, whole: bool) -> Mark | None:
    connection = opened()
    try:
        try:
            mark = connection.pragma("application_id")
        except (apsw.NotADBError, apsw.CorruptError) as error:
            if header_is_ours(path):
                raise StoreDamaged(f"{path} is damaged: {error}") from None
            raise ForeignDatabase(f"{path} is not an SQLite database") from None
        if mark != APPLICATION_ID:
            raise ForeignDatabase(f"{path} is a database of another program")
        if (version := connection.pragma("user_version")) > schema_version():
            raise SchemaTooNew(
                f"{path} has schema version {version}; this program knows up to"
                f" {schema_version()}: use a newer one"
            )
        if whole:
            _check_whole(path, connection)
        try:
            return read_mark(connection)
        except apsw.Error as error:
            if not whole:
                return None  # a file that lacks what its log has may be read as nonsense
            raise StoreDamaged(f"{path} is damaged: {error}") from None
    finally:
        connection.close()


def header_is_ours(path: Path) -> bool:
    """Tell whether a file SQLite cannot read was ours once (the layout: sqlite.org/fileformat2).

    Read without SQLite, which is safe only here: nothing of ours has the file open.
    """
    with path.open("rb") as file:
        header = file.read(72)
    return header[:16] == b"SQLite format 3\0" and header[68:] == APPLICATION_ID.to_bytes(4)


def _check_whole(path: Path, connection: apsw.Connection) -> None:
    """Look for damage, for as long as a start may take; the rest is left to a check in use."""
    end = time.monotonic() + LOOK_S
    connection.set_progress_handler(lambda: time.monotonic() > end, 1000)
    try:
        connection.pragma("cell_size_check", 1)
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except apsw.InterruptError:
        _log.info("%s is large: not all of it was checked, see `agentctl daemon check`", path)
        return
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        found = [str(error)]
    finally:
        connection.set_progress_handler(None)
    if found != ["ok"]:
        raise StoreDamaged(f"{path} is damaged: {'; '.join(found)}")

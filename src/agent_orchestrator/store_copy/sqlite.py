"""SQLite files as the source and the target of a copy."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import apsw

from agent_orchestrator.data_directory import make_data_directory
from agent_orchestrator.domain.errors import Conflict, StoreOpenError
from agent_orchestrator.known_databases import remember
from agent_orchestrator.store_copy.database import Database, Source, Target
from agent_orchestrator.store_copy.errors import CopyFailed
from agent_orchestrator.store_copy.tables import MAKE_INDEX, TABLES, Column, Key, Row, Table
from agent_orchestrator.stores.sqlite.connection import BUSY_TIMEOUT_MS, open_database
from agent_orchestrator.stores.sqlite.files import OWN_FILES
from agent_orchestrator.stores.sqlite.lock import FileLock
from agent_orchestrator.stores.sqlite.maintenance import move_into_place
from agent_orchestrator.stores.sqlite.schema import (
    APPLICATION_ID,
    immediate,
    migrate,
    schema_version,
)
from agent_orchestrator.user_state import user_state

_GENERATED: Final = (2, 3)
"""The values of ``hidden`` in ``table_xinfo`` for computed columns."""

_PROGRESS: Final = "CREATE TABLE copying (name TEXT PRIMARY KEY, done TEXT NOT NULL) STRICT"
_SOURCE: Final = ""
"""The name of the entry with the state of the source, among those of the tables."""

_NOTE: Final = (
    "INSERT INTO copying VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET done = excluded.done"
)


class _Sqlite(Database):
    _connection: apsw.Connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._failures():
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Report a failure of the database.

        :raises StoreOpenError: for a failure.
        """
        try:
            yield
        except apsw.Error as error:
            raise StoreOpenError(f"{self.name} failed: {error}") from error

    def columns(self, table: Table) -> tuple[Column, ...]:
        found = self.rows(f"PRAGMA table_xinfo({table.name})")
        return tuple(
            Column(name, kind in ("TEXT", "BLOB"))
            for _, name, kind, _, _, _, hidden in found
            if hidden not in _GENERATED
        )


class SqliteSource(_Sqlite, Source):
    """A database file, opened as agentd opens it: with its locks and checks."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.name = str(self._path.absolute())

    def __enter__(self) -> Self:
        if not self._path.exists():
            raise StoreOpenError(f"{self.name} does not exist")
        self._database = open_database(self._path)
        self._connection = self._database.readers[0]
        self._connection.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._database.close()

    def state(self) -> str:
        watermark = self._database.watermark
        return json.dumps([watermark.database, watermark.commits, schema_version()])


class SqliteTarget(_Sqlite, Target):
    """A new file. Until the copy is finished, it has another name."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self.name = str(self._path)
        self._unfinished = self._path.with_name(f".{self._path.name}.copying")

    def __enter__(self) -> Self:
        self._refuse_existing()
        make_data_directory(self._path.parent)
        if self._unfinished.is_symlink():
            raise StoreOpenError(f"{self._unfinished} is a symbolic link: remove it")
        self._lock = FileLock.take(self._unfinished, self.name, create=True)
        try:
            self._connection = self._connected()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._connection.close()
        finally:
            self._lock.release()

    def _refuse_existing(self) -> None:
        for end in OWN_FILES:
            if os.path.lexists(beside := self._path.with_name(self._path.name + end)):
                raise CopyFailed(
                    "target_not_empty",
                    f"{beside} exists already: name a file that does not, or move it away",
                )

    def _connected(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._unfinished), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        try:
            connection.pragma("synchronous", 2)
            connection.pragma("foreign_keys", 1)
            is_ours = connection.pragma("application_id") == APPLICATION_ID
        except (apsw.NotADBError, apsw.CorruptError):
            connection.close()
            raise StoreOpenError(
                f"{self._unfinished} is not an unfinished copy: remove it"
            ) from None
        if not is_ours and self._unfinished.stat().st_size:
            connection.close()
            raise StoreOpenError(f"{self._unfinished} is not an unfinished copy: remove it")
        return connection

    def begin(self, state: str) -> bool:
        if self._recorded(_SOURCE) == state:
            again = [table.name for table in TABLES if table.is_copied_anew]
            with self._failures(), immediate(self._connection):
                for name in again:
                    self._connection.execute(f"DELETE FROM {name}")
                    self._connection.execute("DELETE FROM copying WHERE name = ?", (name,))
            return True
        self._empty()
        with self._failures():
            self._connection.pragma("application_id", APPLICATION_ID)
            migrate(self._connection)
            with immediate(self._connection):
                self._connection.execute("DELETE FROM image_space")
                self._connection.execute(_PROGRESS)
                self._connection.execute(_NOTE, (_SOURCE, state))
        return False

    def _empty(self) -> None:
        """Make the file empty. It may contain an unfinished copy of another source."""
        self._connection.close()
        os.truncate(self._unfinished, 0)
        for end in ("-journal", "-wal", "-shm"):
            self._unfinished.with_name(self._unfinished.name + end).unlink(missing_ok=True)
        self._connection = self._connected()

    def _recorded(self, name: str) -> str | None:
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'copying'"):
            return None
        for (done,) in self.rows("SELECT done FROM copying WHERE name = ?", (name,)):
            return str(done)
        return None

    def add(self, table: Table, columns: Sequence[Column], rows: Sequence[Row], last: Key) -> None:
        names = ", ".join(column.name for column in columns)
        places = ", ".join("?" * len(columns))
        with self._failures(), immediate(self._connection):
            self._connection.executemany(
                f"INSERT INTO {table.name} ({names}) VALUES ({places})", rows
            )
            self._connection.execute(_NOTE, (table.name, json.dumps(last)))

    def complete_tables(self) -> None:
        """Do nothing: the queries of the store on SQLite name their indexes."""

    def discard(self) -> None:
        self._connection.execute("DELETE FROM copying WHERE name = ?", (_SOURCE,))

    def finish(self) -> None:
        with self._failures(), immediate(self._connection):
            self._connection.execute("DROP TABLE copying")
            [(position,)] = self.rows("SELECT coalesce(max(position), 0) FROM events")
            if position:
                self._connection.execute(MAKE_INDEX, (position,))
            # Like a restored backup, the copy begins a new timeline, because its source may continue to be used.
            self._connection.execute("UPDATE commits SET backup_of = database")
        [(name,)] = self.rows("SELECT database FROM commits")
        if (state := user_state()) is not None:
            with contextlib.suppress(OSError):  # agentd asks for the path then
                remember(state, name, self._path)
        self._refuse_existing()
        try:
            move_into_place(self._unfinished, self._path, replace=False)
        except (FileExistsError, Conflict):
            raise CopyFailed(
                "target_not_empty", f"another program has created {self._path}"
            ) from None

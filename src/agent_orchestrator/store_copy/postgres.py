"""PostgreSQL databases as the source and the target of a copy."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
from psycopg import errors

from agent_orchestrator.domain.errors import StoreLocked, StoreOpenError
from agent_orchestrator.store_copy.database import Database, Source, Target
from agent_orchestrator.store_copy.errors import CopyFailed
from agent_orchestrator.store_copy.tables import (
    DERIVED,
    HAS_CONTENT,
    MAKE_INDEX,
    TABLES,
    Column,
    Key,
    Row,
    Table,
)
from agent_orchestrator.stores.postgres import daemons
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.primary import open_error, reason
from agent_orchestrator.stores.postgres.schema import (
    UNFINISHED_COPY,
    check_database,
    prepare,
    schema_version,
)
from agent_orchestrator.stores.urls import without_secrets

_COLUMNS: Final = """
    SELECT attname::text, format_type(atttypid, atttypmod) IN ('text', 'bytea'), attidentity <> ''
    FROM pg_attribute WHERE attrelid = (?::text)::regclass AND attnum > 0 AND NOT attisdropped
    AND attgenerated = '' ORDER BY attnum"""

_RECORD: Final = f"""
    INSERT INTO {UNFINISHED_COPY} VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET done = excluded.done"""
_SOURCE: Final = ""
"""The name of the entry with the state of the source, among those of the tables."""

_COMMITS: Final = "SELECT id, commits FROM daemons WHERE commits > 0 ORDER BY id"


class _Postgres(Database):
    """A database that one transaction holds: it locks the row that each change of a daemon locks first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = without_secrets(url)

    def __enter__(self) -> Self:
        try:
            self._holder = Connection(self._url)
            try:
                self._refuse_pooler()
                self._open()
            except BaseException:
                self._holder.close()
                raise
        except psycopg.ProgrammingError as error:
            if error.sqlstate is None:  # of the URL, which the message repeats
                raise StoreOpenError("the URL cannot be read: write postgresql://…") from None
            raise open_error(self.name, error) from error
        except psycopg.Error as error:
            raise open_error(self.name, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.close()

    def _open(self) -> None:
        raise NotImplementedError

    def _refuse_pooler(self) -> None:
        if self._holder.is_pooled:
            raise StoreOpenError(
                f"{self.name} leads through a connection pooler: give the address of the server itself"
            )

    def _hold(self) -> None:
        """Begin the transaction that holds the database.

        :raises StoreLocked: if a daemon uses it.
        """
        self._holder.allow_idle()  # a long copy keeps its transaction open
        while True:
            self._holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            try:
                self._holder.execute(daemons.LOCK)
                break
            except errors.SerializationFailure:  # another change was committed just then
                self._holder.roll_back()
        daemons.end_abandoned(self._holder)

    def _prepare(self, *, is_copy: bool) -> None:
        """Hold the database, with the tables of the current version.

        :param is_copy: whether it may be an unfinished copy.
        :raises StoreOpenError: if it cannot be used, or a daemon uses it.
        """
        version = check_database(self._holder, is_copy=is_copy)
        if version is not None:
            self._hold()
        if version != schema_version():
            self._holder.roll_back()
            prepare(self._holder, is_copy=is_copy)
            self._hold()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Report a failure of the database.

        :raises StoreOpenError: for a failure.
        """
        try:
            yield
        except errors.LockNotAvailable:
            raise StoreLocked(f"{self.name} is in use: another session locks its tables") from None
        except psycopg.Error as error:
            raise StoreOpenError(f"{self.name} failed: {reason(error)}") from error

    def columns(self, table: Table) -> tuple[Column, ...]:
        return tuple(
            Column(name, is_text) for name, is_text, _ in self.rows(_COLUMNS, (table.name,))
        )


class PostgresSource(_Postgres, Source):
    """A database that is read in the transaction that holds it."""

    def _open(self) -> None:
        with self._failures():
            if check_database(self._holder) is None:
                raise StoreOpenError(f"{self.name} has no tables of agentd")
            self._prepare(is_copy=False)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._failures():
            return self._holder.execute(sql, values).fetchall()

    def state(self) -> str:
        place = daemons.place_of(self._holder)
        commits = [list(row) for row in self.rows(_COMMITS)]
        return json.dumps([place, commits, schema_version()])

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                with self._failures():
                    self._holder.execute("COMMIT")  # the ends of abandoned daemons
        finally:
            super().__exit__()


class PostgresTarget(_Postgres, Target):
    """A database that is filled in many transactions, while another one holds it."""

    def _open(self) -> None:
        with self._failures():
            self._prepare(is_copy=True)
            self._writer = Connection(self._url)

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        super().__exit__()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._failures():
            return self._writer.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Run statements in one transaction, after one that an attempt which was killed left behind."""
        with self._failures():
            self._writer.execute("BEGIN")
            try:
                self._writer.queue(f"LOCK TABLE {UNFINISHED_COPY} IN EXCLUSIVE MODE", ())
                yield self._writer
                self._writer.flush()
                self._writer.execute("COMMIT")
            except BaseException:
                if not self._writer.is_lost:
                    self._writer.roll_back()
                raise

    def begin(self, state: str) -> bool:
        is_copy = self._is_copy()
        if is_copy and self._recorded(_SOURCE) == state:
            again = [table.name for table in TABLES if table.is_copied_anew]
            with self._transaction() as connection:
                for name in again:
                    connection.execute(f"DELETE FROM {name}")
                    connection.execute(f"DELETE FROM {UNFINISHED_COPY} WHERE name = ?", (name,))
            return True
        if not is_copy:
            self._refuse_content()
            self._make_record()
        names = ", ".join([*(table.name for table in TABLES), *DERIVED])
        with self._transaction() as connection:
            connection.execute("ALTER TABLE audit DISABLE TRIGGER audit_unchanged")
            connection.execute(f"TRUNCATE {names}, {UNFINISHED_COPY}")
            connection.execute("ALTER TABLE audit ENABLE TRIGGER audit_unchanged")
            connection.execute(_RECORD, (_SOURCE, state))
        return False

    def _make_record(self) -> None:
        """Mark the database as an unfinished copy."""
        with self._failures():
            self._writer.execute(
                f'CREATE TABLE {UNFINISHED_COPY} (name text COLLATE "C" PRIMARY KEY, done text NOT NULL)'
            )

    def _is_copy(self) -> bool:
        [(found,)] = self.rows(f"SELECT to_regclass('{UNFINISHED_COPY}') IS NOT NULL")
        return bool(found)

    def _refuse_content(self) -> None:
        for table in HAS_CONTENT:
            if self.rows(f"SELECT 1 FROM {table} LIMIT 1"):
                raise CopyFailed(
                    "target_not_empty",
                    f"{self.name} has content already, in the table {table}: name an empty database",
                )

    def _recorded(self, name: str) -> str | None:
        for (done,) in self.rows(f"SELECT done FROM {UNFINISHED_COPY} WHERE name = ?", (name,)):
            return str(done)
        return None

    def add(self, table: Table, columns: Sequence[Column], rows: Sequence[Row], last: Key) -> None:
        names = ", ".join(column.name for column in columns)
        places = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table.name} ({names}) OVERRIDING SYSTEM VALUE VALUES ({places})"
        with self._transaction() as connection:
            for row in rows:
                connection.queue(sql, row)
            connection.queue(_RECORD, (table.name, json.dumps(last)))

    def complete_tables(self) -> None:
        """Compute the statistics, without which the first queries would read whole tables."""
        names = ", ".join(table.name for table in TABLES)
        with self._failures():
            self._writer.run_script(f"ANALYZE {names}")

    def discard(self) -> None:
        with self._transaction() as connection:
            connection.execute(f"DELETE FROM {UNFINISHED_COPY} WHERE name = ?", (_SOURCE,))

    def finish(self) -> None:
        connection = self._holder
        with self._failures():
            for table in TABLES:
                for name, _, is_identity in self.rows(_COLUMNS, (table.name,)):
                    if is_identity:
                        self.rows(
                            f"SELECT setval(pg_get_serial_sequence('{table.name}', '{name}'),"
                            f" greatest(max({name}), 1), max({name}) IS NOT NULL) FROM {table.name}"
                        )
            [(position,)] = self.rows("SELECT coalesce(max(position), 0) FROM events")
            connection.execute("UPDATE head SET position = ?", (position,))
            if position:
                connection.execute(MAKE_INDEX, (position,))
            # Like a restored database, the copy begins a new timeline, because its source may continue to be used.
            connection.execute("DELETE FROM origin")
            connection.execute("INSERT INTO origin VALUES (1, ?)", ("copy",))
            connection.execute(f"DROP TABLE {UNFINISHED_COPY}")
            connection.execute("COMMIT")

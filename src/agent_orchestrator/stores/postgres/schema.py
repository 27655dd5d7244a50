"""The tables and their migrations."""

import logging
import re
import time
from functools import cache
from importlib.resources import files
from typing import Final

from psycopg import errors

from agent_orchestrator.domain.errors import SchemaTooNew, StoreOpenError
from agent_orchestrator.stores.postgres.connection import SCHEMA, Connection

MIN_SERVER: Final = 15
"""The oldest supported version of PostgreSQL."""

UNFINISHED_COPY: Final = "unfinished_copy"
"""A table that only a database has which is being filled by ``agentctl store copy``."""

_LOCK: Final = f"SELECT pg_advisory_xact_lock(hashtext('{SCHEMA}'))"
_VERSION: Final = "SELECT version, min_reader FROM schema"
_IS_COPY: Final = f"SELECT to_regclass('{UNFINISHED_COPY}') IS NOT NULL"
_HAS_SCHEMA: Final = f"SELECT to_regnamespace('{SCHEMA}') IS NOT NULL"
_CREATE_SCHEMA: Final = f"CREATE SCHEMA {SCHEMA}"
_CREATE_TABLE: Final = """
    CREATE TABLE schema (
        one integer PRIMARY KEY CHECK (one = 1), version integer NOT NULL, min_reader integer NOT NULL)"""


_LOCK_WAIT: Final = "300ms"
"""How long a migration waits for a lock. While it waits, every statement on the table waits behind it."""

_PAUSE_S: Final = 0.2
"""Seconds between two tries."""

_MIGRATION_TIMEOUT_S: Final = 60.0
"""Seconds after which a migration that waits for locks is given up."""

_MIN_READER: Final = re.compile(r"^-- min_reader: (\d+)$", re.MULTILINE)
"""The line of a script that says the oldest version whose program can use the tables from then on."""

_LIVE: Final = """
    SELECT host, pid FROM daemons WHERE ended_at IS NULL AND expires_at > clock_timestamp() LIMIT 1"""
_LOCK_COMMITS: Final = "SELECT 1 FROM head FOR UPDATE"
_END_SILENT: Final = "UPDATE daemons SET ended_at = clock_timestamp() WHERE ended_at IS NULL"

_log = logging.getLogger("agent_orchestrator.store")


@cache
def migrations() -> tuple[str, ...]:
    """Return the migration scripts. Script n migrates to schema version n."""
    folder = files("agent_orchestrator.stores.postgres") / "migrations"
    scripts = sorted((entry for entry in folder.iterdir()), key=lambda entry: entry.name)
    return tuple(entry.read_text("utf-8") for entry in scripts if entry.name.endswith(".sql"))


def schema_version() -> int:
    """Return the current schema version."""
    return len(migrations())


def min_reader(version: int) -> int:
    """Return the oldest schema version whose program can use the tables of a version.

    A script that only adds to the tables leaves it as it is.
    """
    found = [_MIN_READER.search(script) for script in migrations()[:version]]
    return max((int(match[1]) for match in found if match is not None), default=1)


def check_database(connection: Connection, *, is_copy: bool = False) -> int | None:
    """Check that the database can be used. Return its schema version, or None if it has no tables.

    :param is_copy: whether it may be an unfinished copy.
    :raises StoreOpenError: if it cannot be used.
    :raises psycopg.Error: if the database fails.
    """
    _check_server(connection)
    if not is_copy and connection.first_row(_IS_COPY)[0]:
        raise StoreOpenError(
            "the database is an unfinished copy: run the same `agentctl store copy FROM TO` again to complete it"
        )
    found = _found_version(connection)
    if found is not None and found[1] > schema_version():
        raise SchemaTooNew(
            f"the database has schema version {found[0]}, which this program cannot use; it supports up to"
            f" {schema_version()}: use a newer one"
        )
    return None if found is None else found[0]


def prepare(connection: Connection, *, is_copy: bool = False) -> None:
    """Check that the database can be used, and migrate it to the current schema.

    Other daemons may use the database meanwhile: those of an older version as well, as long as
    :func:`min_reader` allows it.

    :param is_copy: whether it may be an unfinished copy.
    :raises StoreOpenError: if it cannot be used. Nothing in it was changed then.
    :raises psycopg.Error: if the database fails.
    """
    found = check_database(connection, is_copy=is_copy)
    if found is None or found < schema_version():
        try:
            _migrate(connection)
        except errors.InsufficientPrivilege as error:
            raise StoreOpenError(
                f"the role {connection.info.user} may not make the schema {SCHEMA} in the database"
                f" {connection.info.dbname}: make the role the database's owner, or run"
                f" CREATE SCHEMA {SCHEMA} AUTHORIZATION {connection.info.user}"
            ) from error


def _check_server(connection: Connection) -> None:
    version = connection.info.server_version // 10_000
    if version < MIN_SERVER:
        raise StoreOpenError(f"the server is PostgreSQL {version}; {MIN_SERVER} or newer is needed")
    encoding, is_standby = connection.first_row(
        "SELECT current_setting('server_encoding'), pg_is_in_recovery()"
    )
    if encoding != "UTF8":
        raise StoreOpenError(
            f"the encoding of the database is {encoding}: make one with ENCODING 'UTF8' TEMPLATE template0"
        )
    if is_standby:
        raise StoreOpenError("the server is a standby, which cannot be written: name the primary")


def _found_version(connection: Connection) -> tuple[int, int] | None:
    if connection.first_row("SELECT to_regclass('schema')")[0] is None:
        return None
    version: tuple[int, int] | None = connection.execute(_VERSION).fetchone()
    return version


def _migrate(connection: Connection) -> None:
    """Run the scripts that are missing, each in a transaction.

    :raises StoreOpenError: if other sessions lock the tables for too long, or a daemon of a version is running
        that could not use them any more.
    """
    deadline = time.monotonic() + _MIGRATION_TIMEOUT_S
    is_told = False
    while True:
        try:
            if _migrate_once(connection):
                return
        except errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise StoreOpenError(
                    "the tables cannot be migrated: other sessions have locked them for"
                    f" {_MIGRATION_TIMEOUT_S:g} s; end them, or try again"
                ) from None
            if not is_told:
                _log.warning("the tables are locked by other sessions: waiting to migrate them")
                is_told = True
            time.sleep(_PAUSE_S)  # others' statements run meanwhile


def _migrate_once(connection: Connection) -> bool:
    """Make the tables, or run the next script. Return True if there was nothing to do.

    :raises psycopg.errors.LockNotAvailable: if another session has a lock. Nothing was changed then.
    """
    connection.execute("BEGIN")
    try:
        connection.run_script(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
        connection.execute(_LOCK)  # another daemon may be doing the same
        found = _found_version(connection)
        if found is None:
            if not connection.first_row(_HAS_SCHEMA)[0]:
                connection.execute(_CREATE_SCHEMA)
            connection.execute(_CREATE_TABLE)
        version, oldest = found or (0, 1)
        if version >= schema_version():
            return True
        reader = max(oldest, min_reader(version + 1))
        if found is not None and reader > oldest:
            _end_older_daemons(connection, version)
        connection.run_script(migrations()[version])
        connection.execute(
            "INSERT INTO schema VALUES (1, ?, ?)"
            " ON CONFLICT (one) DO UPDATE SET version = excluded.version, min_reader = excluded.min_reader",
            (version + 1, reader),
        )
        connection.execute("COMMIT")
    finally:
        if not connection.is_lost:
            connection.roll_back()
    return False


def _end_older_daemons(connection: Connection, version: int) -> None:
    """Check that no daemon is running, which may have been started with an older version.

    One that is silent may come back: it loses its lease, and finds that it cannot use the tables.

    :raises StoreOpenError: if one is running.
    """
    connection.execute(_LOCK_COMMITS)  # none joins until the end of the migration
    live = connection.execute(_LIVE).fetchone()
    if live is not None:
        raise StoreOpenError(
            f"the tables of schema version {version} are changed in a way that a running agentd of an older version"
            f" cannot use: stop process {live[1]} on {live[0]}, and all others of that version, first"
        )
    connection.execute(_END_SILENT)

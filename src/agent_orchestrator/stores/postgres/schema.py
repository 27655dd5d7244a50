"""The tables and their migrations."""

from functools import cache
from importlib.resources import files
from typing import Final

import psycopg
from psycopg import errors

from agent_orchestrator.domain.errors import SchemaTooNew, StoreOpenError
from agent_orchestrator.stores.postgres.connection import SCHEMA, Connection

MIN_SERVER: Final = 15
"""The oldest supported version of PostgreSQL."""

_LOCK: Final = f"SELECT pg_advisory_xact_lock(hashtext('{SCHEMA}'))"
_VERSION: Final = "SELECT version, min_reader FROM schema"
_MIN_READER: Final = 1
"""The oldest schema version whose program can use the current one."""

_HAS_SCHEMA: Final = f"SELECT to_regnamespace('{SCHEMA}') IS NOT NULL"
_CREATE_SCHEMA: Final = f"CREATE SCHEMA {SCHEMA}"
_CREATE_TABLE: Final = """
    CREATE TABLE schema (
        one integer PRIMARY KEY CHECK (one = 1), version integer NOT NULL, min_reader integer NOT NULL)"""


@cache
def migrations() -> tuple[str, ...]:
    """Return the migration scripts. Script n migrates to schema version n."""
    folder = files("agent_orchestrator.stores.postgres") / "migrations"
    scripts = sorted((entry for entry in folder.iterdir()), key=lambda entry: entry.name)
    return tuple(entry.read_text("utf-8") for entry in scripts if entry.name.endswith(".sql"))


def schema_version() -> int:
    """Return the current schema version."""
    return len(migrations())


def check_database(connection: Connection) -> int | None:
    """Check that the database can be used. Return its schema version, or None if it has no tables.

    :raises StoreOpenError: if it cannot be used.
    :raises psycopg.Error: if the database fails.
    """
    _check_server(connection)
    found = _found_version(connection)
    if found is not None and found[1] > schema_version():
        raise SchemaTooNew(
            f"the database has schema version {found[0]}, which this program cannot use; it supports up to"
            f" {schema_version()}: use a newer one"
        )
    return None if found is None else found[0]


def prepare(connection: Connection) -> None:
    """Check that the database can be used, and migrate it to the current schema.

    :raises StoreOpenError: if it cannot be used. Nothing in it was changed then.
    :raises psycopg.Error: if the database fails.
    """
    found = check_database(connection)
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
    connection.execute("BEGIN")
    try:
        connection.execute(_LOCK)  # another daemon may be doing the same
        found = _found_version(connection)
        if found is None:
            if not connection.first_row(_HAS_SCHEMA)[0]:
                connection.execute(_CREATE_SCHEMA)
            connection.execute(_CREATE_TABLE)
        for script in migrations()[found[0] if found else 0 :]:
            connection.run_script(script)
        connection.execute(
            "INSERT INTO schema VALUES (1, ?, ?)"
            " ON CONFLICT (one) DO UPDATE SET version = excluded.version, min_reader = excluded.min_reader",
            (schema_version(), _MIN_READER),
        )
        connection.execute("COMMIT")
    except psycopg.Error:
        connection.roll_back()
        raise

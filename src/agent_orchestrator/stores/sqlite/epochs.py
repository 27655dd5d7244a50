"""The beginning of an epoch in an SQLite database."""

import contextlib

import apsw

from agent_orchestrator.stores.sql.epochs import add_epoch
from agent_orchestrator.stores.sqlite.schema import immediate


def begin_epoch(connection: apsw.Connection, *, is_restored: bool) -> str | None:
    """Record the opening of the database, and return the new epoch.

    :param is_restored: True if the database may lack events that it once had. It then gets a new
        name, and counts as a backup of the old name until the file beside it has the new one.
    :return: None if the database cannot be written now and is not restored.
    :raises apsw.Error: if a restored database cannot be written.
    """
    refusals = () if is_restored else (apsw.FullError, apsw.IOError, apsw.BusyError)
    with contextlib.suppress(*refusals):
        with immediate(connection):
            epoch = add_epoch(connection.execute, is_restored=is_restored)
            if is_restored:
                connection.execute(
                    "UPDATE commits SET backup_of = database, database = lower(hex(randomblob(16)))"
                )
        if is_restored:
            # Otherwise a write-ahead log left by a crash would be taken for that of another database.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return epoch
    return None

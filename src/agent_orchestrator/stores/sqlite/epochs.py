"""Epochs: they distinguish a restored log from the log that a reader has read.

After a restore, other events follow under the same numbers, so a cursor alone is ambiguous. A
reader therefore also keeps the epoch in which it read. Each opening of the database begins an
epoch, and epochs belong to timelines. A new timeline begins when the database may lack events
that it once had: at the first opening of a backup, and of a database that may have lost commits
(see :mod:`agent_orchestrator.stores.sqlite.watermark`).
"""

import contextlib
from typing import Final

import apsw

from agent_orchestrator.stores.encoding import new_epoch
from agent_orchestrator.stores.sqlite.schema import immediate

NO_END: Final = 2**63 - 1
"""The end of a timeline that is still growing."""


def begin_epoch(connection: apsw.Connection, *, is_restored: bool) -> str | None:
    """Record the opening of the database, and return the new epoch.

    :param is_restored: True if the database may lack events that it once had. It then gets a new
        name, and counts as a backup of the old name until the file beside it has the new one.
    :return: None if the database cannot be written now and is not restored.
    :raises apsw.Error: if a restored database cannot be written.
    """
    epoch = new_epoch()
    refusals = () if is_restored else (apsw.FullError, apsw.IOError, apsw.BusyError)
    with contextlib.suppress(*refusals):
        with immediate(connection):
            connection.execute(
                "INSERT INTO epochs (id, timeline, position) VALUES (?,"
                " (SELECT coalesce(max(timeline), 0) FROM epochs) + ?,"
                " (SELECT coalesce(max(position), 0) FROM events))",
                (epoch, int(is_restored)),
            )
            if is_restored:
                connection.execute(
                    "UPDATE commits SET backup_of = database, database = lower(hex(randomblob(16)))"
                )
        if is_restored:
            # Otherwise a write-ahead log left by a crash would be taken for that of another database.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return epoch
    return None


def end_of(connection: apsw.Connection, epoch: str) -> int | None:
    """Return the position of the last event that this database shares with an epoch.

    :return: :data:`NO_END` if the epoch's timeline is still growing; None if the epoch is unknown.
    """
    row = connection.execute(
        "SELECT coalesce((SELECT min(later.position) FROM epochs AS later"
        " WHERE later.timeline > epochs.timeline), ?) FROM epochs WHERE id = ?",
        (NO_END, epoch),
    ).fetchone()
    return None if row is None else int(row[0])

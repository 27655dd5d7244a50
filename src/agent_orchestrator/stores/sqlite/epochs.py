"""Which times of being open a database has seen: what tells a restored log from the one that was read.

A cursor says how far a reader has come. After a backup was put back, other events follow under the
same numbers. So a reader also remembers in which epoch it read, and the database knows its epochs:
one for each time it was opened, in timelines. A new timeline begins where the database may lack
what it once had: at the first opening of a backup, and of a database without proof that it is
whole (see :mod:`agent_orchestrator.stores.sqlite.mirror`).
"""

import contextlib
from typing import Final

import apsw

from agent_orchestrator.stores.encoding import new_epoch
from agent_orchestrator.stores.sqlite.schema import immediate

NO_END: Final = 2**63 - 1
"""The last position of a timeline that goes on."""


def begin_epoch(connection: apsw.Connection, *, is_restored: bool) -> str | None:
    """Write down that the database is opened, and return the epoch that begins.

    :param is_restored: it may lack what it once had. Then it also gets a new name, the old one being
        what it is a backup of, until its mirror has the new one.
    :return: None where it cannot be written now; a restored one is refused instead.
    :raises apsw.Error: if a restored one cannot be written.
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
            # Else a log left by a crash would be taken for that of another database.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return epoch
    return None


def end_of(connection: apsw.Connection, epoch: str) -> int | None:
    """Return the position of the last event that is the same as in an epoch.

    :return: :data:`NO_END` where its timeline goes on; None where the database has not seen it.
    """
    row = connection.execute(
        "SELECT coalesce((SELECT min(later.position) FROM epochs AS later"
        " WHERE later.timeline > epochs.timeline), ?) FROM epochs WHERE id = ?",
        (NO_END, epoch),
    ).fetchone()
    return None if row is None else int(row[0])

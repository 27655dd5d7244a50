"""Epochs distinguish a restored log from the log that a reader has read.

After a restore, new events get numbers that lost events had, so a cursor alone is ambiguous. A
reader therefore also keeps the epoch in which it read. Each opening of the database begins an
epoch, and epochs belong to timelines. A new timeline begins when the database may lack events
that it once had: at the first opening of a backup, and of a database that may have lost commits
(see :mod:`agent_orchestrator.stores.sqlite.watermark`).
"""

from collections.abc import Callable
from typing import Any, Final

from agent_orchestrator.stores.encoding import new_epoch

NO_END: Final = 2**63 - 1
"""The end of a timeline that is still growing."""


def add_epoch(execute: Callable[..., Any], *, is_restored: bool) -> str:
    """Record an opening of the database, in a transaction, and return the new epoch.

    :param execute: runs a statement with its values.
    :param is_restored: True if the database may lack events that it once had.
    """
    epoch = new_epoch()
    execute(
        "INSERT INTO epochs (id, timeline, position) VALUES (?,"
        " (SELECT coalesce(max(timeline), 0) FROM epochs) + ?,"
        " (SELECT coalesce(max(position), 0) FROM events))",
        (epoch, int(is_restored)),
    )
    return epoch


def end_of(execute: Callable[..., Any], epoch: str) -> int | None:
    """Return the position of the last event that this database shares with an epoch.

    :param execute: runs a statement with its values.
    :return: :data:`NO_END` if the epoch's timeline is still growing; None if the epoch is unknown.
    """
    row = execute(
        "SELECT coalesce((SELECT min(later.position) FROM epochs AS later"
        " WHERE later.timeline > epochs.timeline), ?) FROM epochs WHERE id = ?",
        (NO_END, epoch),
    ).fetchone()
    return None if row is None else int(row[0])

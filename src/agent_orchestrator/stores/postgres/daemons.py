"""The daemons of a database: each has a row while it may write.

Every commit of a daemon updates its row: it counts the commit and extends the lease. A daemon whose row
has an end can commit nothing more. Whoever ends the row of another locks it, so it waits for a commit
that is under way. Times are the server's.
"""

import os
import platform
import time
from typing import Final

from attrs import define, frozen

from agent_orchestrator.domain.errors import StoreLocked
from agent_orchestrator.processes import is_running, process_start_id
from agent_orchestrator.stores.encoding import new_epoch
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.sql.epochs import add_epoch

LEASE_S: Final = 10.0
"""Seconds after a daemon's last commit after which another daemon may take its place."""

BEAT_S: Final = LEASE_S / 4
"""Seconds after which a daemon without commits extends its lease."""

_LOOK_S: Final = 0.2
"""Seconds between two looks at the lease of another daemon."""

_KEPT_DAYS: Final = 30

CHANNEL: Final = "agent_orchestrator"
"""The channel of notifications, of all daemons of a database."""

LOCK: Final = "SELECT position FROM head FOR UPDATE"
"""Waits until no other change runs, and returns the last position of the log."""

_LEASE: Final = f"clock_timestamp() + interval '{LEASE_S} seconds'"

COMMIT: Final = f"""
    WITH counted AS (
        UPDATE daemons SET commits = ?1, expires_at = {_LEASE}
        WHERE id = ?2 AND ended_at IS NULL RETURNING 1),
    advanced AS (UPDATE head SET position = ?3 WHERE position <> ?3)
    SELECT count(*), CASE WHEN ?4::text IS NOT NULL THEN pg_notify('{CHANNEL}', ?4)::text END FROM counted"""
"""The last statement of a change: the number of the commit, the daemon, the last position, and what to notify
others of. Returns 0 if the daemon may not commit any more."""

_OTHERS: Final = """
    SELECT id, host, machine, pid, process_start_id, expires_at::text, expires_at <= clock_timestamp()
    FROM daemons WHERE ended_at IS NULL AND id <> ? LIMIT 1"""
_JOIN: Final = f"""
    INSERT INTO daemons (id, host, machine, pid, process_start_id, expires_at)
    VALUES (?, ?, ?, ?, ?, {_LEASE})"""
_END: Final = "UPDATE daemons SET ended_at = clock_timestamp() WHERE id = ? AND ended_at IS NULL"
_FORGET: Final = f"DELETE FROM daemons WHERE ended_at < now() - interval '{_KEPT_DAYS} days'"
_OPEN: Final[set[str]] = set()
"""The daemons of this process."""

_COMMITS: Final = "SELECT commits, ended_at IS NULL FROM daemons WHERE id = ? FOR UPDATE"

_PLACE: Final = """
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (SELECT oid FROM pg_database WHERE datname = current_database()), 'events'::regclass::oid)"""


@frozen
class Row:
    """What the row of a daemon says.

    :param commits: the number of its commits.
    :param is_valid: False if the daemon may not commit any more.
    """

    commits: int
    is_valid: bool


@define
class Daemon:
    """A daemon in its database."""

    id: str
    epoch: str
    commits: int = 0
    """The number of commits that are known to be made."""


def join(connection: Connection) -> Daemon:
    """Add a row for this daemon, and begin an epoch of the log.

    The row of a daemon that was killed has no end. Its successor waits until the lease expires, unless it
    can see that the process has ended.

    :raises StoreLocked: if another daemon uses the database.
    :raises psycopg.Error: if the database fails.
    """
    leases: dict[str, str] = {}
    """The expiry of each other daemon's lease, when it was first seen."""
    while True:
        connection.execute("BEGIN")
        try:
            connection.execute(LOCK)
            other = connection.execute(_OTHERS, ("",)).fetchone()
            if other is None:
                return _join(connection)
            daemon_id, host, machine, pid, start_id, expires_at, is_expired = other
            is_here = machine is not None and machine == _machine()
            is_closed = pid == os.getpid() and daemon_id not in _OPEN
            if is_expired or (is_here and (is_closed or not is_running(pid, start_id))):
                connection.execute(_END, (daemon_id,))
                connection.execute("COMMIT")
                continue
        finally:
            connection.roll_back()
        if is_here or leases.setdefault(daemon_id, expires_at) != expires_at:
            raise StoreLocked(
                f"the database is in use by process {pid} on {host}; only one daemon can use it"
            )
        time.sleep(_LOOK_S)


def _join(connection: Connection) -> Daemon:
    daemon_id = f"dmn_{new_epoch()}"
    pid = os.getpid()
    values = (daemon_id, platform.node(), _machine(), pid, process_start_id(pid))
    connection.execute(_JOIN, values)
    connection.execute(_FORGET)
    epoch = begin_epoch(connection)
    connection.execute("COMMIT")
    _OPEN.add(daemon_id)
    return Daemon(daemon_id, epoch)


def begin_epoch(connection: Connection) -> str:
    """Begin an epoch, in a transaction, and return it.

    It begins a new timeline if the database is not where it was: it was restored, or its server was
    replaced by a standby. It may lack events then.
    """
    place = place_of(connection)
    before = connection.execute("SELECT place FROM origin").fetchone()
    if before is None:
        connection.execute("INSERT INTO origin VALUES (1, ?)", (place,))
    else:
        connection.execute("UPDATE origin SET place = ? WHERE place <> ?", (place, place))
    is_restored = before is not None and before[0] != place
    return add_epoch(connection.execute, is_restored=is_restored)


def place_of(connection: Connection) -> str:
    """Return where the database is: its server's cluster and timeline, and its numbers there."""
    place: str = connection.first_row(_PLACE)[0]
    return place


def row_of(connection: Connection, daemon_id: str) -> Row | None:
    """Return what a daemon's row says, after the end of a commit that is under way; None if it is gone."""
    row = connection.execute(_COMMITS, (daemon_id,)).fetchone()
    return None if row is None else Row(*row)


def leave(connection: Connection | None, daemon: Daemon) -> None:
    """End a daemon's row, so that the next one need not wait.

    :param connection: None if the database cannot be reached: then the lease has to expire.
    """
    _OPEN.discard(daemon.id)
    if connection is not None:
        connection.execute(_END, (daemon.id,))


def _machine() -> str | None:
    """Return the identity of what process ids refer to here: this boot, and the namespace of its ids."""
    start_id = process_start_id(os.getpid())
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - not a file
    except OSError:
        return None
    return None if start_id is None else f"{start_id.partition('/')[0]}/{namespace}"

"""The daemons of a database: each has a row while it may write.

Every commit of a daemon updates its row: it counts the commit and extends the lease. A daemon whose row
has an end can commit nothing more. Whoever ends the row of another locks it, so it waits for a commit
that is under way. Times are the server's.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Final, TypeVar

from attrs import define, frozen

from agent_orchestrator.domain.daemons import DaemonProfile
from agent_orchestrator.domain.errors import StoreLocked
from agent_orchestrator.ports.clock import Clock
from agent_orchestrator.ports.store import DAEMONS_TOPIC
from agent_orchestrator.processes import has_ended, process_start_id
from agent_orchestrator.stores.encoding import new_epoch
from agent_orchestrator.stores.postgres.connection import Connection
from agent_orchestrator.stores.postgres.schema import check_database
from agent_orchestrator.stores.sql.epochs import add_epoch

T = TypeVar("T")

LEASE_S: Final = 10.0
"""Seconds after a daemon's last heartbeat after which another daemon may take its place."""

HEARTBEAT_S: Final = LEASE_S / 4
"""Seconds between two heartbeats, each of which also ends the rows of daemons that are gone."""

_CHECK_S: Final = 0.2
"""Seconds between two checks of the lease of a daemon that prevents this one from joining."""

_KEPT_DAYS: Final = 30

CHANNEL: Final = "agent_orchestrator"
"""The channel of notifications, of all daemons of a database."""

LOCK: Final = "SELECT position, newest_id FROM head FOR UPDATE"
"""Waits until no other change runs, and returns the last position of the log, and the newest id."""

_LEASE: Final = "clock_timestamp() + ?::text::interval"
_SERVER_TIME: Final = "extract(epoch FROM clock_timestamp())::float8"

COMMIT: Final = f"""
    WITH counted AS (
        UPDATE daemons SET commits = ?1, expires_at = clock_timestamp() + ?5::text::interval
        WHERE id = ?2 AND ended_at IS NULL RETURNING 1),
    advanced AS (UPDATE head SET position = ?3, newest_id = greatest(newest_id, ?6)
        WHERE position <> ?3 OR newest_id < ?6)
    SELECT count(*), CASE WHEN ?4::text IS NOT NULL THEN pg_notify('{CHANNEL}', ?4)::text END FROM counted"""
"""The last statement of a change: the number of the commit, the daemon, the last position, what to notify
others of, the length of the lease, and the newest id. Returns 0 if the daemon may not commit any more."""

_HEARTBEAT: Final = f"""
    UPDATE daemons SET expires_at = {_LEASE}, clock_offset_s = ? WHERE id = ? AND ended_at IS NULL
    RETURNING {_SERVER_TIME}"""
_OTHERS: Final = """
    SELECT id, host, machine, pid, process_start_id, expires_at::text, expires_at <= clock_timestamp(),
        version IS NOT NULL, serves
    FROM daemons WHERE ended_at IS NULL AND id <> ? ORDER BY id"""
_JOIN: Final = f"""
    INSERT INTO daemons (id, host, machine, pid, process_start_id, version, expires_at)
    VALUES (?, ?, ?, ?, ?, ?, {_LEASE})"""
_DESCRIBE: Final = """
    UPDATE daemons SET version = ?, url = ?, capacity = ?, providers = ?, serves = ?,
        labels = ?, draining = ?, spawn_directory = ?, clock_offset_s = ? WHERE id = ?"""
_ADOPT: Final = """
    UPDATE sessions SET host = ?1 WHERE number IN (
        SELECT number FROM sessions WHERE host IS NULL OR host = 'local' ORDER BY number LIMIT ?2::integer)"""
_ADOPT_ATTEMPTS: Final = """
    UPDATE attempts SET host = ? WHERE (host IS NULL OR host = 'local')
        AND run_id IN (SELECT id FROM runs WHERE status IN ('running', 'waiting'))"""
_ADOPTED_AT_ONCE: Final = 5_000
_TELL: Final = f"""SELECT pg_notify('{CHANNEL}', '["", "{DAEMONS_TOPIC}"]')::text"""
"""Notifies all daemons, this one included, that one has joined or ended."""
_ENDED: Final = f"""
    WITH ended AS (UPDATE daemons SET {{values}} WHERE id = ? AND ended_at IS NULL {{only}} RETURNING 1)
    {_TELL} FROM ended"""
"""Ends a row and notifies of that in one statement: the daemon that does it may fail, or be refused, right afterwards."""
_END: Final = _ENDED.format(values="ended_at = clock_timestamp()", only="")
_IS_LOST: Final = "ended_at = clock_timestamp(), is_lost = true"
_LOSE: Final = _ENDED.format(values=_IS_LOST, only="")
_LOSE_IF_EXPIRED: Final = _ENDED.format(values=_IS_LOST, only="AND expires_at <= clock_timestamp()")
_FORGET: Final = f"""
    DELETE FROM daemons d WHERE ended_at < now() - interval '{_KEPT_DAYS} days'
        AND (serves IS NULL OR EXISTS (SELECT 1 FROM daemons n WHERE n.serves = d.serves
            AND (n.ended_at IS NULL OR (n.ended_at, n.id) > (d.ended_at, d.id))))"""
"""The last daemon of each host is kept: it says since when the host is away."""
_OPEN: Final[set[str]] = set()
"""The daemons of this process."""

_COMMITS: Final = "SELECT commits, ended_at IS NULL FROM daemons WHERE id = ? FOR UPDATE"

_PLACE: Final = """
    SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (SELECT oid FROM pg_database WHERE datname = current_database()), 'events'::regclass::oid)"""


def lease() -> str:
    """Return the length of a lease as an interval of the database."""
    return f"{LEASE_S} seconds"


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
    joined_at: float
    """The time before its lease began, by :func:`time.monotonic`."""
    commits: int = 0
    """The number of commits that are known to be made."""
    clock_offset_s: float = 0.0
    """Seconds that its clock is certainly ahead of the server's, as measured last."""


@frozen
class _Other:
    """The row of another daemon.

    :param is_sharing: False for a daemon of an earlier version.
    :param host: the host that it serves; None while it starts.
    """

    id: str
    node: str
    machine: str | None
    pid: int
    process_start_id: str | None
    expires_at: str
    is_expired: bool
    is_sharing: bool
    host: str | None

    @property
    def is_here(self) -> bool:
        """Whether its process id means the same process in this process."""
        return self.machine is not None and self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether its process has certainly ended, or has closed the store."""
        if not self.is_here:
            return False
        is_closed = self.pid == os.getpid() and self.id not in _OPEN
        return is_closed or has_ended(self.pid, self.process_start_id)

    def end(self, connection: Connection) -> bool:
        """End its row if it is gone or its lease has expired. Return whether that was done now."""
        if not self.is_gone and not self.is_expired:
            return False
        statement = _LOSE if self.is_gone else _LOSE_IF_EXPIRED
        return connection.execute(statement, (self.id,)).rowcount > 0


def join(connection: Connection) -> Daemon:
    """Add a row for this daemon, and begin an epoch of the log.

    The row of a daemon that was killed has no end. A daemon that cannot share the database with it waits
    until its lease expires, unless it can see that the process has ended.

    :raises StoreLocked: if a daemon uses the database that cannot share it with this one.
    :raises StoreOpenError: if the tables were migrated, and this program cannot use them any more.
    :raises psycopg.Error: if the database fails.
    """
    return _alone(
        connection, lambda other: not other.is_sharing, _refusal, partial(_join, connection)
    )


def join_again(connection: Connection, profile: DaemonProfile, clock: Clock) -> Daemon:
    """Add another row for this daemon, which was lost, with its description. Call :func:`adopt` after it.

    Both are one change: with the row it may start runs at once, and its host may have another machine by now.

    :raises StoreLocked: as :func:`join` and :func:`describe` do.
    :raises StoreOpenError: as :func:`join` does.
    :raises psycopg.Error: if the database fails.
    """
    offset = _measured_offset_s(connection, clock)

    def change() -> Daemon:
        daemon = _join(connection)
        daemon.clock_offset_s = offset
        _describe(connection, daemon, profile)
        return daemon

    return _alone(
        connection,
        lambda other: not other.is_sharing or _is_elsewhere(other, profile.host),
        lambda other: _same_host(other) if other.is_sharing else _refusal(other),
        change,
    )


def _alone(
    connection: Connection,
    is_opposing: Callable[[_Other], bool],
    refusal: Callable[[_Other], str],
    change: Callable[[], T],
    *,
    own: Daemon | None = None,
) -> T:
    """Make a change, in a transaction, when there is no opposing daemon. Wait for the ends of their leases.

    :param own: this daemon, whose lease is extended meanwhile.
    :raises StoreLocked: with the refusal, if an opposing daemon is at work.
    """
    leases: dict[str, str] = {}
    """The expiry of each opposing daemon's lease, when it was first seen."""
    while True:
        connection.execute("BEGIN")
        try:
            connection.execute(LOCK)
            others = _others(connection, "" if own is None else own.id)
            opposing = [one for one in others if not one.end(connection) and is_opposing(one)]
            if not opposing:
                answer = change()
                connection.execute("COMMIT")
                return answer
            if own is not None:
                connection.execute(_HEARTBEAT, (lease(), own.clock_offset_s, own.id))
            connection.execute("COMMIT")
        finally:
            connection.roll_back()
        for other in opposing:
            if other.is_here or leases.setdefault(other.id, other.expires_at) != other.expires_at:
                raise StoreLocked(refusal(other))
        time.sleep(_CHECK_S)


def end_abandoned(connection: Connection) -> None:
    """End the rows of daemons that are gone, in a transaction that has run :data:`LOCK`.

    :raises StoreLocked: if a daemon uses the database.
    :raises psycopg.Error: if the database fails.
    """
    for other in _others(connection, ""):
        if not other.end(connection):
            raise StoreLocked(
                f"the database is in use by process {other.pid} on {other.node}: stop that agentd"
            )


def _refusal(other: _Other) -> str:
    return (
        f"the database is in use by process {other.pid} on {other.node}, of an earlier version, which cannot"
        " share it: stop that process first"
    )


def _same_host(other: _Other) -> str:
    return (
        f"the host {other.host} is served by process {other.pid} on {other.node}, which this process cannot see:"
        " give each machine or container a different name (host_name)"
    )


def _others(connection: Connection, daemon_id: str) -> list[_Other]:
    return [_Other(*row) for row in connection.execute(_OTHERS, (daemon_id,))]


def _join(connection: Connection) -> Daemon:
    check_database(connection)  # a daemon that begins anew may have been away during a migration
    daemon_id = f"dmn_{new_epoch()}"
    pid = os.getpid()
    joined_at = time.monotonic()
    values = (platform.node(), _machine(), pid, process_start_id(pid), _version(), lease())
    connection.execute(_JOIN, (daemon_id, *values))
    connection.execute(_FORGET)
    epoch = begin_epoch(connection)
    _tell(connection)
    _OPEN.add(daemon_id)
    return Daemon(daemon_id, epoch, joined_at)


def _version() -> str:
    try:
        return version("agent-orchestrator")
    except PackageNotFoundError:
        return "unknown"


def _tell(connection: Connection) -> None:
    """Notify all daemons, this one included, that one has joined, or has changed its description."""
    connection.execute(_TELL)


def describe(connection: Connection, daemon: Daemon, profile: DaemonProfile, clock: Clock) -> None:
    """Record the description of a daemon, and how far its clock is off. Call :func:`adopt` after it.

    :raises StoreLocked: if a daemon serves the host whose processes this one cannot see. The two could not
        know of each other's agents.
    :raises psycopg.Error: if the database fails.
    """
    daemon.clock_offset_s = _measured_offset_s(connection, clock)
    _alone(
        connection,
        lambda other: _is_elsewhere(other, profile.host),
        _same_host,
        partial(_describe, connection, daemon, profile),
        own=daemon,
    )


def _measured_offset_s(connection: Connection, clock: Clock) -> float:
    before = clock()
    [server_s] = connection.first_row(f"SELECT {_SERVER_TIME}")
    return offset_s(before, clock(), server_s)


def _is_elsewhere(other: _Other, host: str) -> bool:
    """Return whether another machine has a host's name."""
    return other.host == host and not other.is_here


def _describe(connection: Connection, daemon: Daemon, profile: DaemonProfile) -> None:
    providers = json.dumps(profile.providers)
    values = (profile.version, profile.url, profile.capacity, providers, profile.host)
    labels = json.dumps(profile.labels)
    placing = (labels, int(profile.draining), profile.spawn_directory)
    connection.execute(_DESCRIBE, (*values, *placing, daemon.clock_offset_s, daemon.id))
    connection.execute(_ADOPT_ATTEMPTS, (profile.host,))


def adopt(connection: Connection, host: str) -> None:
    """Give sessions without a host this one, and wake all daemons, which then look for their runs.

    :raises psycopg.Error: if the database fails.
    """
    while _adopt_some(connection, host):
        pass
    _tell(connection)


def _adopt_some(connection: Connection, host: str) -> bool:
    """Give some sessions without a host this one. Return whether there may be more."""
    connection.execute("BEGIN")
    try:
        connection.execute(LOCK)  # a change writes the whole row of a session that it has read
        adopted = connection.execute(_ADOPT, (host, _ADOPTED_AT_ONCE)).rowcount
        connection.execute("COMMIT")
    finally:
        connection.roll_back()
    return adopted == _ADOPTED_AT_ONCE


def offset_s(before: datetime, after: datetime, server_s: float) -> float:
    """Return the seconds that a clock is certainly ahead of the server's; negative if it is behind.

    :param before: the clock before the server was asked.
    :param after: the clock after its answer.
    :param server_s: the server's time in between, in seconds since 1970.
    """
    if server_s < before.timestamp():
        return before.timestamp() - server_s
    return min(0.0, after.timestamp() - server_s)


def send_heartbeat(connection: Connection, daemon: Daemon, clock: Clock) -> bool:
    """Extend a daemon's lease, and end the rows of the daemons that are gone.

    :return: False if the lease is lost.
    """
    before = clock()
    row = connection.first_row(_HEARTBEAT, (lease(), daemon.clock_offset_s, daemon.id))
    if row is None:
        return False
    daemon.clock_offset_s = offset_s(before, clock(), row[0])
    for other in _others(connection, daemon.id):
        other.end(connection)
    return True


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
    """End a daemon's row, so that the others need not wait.

    :param connection: None if the database cannot be reached: then the lease has to expire.
    """
    try:
        if connection is not None:
            connection.execute(_END, (daemon.id,))
    finally:
        # Not before: another store of this process would take it for a lost one.
        forget(daemon)


def forget(daemon: Daemon) -> None:
    """Note that this process does not use the database as this daemon any more."""
    _OPEN.discard(daemon.id)


def _machine() -> str | None:
    """Return the identity of what process ids refer to here: this boot, and the namespace of its ids."""
    start_id = process_start_id(os.getpid())
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - not a file
    except OSError:
        return None
    return None if start_id is None else f"{start_id.partition('/')[0]}/{namespace}"

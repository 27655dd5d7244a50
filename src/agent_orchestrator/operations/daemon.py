"""Calls about the daemon: its status, health and store."""

from datetime import datetime
from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.model import Approvals
from agent_orchestrator.fields import MAX_PATH, PATH_PATTERN, command, param, required
from agent_orchestrator.operations.runs import QueueCounts
from agent_orchestrator.operations.table import Operation


@command
class GetStatus:
    pass


@command
class Doctor:
    pass


@command
class BackUp:
    path: str = required(
        "The file to write on the daemon's machine, an absolute path.",
        kw_only=False,
        max_length=MAX_PATH,
        not_blank=True,
        pattern=PATH_PATTERN,
    )
    force: bool = param("Replace the file if it is an earlier backup.", default=False)


@command
class CheckStore:
    pass


@frozen
class ProviderStatus:
    name: str
    runner: str
    available: bool
    reason: str | None
    version: str | None
    default: bool = False
    mode: str | None = None
    """How its agents are run, if its runner has several ways."""
    logged_in: bool | None = None
    """Whether its agent has a login; None if only the agent knows."""
    capabilities: Capabilities = Capabilities()
    model: str | None = None
    """The model of runs that name none. None leaves it to the agent."""
    approvals: Approvals | None = None
    """Who decides the requests of its agents, unless a session is stricter. None leaves it to the session."""


@frozen
class ProviderRuns:
    provider: str
    queued_count: int
    running_count: int
    waiting_count: int


@frozen
class StoreStatus:
    backend: str
    path: str | None
    schema_version: int
    events: int


@frozen
class Problem:
    code: str
    message: str


@frozen
class DaemonView:
    """A daemon that shares the store."""

    id: str
    """The first part of the `worker_id` of its runs. It changes when the daemon begins anew."""
    node: str
    """The name of its machine."""
    pid: int
    started_at: datetime
    expires_at: datetime
    """When another daemon may take over its runs, unless its lease is extended. By the store's clock."""
    version: str | None
    """None while it starts, as are the next two."""
    url: str | None
    """Where its own agents call it."""
    max_concurrency: int | None
    providers: tuple[str, ...]
    active_count: int
    """Its runs that are running, or wait with an agent."""
    clock_offset_s: float | None = None
    """Seconds that its clock is ahead of the store's; negative if it is behind. None if it was not measured."""
    away_since: datetime | None = None
    """Its last heartbeat, if it has missed the latest ones or was lost; None if it is there. By the store's
    clock."""
    host: str | None = None
    """The host that it serves: it executes the runs of that host's sessions. None while it starts."""
    labels: tuple[str, ...] = ()
    """The labels of its host."""
    draining: bool = False
    """Whether it is about to end. No session is placed on its account."""
    spawn_directory: str | None = None
    """Where children of agents of other hosts work on its host. None if it lets none in."""


@frozen
class HostView:
    """A host that a daemon of the store serves, or has served."""

    name: str
    away_since: datetime | None
    """When its last daemon ended; None while one serves it."""
    waiting_count: int
    """While no daemon serves it: number of its runs that wait for one."""


@frozen
class DaemonStatus:
    daemon_health: Literal["ok", "degraded", "draining"]
    version: str
    pid: int
    uptime_s: float
    started_at: datetime
    alive_workers: int
    max_concurrency: int
    queue_counts: QueueCounts
    providers: tuple[ProviderStatus, ...]
    store: StoreStatus
    problems: tuple[Problem, ...]
    runs: tuple[ProviderRuns, ...] = ()
    """The same counts by provider. Providers without such runs are left out."""
    process_start_id: str | None = None
    """The start of the process: boot id and clock ticks since boot. With the pid it identifies the
    process."""
    daemons: tuple[DaemonView, ...] = ()
    """The daemons that share the store, this one included; also those lost in the last day and not started again
    at the same address. Empty if no other daemon can use the store."""
    daemon_id: str | None = None
    """The id of this daemon, the first part of the `worker_id` of its runs."""
    host: str | None = None
    """The host that this daemon serves."""
    hosts: tuple[HostView, ...] = ()
    """The hosts of the store's daemons, also of those that have ended. Empty if no other daemon can use the
    store."""
    machine: str | None = None
    """What people call the machine on which this daemon and the agents of its host work."""
    user: str | None = None
    """The user of that machine as which the daemon and those agents run."""
    page: str | None = None
    """The address at which people open the page from elsewhere: `link_base` of the settings of notices."""
    cwd: str | None = None
    """The directory of sessions that name none."""


@frozen
class BackupReply:
    path: str
    size: int
    """In bytes."""


@frozen
class CheckReply:
    """What is wrong with the store, and the number of rows that were checked."""

    ok: bool
    findings: tuple[str, ...]
    sessions: int
    runs: int
    events: int


@frozen
class Finding:
    """A fact about the daemon for its administrator.

    :param level: ``error``: something does not work, or strangers have access; ``warning``: that may
        happen; ``note``: the administrator's decision; ``ok``: nothing to do.
    :param about: the subject.
    :param hint: what to do.
    :param security: whether it concerns access or confinement.
    """

    level: Literal["ok", "note", "warning", "error"]
    about: str
    message: str
    hint: str | None = None
    security: bool = False


@frozen
class DoctorReport:
    """All findings; ``ok`` if none of them is an error."""

    ok: bool
    findings: tuple[Finding, ...]


STATUS: Final = Operation(
    "status",
    "GET",
    "/daemon/status",
    GetStatus,
    DaemonStatus,
    "Read the state of the daemon, its workers, providers and store.",
)

BACK_UP: Final = Operation(
    "back_up",
    "POST",
    "/daemon/backup",
    BackUp,
    BackupReply,
    "Copy the store to a file on the daemon's machine, while it is in use.",
    scope="admin",
    takes_long=True,
)
CHECK_STORE: Final = Operation(
    "check_store",
    "GET",
    "/daemon/check",
    CheckStore,
    CheckReply,
    "Check the store's integrity, and that its events match its rows.",
    scope="admin",
    takes_long=True,
)
DOCTOR: Final = Operation(
    "doctor",
    "GET",
    "/daemon/doctor",
    Doctor,
    DoctorReport,
    "List faults and dangers of the daemon, its providers, store and settings.",
    scope="admin",
)

"""Calls about the daemon: its status, health and store."""

from datetime import datetime
from typing import Final, Literal

from attrs import frozen

from agent_orchestrator.domain.capabilities import Capabilities
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

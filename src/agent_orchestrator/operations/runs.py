"""Calls about runs."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, Literal

from attrs import field, frozen

from agent_orchestrator.domain.model import Request, Run
from agent_orchestrator.fields import (
    MAX_TEXT,
    command,
    optional_identifier,
    optional_name,
    param,
    required,
)
from agent_orchestrator.operations.options import (
    MAX_IGNORED,
    ImageOptions,
    Keyed,
    ModelOptions,
    OfRun,
    OfSession,
    Ordered,
    Reasoned,
)
from agent_orchestrator.operations.table import Operation, _made

StatusName = Literal["queued", "running", "waiting", "completed", "failed", "canceled"]


@command
class CreateRun(ModelOptions, ImageOptions, Keyed, OfSession):
    text: str | None = param(
        "The text for the agent. Optional for a manual run.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    provider: str | None = optional_name(
        "The provider. A `manual` run is driven by its client, with transitions."
    )


@command
class ListRuns(Ordered):
    session_id: str | None = optional_identifier("Only runs of this session.")
    status: StatusName | None = param("Only runs with this status.", default=None)
    provider: str | None = optional_name("Only runs of this provider. Searched like `q`.")


@command
class GetRun(OfRun):
    pass


@command
class TransitionRun(Reasoned, Keyed, OfRun):
    to_status: StatusName = required("The new status. `canceled` cancels the run.", kw_only=False)
    result: Mapping[str, Any] | None = param(
        "The result, with `completed`: `{text}`.", default=None, max_length=4 * MAX_TEXT
    )
    error: Mapping[str, Any] | None = param(
        "The error, with `failed`: `{code, message}`.", default=None, max_length=4 * MAX_TEXT
    )


@command
class CancelRun(Reasoned, Keyed, OfRun):
    cascade: bool = param("Also cancel its descendants.", default=True)


@command
class WaitRun(OfRun):
    timeout_s: float = param("Maximum seconds to wait.", default=30.0, minimum=0, maximum=86_400)
    interval_ms: int | None = param(
        "Accepted for compatibility. The answer is pushed, not polled.",
        default=None,
        minimum=1,
        maximum=3_600_000,
    )
    until: Literal["terminal", "attention"] = param(
        "`terminal` waits for the run's end. `attention` also returns when the run or a descendant has "
        "an open question.",
        default="terminal",
    )
    ignore: Collection[str] = param(
        "Ids of open requests to ignore, such as those left to a person.",
        default=(),
        max_length=MAX_IGNORED,
    )


@command
class DiagnoseRun(OfRun):
    pass


@frozen
class RunReply:
    run: Run


@frozen
class RunPage:
    runs: tuple[Run, ...]
    next_cursor: str | None


@frozen
class CancelReply:
    run: Run
    canceled: tuple[str, ...]
    """Ids of the runs that are canceled; empty if the run had already ended."""
    pending: tuple[str, ...] = ()
    """Ids of those that no worker of this daemon executes: of a lost daemon, or on another host. Their
    cancel is recorded. They become canceled once their processes are known to be gone."""


@frozen
class WaitReply:
    run: Run
    timed_out: bool
    request: Request | None = None


@frozen
class QueueCounts:
    queued_count: int
    running_count: int
    waiting_count: int


IssueCode = Literal[
    "none",
    "queued_behind_run",
    "queued_no_capacity",
    "no_workers",
    "provider_unavailable",
    "waiting_on_request",
    "held",
    "agent_silent",
    "agent_exited",
    "auth_failed",
    "login_stale",
    "agent_cannot_ask",
    "rate_limited",
    "quota_exhausted",
    "thread_missing",
    "worker_lost",
    "host_away",
    "invalid_config",
    "cwd_missing",
    "crashed",
    "canceled",
    "unknown",
]


@frozen
class Issue:
    """The most likely reason for a run's state."""

    code: IssueCode
    message: str
    hint: str


@frozen
class AttemptView:
    attempt: int
    worker_id: str
    provider: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    pid: int | None
    delivered_at: datetime | None
    host: str | None = None
    """Id of the machine on which its agent works."""


@frozen
class InvocationView:
    command: str
    profile: str | None
    extra_args: tuple[str, ...]
    argv: tuple[str, ...]
    cwd: str


@frozen
class ProcessView:
    pid: int
    parent_pid: int | None
    command: str
    status: str


@frozen
class Diagnostics:
    """The evidence about a run's state."""

    worker_id: str | None
    worker_alive: bool
    alive_workers: int
    max_concurrency: int
    queue_counts: QueueCounts
    queue_position: int | None
    likely_issue: Issue
    active_pid: int | None
    process_tree: tuple[ProcessView, ...]
    last_event_at: datetime | None
    last_output_at: datetime | None
    blocked_by_run_id: str | None
    pending_request: Request | None
    thread_id: str | None
    attempts: tuple[AttemptView, ...]
    codex_invocation: InvocationView | None = field(default=None, kw_only=True)
    """How its agent was started, for runners of codex."""
    invocation: InvocationView | None = field(default=None, kw_only=True)
    """How its agent was started, for other runners."""
    processes_unknown: str | None = field(default=None, kw_only=True)
    """Why the processes are not known: they are on another machine, and its daemon was not to be asked."""
    stderr_tail: str

    @property
    def agent_invocation(self) -> InvocationView | None:
        """How its agent was started, for any runner."""
        return self.invocation or self.codex_invocation


@frozen
class DiagnosisReply:
    run: Run
    diagnostics: Diagnostics


CREATE_RUN: Final = _made(
    Operation("create_run", "POST", "/runs", CreateRun, RunReply, "Queue a run.", scope="write")
)
LIST_RUNS: Final = Operation(
    "list_runs", "GET", "/runs", ListRuns, RunPage, "List runs.", shared=True
)
GET_RUN: Final = Operation(
    "get_run", "GET", "/runs/{run_id}", GetRun, RunReply, "Read a run.", shared=True
)
TRANSITION_RUN: Final = Operation(
    "transition_run",
    "POST",
    "/runs/{run_id}/transition",
    TransitionRun,
    RunReply,
    "Change the status of a manual run, or cancel any run.",
    scope="write",
)
CANCEL_RUN: Final = Operation(
    "cancel_run",
    "POST",
    "/runs/{run_id}/cancel",
    CancelRun,
    CancelReply,
    "Cancel a run and its descendants.",
    scope="write",
    status=lambda answer: 202 if answer.canceled else 200,
    statuses=(202, 200),
)
WAIT_RUN: Final = Operation(
    "wait_run",
    "GET",
    "/runs/{run_id}/wait",
    WaitRun,
    WaitReply,
    "Wait until a run has ended.",
    shared=True,
)
DIAGNOSE_RUN: Final = Operation(
    "diagnose_run",
    "GET",
    "/runs/{run_id}/diagnose",
    DiagnoseRun,
    DiagnosisReply,
    "Explain a run's state, with evidence.",
)

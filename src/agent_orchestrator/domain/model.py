"""What exists: sessions, messages, runs, events. Immutable values; times are aware and in UTC."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from attrs import field, frozen

from agent_orchestrator.domain.lifecycle import RunStatus

SessionStatus = Literal["open", "closed"]
MessageRole = Literal["user", "assistant", "system"]
SourceKind = Literal["client", "session", "parent", "child"]
Delivery = Literal["queued", "delivered", "undeliverable"]
NotifyParent = Literal["record", "wake"]
RequestKind = Literal["approval_request", "permission_request", "input_request"]
Approvals = Literal["allow", "ask-parent", "ask-human", "deny"]
ApprovalPolicy = Literal["untrusted", "on-request", "never"]
Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]
Audience = Literal["parent", "human"]
Decision = Literal["approve", "deny", "answer"]
RequestStatus = Literal["pending", "approved", "denied", "answered", "expired", "canceled"]

MANUAL: Final = "manual"
"""The provider whose runs no worker executes: whoever holds one drives it with transitions."""

FAILURE_CODES: Final = (
    "auth_failed",
    "rate_limited",
    "quota_exhausted",
    "context_exceeded",
    "provider_error",
    "provider_unreachable",
    "provider_unavailable",
    "invalid_config",
    "thread_missing",
    "agent_crashed",
    "timeout",
    "worker_lost",
    "denied",
)
"""Why a run failed: the values of ``run.error.code``."""


@frozen
class Source:
    """Where a message came from."""

    kind: SourceKind = "client"
    session_id: str | None = None
    run_id: str | None = None
    principal: str | None = None


@frozen
class Session:
    """A conversation with one agent: owns messages, runs and one event log."""

    id: str
    title: str | None
    owner: str
    provider: str | None
    """The provider its messages go to; None means the default route at the time of the message."""
    model: str | None
    cwd: str
    status: SessionStatus
    parent_session_id: str | None
    parent_run_id: str | None
    root_session_id: str
    depth: int
    metadata: Mapping[str, Any]
    threads: Mapping[str, str]
    """The provider's own conversation id, by provider."""
    last_seq: int
    created_at: datetime
    updated_at: datetime
    notify_parent: NotifyParent = "record"
    """What a child's outcome does in its parent: it is recorded there, or also handed to the
    parent's agent as its next message."""
    approvals: Approvals | None = None
    """Who decides what its agents ask for; None leaves that to their provider's setting."""
    max_depth: int | None = None
    """Generations of children below it; None, here and below, where only the engine's limit holds.
    What is given to a session holds for all below it, too."""
    max_children: int | None = None
    """Children at work of one of its runs, or of a run below."""
    max_descendants: int | None = None
    """Sessions at work below it."""
    approval_policy: ApprovalPolicy | None = None
    """When its agents ask; None, here and below, leaves that to their provider's setting."""
    sandbox: Sandbox | None = None
    """What its agents' commands may do without asking."""


@frozen
class Image:
    """A picture that a message has. Its bytes are kept apart, until the run of the message has ended."""

    media_type: str
    """`image/png`, `image/jpeg`, `image/gif` or `image/webp`."""
    size: int
    """In bytes."""
    digest: str
    """SHA-256 of its bytes, in hexadecimal."""


@frozen
class Message:
    """Text put into a session."""

    id: str
    session_id: str
    role: MessageRole
    source: Source
    text: str
    run_id: str | None
    """The run that delivers it."""
    delivery: Delivery
    created_at: datetime
    is_steering: bool = False
    """Whether it is for an agent that is at work; not taken, it becomes a run of its own."""
    delivered_attempt: int | None = None
    """The attempt of its run that gave it to the agent."""
    own_run_id: str | None = None
    """The run it becomes if the agent at work does not take it; before what is queued later."""
    request_id: str | None = None
    """The request whose decision the gateway tells the agent with it; its source is who decided."""
    images: tuple[Image, ...] = ()
    """What its agent is to see with the text."""


@frozen
class RunResult:
    text: str


@frozen
class RunError:
    """Why a run failed: a code of :data:`FAILURE_CODES` and what the agent said."""

    code: str
    message: str


@frozen
class Usage:
    """What one run used; tokens as the provider counts them, cost where it tells it."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@frozen
class Chosen:
    """The models and the effort that were chosen for an agent. It may choose no others for the agents
    that it sets to work, and neither may they.
    """

    effort: str | None = None
    """The most reasoning effort that it may ask for; None is any."""
    models: Mapping[str, str] = field(factory=dict)
    """By provider: the only model that it may name. It may name any of a provider that is not here."""


@frozen
class Run:
    """One execution of an agent for one message."""

    id: str
    session_id: str
    message_id: str | None
    parent_run_id: str | None
    """The run above that set it to work, by a spawn or a message; its cancel reaches this one. Of
    a run that nobody above has sent for, the one that spawned the session."""
    provider: str
    model: str | None
    status: RunStatus
    waiting_on: str | None
    attempt: int
    """The attempt that is, or will be, executing: 1 at first, raised by every release. Every write
    of an attempt carries its number and is refused when the run has moved on."""
    worker_id: str | None
    thread_id: str | None
    result: RunResult | None
    error: RunError | None
    usage: Usage | None
    exit_code: int | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    priority: bool = False
    """Whether it goes before the runs its session had queued: its message interrupted one."""
    approval_policy: ApprovalPolicy | None = None
    """When its agent asks: as its message says, else its session; None leaves that, and the
    sandbox, to the provider's setting."""
    sandbox: Sandbox | None = None
    """What its agent's commands may do without asking, likewise."""
    effort: str | None = None
    """Reasoning effort that its message asks for. None is the provider's setting."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema that its answer must match, where its message gives one."""
    chosen: Chosen = field(factory=Chosen)
    """What was chosen for its agent, by its message, its session or whoever set it to work."""


OPTION_SCOPES: Final = "reaches"
"""The key in the ``detail`` of a request that says in words what an option allows beyond this once:
a map from options, and from :data:`SESSION_SCOPE`."""

SESSION_SCOPE: Final = "session"
"""The ``scope`` of an approval that goes beyond this once."""


@frozen
class Request:
    """A question of a run that its parent, or a person, is to answer."""

    id: str
    session_id: str
    run_id: str
    attempt: int
    root_session_id: str
    parent_session_id: str | None
    """Whose agent is asked; None leaves it to people."""
    kind: RequestKind
    text: str
    detail: Mapping[str, Any] | None
    options: tuple[str, ...] | None
    status: RequestStatus
    decision: str | None
    """What was decided: ``approve``, ``deny`` or ``answer``."""
    answer: str | None
    """The text that came with the decision."""
    scope: str | None
    decided_by: str | None
    created_at: datetime
    expires_at: datetime
    resolved_at: datetime | None
    approvals: Approvals = "ask-parent"
    """The policy it was asked under."""
    audience: Audience | None = "human"
    """Who is called on to answer it: the parent's agent, or people. None: the policy decided."""
    human_at: datetime | None = None
    """When people are called on, if the parent has not answered by then; or when they were."""
    wait: bool = False
    """Whether its run cannot go on without the answer."""
    warn_at: datetime | None = None
    """When ``request.expiring`` is written, if it is still open then."""
    warned: bool = False
    """Whether it was written for the present ``expires_at``."""

    @property
    def is_open(self) -> bool:
        return self.status == "pending"


@frozen
class Event:
    """One line of a session's log."""

    seq: int
    """1, 2, 3 … in each session, with no gap and no repeat."""
    session_id: str
    run_id: str | None
    attempt: int | None
    """The attempt that wrote it, for what an agent did."""
    event_type: str
    data: Mapping[str, Any]
    created_at: datetime


@frozen
class Invocation:
    """How an agent was started: enough to do it again by hand, without secrets."""

    command: str
    argv: tuple[str, ...]
    cwd: str
    profile: str | None = None
    extra_args: tuple[str, ...] = ()


@frozen
class Attempt:
    """The record of one attempt of a run."""

    run_id: str
    attempt: int
    worker_id: str
    provider: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    """The state the run went to when the attempt ended; ``worker_lost`` where its engine was lost."""
    pid: int | None = None
    process_start_id: str | None = None
    """When the process started (:func:`agent_orchestrator.processes.process_start_id`): pids are reused, the
    pair is not."""
    invocation: Invocation | None = None
    delivered_at: datetime | None = None
    """When the prompt was handed to the agent; before that the attempt had no effect."""
    stderr_tail: str = ""
    steerable: bool = False
    """Whether its agent takes messages while it works."""
    token_hash: str | None = None
    """Of the bearer token its agent was given, as long as it lasts; given once, never changed."""
    writes: int = 0
    """How many of its writes are recorded: what it says, in order, each counted once."""
    host: str | None = None
    """The machine that its agent works on (:attr:`agent_orchestrator.host.Host.id`). Attempts that an earlier
    version made have none."""

    @property
    def tag(self) -> str:
        """What its processes, and no others, bear in their environment."""
        return attempt_tag(self.run_id, self.attempt)


def attempt_tag(run_id: str, attempt: int) -> str:
    """Return the mark of an attempt's processes."""
    return f"{run_id}.{attempt}"


MAX_THREAD_ID: Final = 1_024
"""Maximum number of characters of a thread's id."""


def is_thread_id(text: str) -> bool:
    """Return True if a text can be a thread's id: not blank, without NUL, and of a fair length."""
    return bool(text.strip()) and "\0" not in text and len(text) <= MAX_THREAD_ID


@frozen
class Thread:
    """A provider's conversation, kept per session and provider so that the next run resumes it."""

    id: str
    state: Mapping[str, Any]
    """What the runner wants to remember beside the id (codex: the thread's token totals)."""

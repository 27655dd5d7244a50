"""Sessions, messages, runs, requests and events: immutable values. Times are aware and in UTC."""

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
NoticeLevel = Literal["default", "none", "requests", "all"]
RequestKind = Literal["approval_request", "permission_request", "input_request"]
Approvals = Literal["allow", "ask-parent", "ask-human", "deny"]
ApprovalPolicy = Literal["untrusted", "on-request", "never"]
Sandbox = Literal["read-only", "workspace-write", "danger-full-access"]
Audience = Literal["parent", "human"]
Decision = Literal["approve", "deny", "answer"]
OptionKind = Literal[
    "allow_once", "allow_session", "allow_always", "deny", "deny_and_stop", "answer"
]
RunKind = Literal["message", "attach", "adopt"]
RequestStatus = Literal["pending", "approved", "denied", "answered", "expired", "canceled"]

MANUAL: Final = "manual"
"""The provider whose runs no worker executes: a client drives them with transitions."""

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
"""The values of ``run.error.code``: why a run failed."""


@frozen
class Source:
    """The sender of a message."""

    kind: SourceKind = "client"
    session_id: str | None = None
    run_id: str | None = None
    principal: str | None = None


@frozen
class Session:
    """A conversation with one agent. It owns messages, runs and one event log."""

    id: str
    title: str | None
    owner: str
    provider: str | None
    """The provider for its messages; None means the default route at the time of the message."""
    model: str | None
    cwd: str
    status: SessionStatus
    parent_session_id: str | None
    parent_run_id: str | None
    root_session_id: str
    depth: int
    metadata: Mapping[str, Any]
    threads: Mapping[str, str]
    """Thread ids by provider."""
    last_seq: int
    created_at: datetime
    updated_at: datetime
    notify_parent: NotifyParent = "record"
    """Whether this child's outcome is only recorded in the parent's log, or also sent to the parent's
    agent as its next message."""
    approvals: Approvals | None = None
    """Who decides the requests of its agents; None means the provider's setting."""
    max_depth: int | None = None
    """Maximum depth of descendants. Here and in the next two fields None means the engine's limit.
    Limits also hold for all descendants."""
    max_children: int | None = None
    """Maximum number of active children of one run, of this session or a descendant."""
    max_descendants: int | None = None
    """Maximum number of active descendants."""
    approval_policy: ApprovalPolicy | None = None
    """When its agents ask for approval. None, here and for ``sandbox``, means the provider's setting."""
    sandbox: Sandbox | None = None
    """What its agents' commands may do without approval."""
    last_line: str | None = None
    """The last line that its agent said, at most 200 characters."""
    notices: NoticeLevel = "default"
    """What people are notified of: ``none``, ``requests``, or ``all``: also the ends of its runs.
    ``default``: what its parent says, else what each target and device is set for."""
    host: str | None = None
    """The machine that its directory is on (:attr:`agent_orchestrator.host.Host.id`). Only daemons of that
    host execute its runs. None for a session of an earlier version."""
    retain_days: int | None = None
    """How many days the events of its log are kept. Here and in the next two fields, 0 means no limit, and
    None the engine's setting."""
    retain_events: int | None = None
    """How many events of its log are kept at most."""
    retain_bytes: int | None = None
    """How many bytes of data the events of its log have at most."""
    oldest_cursor: int = 0
    """The smallest cursor of its log. Events up to it were deleted; see :class:`PrunedLog`."""


@frozen
class PrunedLog:
    """What was deleted of a session's log.

    :param seq: all events up to this one were deleted.
    :param count: number of deleted events, also of pieces of messages after ``seq``.
    :param digest: of the events up to ``seq``: for each of them, in order, the SHA-256 of the digest before
        it, as bytes, and its JSON. In hexadecimal; empty if there is none.
    :param audited_count: the ``count`` that the audit trail has.
    """

    seq: int = 0
    count: int = 0
    digest: str = ""
    audited_count: int = 0


@frozen
class Image:
    """An image of a message. Its bytes are stored separately, until the message's run has ended."""

    media_type: str
    """`image/png`, `image/jpeg`, `image/gif` or `image/webp`."""
    size: int
    """In bytes."""
    digest: str
    """SHA-256 of the bytes, in hexadecimal."""


@frozen
class Message:
    """A message in a session."""

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
    """Whether it is for a running agent. If that agent does not take it, the message starts another run."""
    delivered_attempt: int | None = None
    """The attempt that delivered it to the agent."""
    own_run_id: str | None = None
    """The id of the run it gets if the running agent does not take it. The id keeps its place in the queue."""
    request_id: str | None = None
    """The request whose decision it contains; its source is who decided."""
    images: tuple[Image, ...] = ()
    """The images for the agent."""


@frozen
class RunResult:
    text: str


@frozen
class RunError:
    """Why a run failed: a code of :data:`FAILURE_CODES` and a message."""

    code: str
    message: str


@frozen
class Usage:
    """The usage of one run: tokens as the provider counts them, cost if it reports it."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None


@frozen
class ChoiceLimits:
    """Limits on the models and the effort that an agent, and its descendants, may choose for children."""

    effort: str | None = None
    """The highest reasoning effort; None means any."""
    models: Mapping[str, str] = field(factory=dict)
    """The only model by provider. For other providers any model is allowed."""


@frozen
class Holder:
    """Who holds a session: a person with a program on the agent's machine."""

    principal: str
    pid: int
    process_start_id: str
    """The start of the process (:func:`agent_orchestrator.processes.process_start_id`)."""


@frozen
class Run:
    """One execution of an agent for one message, or of what a person does with its conversation."""

    id: str
    session_id: str
    message_id: str | None
    parent_run_id: str | None
    """The run of an ancestor that caused this one by a spawn or a message, else the run that spawned
    the session. Its cancel cascades to this run."""
    provider: str
    model: str | None
    status: RunStatus
    waiting_on: str | None
    attempt: int
    """The number of the current or next attempt. It starts at 1, and each release raises it. Writes of
    earlier attempts are refused."""
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
    """Whether it runs before the queued runs of its session, because its message interrupted a run."""
    approval_policy: ApprovalPolicy | None = None
    """When its agent asks for approval, from its message or session. None, here and for ``sandbox``, means
    the provider's setting."""
    sandbox: Sandbox | None = None
    """What its agent's commands may do without approval, from its message or session."""
    effort: str | None = None
    """Reasoning effort from its message; None means the provider's setting."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema that its answer must match, from its message."""
    chosen: ChoiceLimits = field(factory=ChoiceLimits)
    """Limits on what its agent may choose for children, from its message, its session or its sender."""
    kind: RunKind = "message"
    """``message`` runs the agent. ``attach`` holds the session while a person uses its conversation in the
    agent's own program, then records what was said. ``adopt`` records a conversation from its beginning."""
    holder: Holder | None = None
    """Who holds the session, if ``kind`` is ``attach``."""

    @property
    def is_held(self) -> bool:
        """Whether a person's program has the conversation now."""
        return self.kind == "attach" and self.status is RunStatus.WAITING


@frozen
class Option:
    """An answer that a request offers."""

    id: str
    """The name in a decision."""
    label: str
    """The text for people."""
    kind: OptionKind
    reaches: str | None = None
    """What it allows beyond this one time."""

    @classmethod
    def named(cls, text: str) -> "Option":
        """Return the option of a text alone: an answer in these words."""
        return cls(text, text, "answer")


@frozen
class Request:
    """A question of a run to its parent or to people."""

    id: str
    session_id: str
    run_id: str
    attempt: int
    root_session_id: str
    parent_session_id: str | None
    """The session whose agent is asked; None if only people are."""
    kind: RequestKind
    text: str
    detail: Mapping[str, Any] | None
    options: tuple[Option, ...] | None
    status: RequestStatus
    decision: str | None
    """``approve``, ``deny`` or ``answer``."""
    answer: str | None
    """The text of the decision."""
    scope: str | None
    decided_by: str | None
    created_at: datetime
    expires_at: datetime
    resolved_at: datetime | None
    approvals: Approvals = "ask-parent"
    """The policy when it was asked."""
    audience: Audience | None = "human"
    """Who is asked: the parent's agent, or people. None if the policy decided."""
    human_at: datetime | None = None
    """When people are or were asked, because the parent had not answered."""
    wait: bool = False
    """Whether its run waits for the answer."""
    warn_at: datetime | None = None
    """When to write ``request.expiring`` if it is still open."""
    warned: bool = False
    """Whether ``request.expiring`` was written for the current ``expires_at``."""
    option: str | None = None
    """The id of the option that was chosen."""
    decided_on: str | None = None
    """The name of the device on which it was decided. None if that was not on a device."""
    decided_on_id: str | None = None
    """The id of that device."""

    @property
    def is_open(self) -> bool:
        return self.status == "pending"

    @property
    def chosen(self) -> Option | None:
        """The option that was chosen."""
        return next((one for one in self.options or () if one.id == self.option), None)


@frozen
class Event:
    """One entry of a session's log."""

    seq: int
    """1, 2, 3 … in each session, without gaps and repeats."""
    session_id: str
    run_id: str | None
    attempt: int | None
    """The attempt that wrote it, for an event of an agent."""
    event_type: str
    data: Mapping[str, Any]
    created_at: datetime


@frozen
class Invocation:
    """The command that started an agent, without secrets: enough to repeat it by hand."""

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
    """The run's state after the attempt; ``worker_lost`` if its engine ended before it."""
    pid: int | None = None
    process_start_id: str | None = None
    """The start of the process (:func:`agent_orchestrator.processes.process_start_id`), because pids are
    reused."""
    invocation: Invocation | None = None
    delivered_at: datetime | None = None
    """When the agent got the prompt. Before that the attempt had no effects."""
    stderr_tail: str = ""
    steerable: bool = False
    """Whether its agent takes messages during a turn."""
    token_hash: str | None = None
    """Hash of its agent's bearer token. Never changed."""
    writes: int = 0
    """Number of its writes that are recorded."""
    host: str | None = None
    """The machine that its agent works on (:attr:`agent_orchestrator.host.Host.id`). None for an attempt of
    an earlier version."""

    @property
    def tag(self) -> str:
        """The value in the environment of its processes, and of no others, that identifies them."""
        return attempt_tag(self.run_id, self.attempt)


def attempt_tag(run_id: str, attempt: int) -> str:
    """Return :attr:`Attempt.tag` for an attempt."""
    return f"{run_id}.{attempt}"


MAX_THREAD_ID: Final = 1_024
"""Maximum number of characters of a thread id."""


def is_thread_id(text: str) -> bool:
    """Return True if a text can be a thread id: not blank, without NUL, not too long."""
    return bool(text.strip()) and "\0" not in text and len(text) <= MAX_THREAD_ID


@frozen
class Thread:
    """A provider's conversation, kept per session and provider so that the next run resumes it."""

    id: str
    state: Mapping[str, Any]
    """The runner's own data about the thread, such as token totals."""

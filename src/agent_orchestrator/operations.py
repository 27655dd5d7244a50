"""The calls of the API: a command class and an answer class for each, and the table of all calls.

Routes, the API description, the HTTP client and the reference pages come from :data:`OPERATIONS`.
A new call needs a command, a row in the table, an engine function and a contract test.
"""

from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from attrs import evolve, field, frozen, resolve_types

from agent_orchestrator.domain.access import Grant, Scope
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.images import MAX_IMAGE_BYTES, MAX_IMAGES, size_problem
from agent_orchestrator.domain.model import (
    ApprovalPolicy,
    Approvals,
    Decision,
    Event,
    Message,
    MessageRole,
    NotifyParent,
    Request,
    RequestKind,
    RequestStatus,
    Run,
    Sandbox,
    Session,
    SessionStatus,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import (
    MAX_INTEGER,
    MAX_NAME,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_PATH,
    MAX_QUESTION,
    MAX_TEXT,
    MAX_TREE_DEPTH,
    MAX_TREE_SIZE,
    PATH_PATTERN,
    command,
    identifier,
    optional_identifier,
    optional_name,
    optional_path,
    param,
    required,
)

MIN_OPEN_S: Final = 0.01
MAX_OPEN_S: Final = 30 * 86_400
"""Bounds of the seconds for which a question may be open."""

MAX_IGNORED: Final = 200
"""Maximum number of ids in ``ignore``: they must fit into a URL."""

WhenBusy = Literal["queue", "steer", "interrupt", "reject"]
StatusName = Literal["queued", "running", "waiting", "completed", "failed", "canceled"]


# --- fields shared by commands ------------------------------------------------------------------
# Each is declared once. A command inherits the groups it takes.


@command
class OfSession:
    session_id: str = identifier("The session.", kw_only=False)


@command
class OfRun:
    run_id: str = identifier("The run.", kw_only=False)


@command
class OfRequest:
    request_id: str = identifier("The request.", kw_only=False)


@command
class Keyed:
    idempotency_key: str | None = optional_name(
        "Idempotency key. A repeat with the same key returns the first answer.",
        tool_doc="Idempotency key. A repeat with the same key changes nothing.",
    )


@command
class Page:
    limit: int = param("Maximum number of items to return.", default=100, minimum=1, maximum=1000)
    cursor: str | None = param(
        "`next_cursor` of the previous page.", default=None, max_length=MAX_NAME
    )


@command
class SessionLimits:
    """Limits on the descendants of a session."""

    max_depth: int | None = param(
        "Maximum depth of descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_DEPTH,
    )
    max_children: int | None = param(
        "Maximum number of active children of one run, in this session and its "
        "descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )
    max_descendants: int | None = param(
        "Maximum number of active descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_SIZE,
    )


@command
class ConfinementOptions:
    """When an agent asks for approval, and what its commands may do without."""

    approval_policy: ApprovalPolicy | None = param(
        "When the agent asks for approval: `untrusted` before every command that is not known to be "
        "harmless, `on-request` when it needs more than the sandbox allows, or `never`. Default: the "
        "session's setting, else the provider's.",
        default=None,
    )
    sandbox: Sandbox | None = param(
        "What the agent's commands may do without approval. Default: the session's setting, else the "
        "provider's. More than `read-only` needs the scope `approve`.",
        default=None,
    )


MAX_IMAGE_TEXT: Final = -(-MAX_IMAGE_BYTES // 3) * 4
"""Maximum number of base64 characters of an image."""

MAX_SCHEMA: Final = 32_768
"""Maximum size of an output schema, in bytes of JSON."""


@command
class AnswerOptions:
    """How a message is to be answered."""

    effort: str | None = param(
        "Reasoning effort for this message only, as the model names it, such as `low`, `medium` or "
        "`high`. Default: the provider's setting.",
        default=None,
        max_length=32,
        pattern=r"[a-z][a-z0-9_-]*",
    )
    output_schema: Mapping[str, Any] | None = param(
        "A JSON Schema (an object) that the agent's answer must match. The answer is JSON text.",
        default=None,
        max_length=MAX_SCHEMA,
    )


@command
class ModelOptions(AnswerOptions):
    """The model that answers a message, and how."""

    model: str | None = optional_name(
        "The model for this message only. Default: the session's, else the provider's."
    )


@command
class ImageUpload:
    data: str = required(
        "The bytes of the file in base64.", kw_only=False, max_length=MAX_IMAGE_TEXT
    )
    media_type: str | None = param(
        "`image/png`, `image/jpeg`, `image/gif` or `image/webp`. Must match the file's first bytes.",
        default=None,
        max_length=MAX_NAME,
    )


def _uploads(images: Any) -> Any:
    # A daemon refuses a body of that size unread, and so could not name the field.
    if not isinstance(images, (list, tuple)):
        return images
    if problem := size_problem([len(image) for image in images if isinstance(image, bytes)]):
        raise InvalidRequest.of({"images": problem})
    return tuple(
        ImageUpload(b64encode(image).decode()) if isinstance(image, bytes) else image
        for image in images
    )


@command
class ImageOptions:
    images: Sequence[ImageUpload | bytes] = param(
        "Images that the agent sees with the text: PNG, JPEG, GIF or WebP, at most "
        f"{MAX_IMAGE_BYTES:,} bytes together.",
        default=(),
        converter=_uploads,
        max_length=MAX_IMAGES,
        flag="--image",
    )


@command
class BusyOption:
    when_busy: WhenBusy = param(
        "What to do if a run of the session is active: `queue` the message, `steer` the active run with "
        "it (queues if the runner cannot), `interrupt` that run, or `reject` the message.",
        default="queue",
        tool_doc="What to do if that agent is working: `queue` the message for its next turn, `steer` "
        "its current turn, `interrupt` that turn, or `reject` the message with an error.",
    )


@command
class Labels:
    title: str | None = optional_name("A short title.")


@command
class SpawnOptions(Labels, SessionLimits, ModelOptions, Keyed):
    """The task and the settings of a child session."""

    task: str = required(
        "What the child should do.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
        tool_doc="Everything the child needs to know: it does not see your conversation. Say what to "
        "do, where, and what to report.",
    )
    provider: str | None = optional_name(
        "The child's provider. Default: its parent's.",
        tool_doc="The provider whose agent does the task. Default: yours.",
    )
    cwd: str | None = optional_path(
        "The directory that the child works in, an absolute path. Default: its parent's."
    )
    notify_parent: NotifyParent = param(
        "`wake` sends the child's outcome to the parent's agent as its next message; `record` only "
        "records it.",
        default="record",
        tool_doc="`wake`: its outcome starts a new turn of yours after this one, so you need not wait "
        "for it. `record`: its outcome is only recorded.",
    )
    metadata: Mapping[str, Any] | None = param(
        "Any JSON object to keep with the child.", default=None, for_agents=False
    )
    approvals: Approvals | None = param(
        "Who decides the requests of the child's agents: its parent's policy or a stricter one.",
        default=None,
        for_agents=False,
    )


@command
class Text:
    text: str = required(
        "The text for the agent.", kw_only=False, max_length=MAX_TEXT, not_blank=True
    )


@command
class SendOptions(BusyOption, ModelOptions, Keyed, Text, OfSession):
    """A message from one agent to another."""


@command
class QuestionDetails:
    """The details of a question."""

    detail: Mapping[str, Any] | None = param("Facts for the approver: a JSON object.", default=None)
    options: Sequence[str] | None = param(
        "The answers to choose from.",
        default=None,
        max_length=MAX_OPTIONS,
        item_length=MAX_OPTION,
        flag="--option",
    )
    expires_in_s: float = param(
        "Seconds until the question expires. An expired question counts as denied.",
        default=3600.0,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )


@command
class QuestionOptions(QuestionDetails):
    """Options that turn a message to the parent into a question."""

    request_kind: RequestKind | None = param(
        "Turns the message into a question of this kind.",
        default=None,
        tool_doc="Turns the message into a question: approval_request (may I do this?), "
        "permission_request (may I have access?), input_request (which, or what?).",
    )


@command
class AskOptions(QuestionDetails):
    """A question of a runner's agent."""

    text: str = required("The question.", kw_only=False, max_length=MAX_QUESTION, not_blank=True)
    kind: RequestKind = param("Its kind.", default="input_request")


@command
class ResolveOptions:
    """A decision about a request."""

    decision: Decision = required(
        "The decision. `answer` requires a text, and so does `approve` for an `input_request`.",
        kw_only=False,
    )
    scope: Literal["once", "session"] | None = param(
        "What an approval covers: this request (`once`), or similar ones of the session too.",
        default=None,
    )
    text: str | None = param(
        "The answer or the reason, for the agent.", default=None, max_length=MAX_TEXT
    )


@command
class Reasoned:
    reason: str | None = optional_name("The reason, for the log.")


# --- commands -------------------------------------------------------------------------------


@command
class SessionOptions(Labels, ConfinementOptions, SessionLimits, Keyed):
    """The settings of a new session."""

    provider: str | None = optional_name(
        "The provider for its messages. Default: the default route."
    )
    model: str | None = optional_name("The model for its runs. Default: the provider's.")
    cwd: str | None = optional_path(
        "The directory that its agents work in, an absolute path. Default: the daemon's."
    )
    metadata: Mapping[str, Any] | None = param(
        "Any JSON object to keep with the session.", default=None
    )
    approvals: Approvals | None = param(
        "Who decides the requests of its agents. Default: the provider's setting, which also wins if "
        "it is stricter.",
        default=None,
    )


@command
class CreateSession(SessionOptions, AnswerOptions, ImageOptions):
    text: str | None = param(
        "The first message. The session, the message and its run are created together or not at all.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )


@command
class StartSession(SessionOptions, AnswerOptions, ImageOptions, Text):
    """The parameters of the client's method: a new session with its first message."""


@command
class ListSessions(Page):
    status: SessionStatus | None = param("Only sessions with this status.", default=None)
    parent_session_id: str | None = optional_identifier("Only children of this session.")


@command
class GetSession(OfSession):
    pass


@command
class UpdateSession(Labels, ConfinementOptions, Keyed, OfSession):
    status: SessionStatus | None = param("`closed` refuses further messages.", default=None)
    metadata: Mapping[str, Any] | None = param("Replaces the present metadata.", default=None)
    cwd: str | None = optional_path(
        "The directory that its agents work in from the next run on, an absolute path. Fails with "
        "`session_busy` if a run of the session has started and not ended."
    )


@command
class CloseSession(Keyed, OfSession):
    cascade: bool = param(
        "Also close all descendants, and cancel every run of the closed sessions.",
        default=False,
    )


@command
class GetAccess(OfSession):
    pass


@command
class SetAccess(Keyed, OfSession):
    grants: Sequence[Grant] = required(
        "Who else has access: `reader` may read, `writer` may do all but change, close or share it, "
        "`owner` may do all. Replaces earlier grants, here and on all descendants. Later children "
        "inherit it.",
        kw_only=False,
        max_length=100,
    )


@command
class SendMessage(
    BusyOption, ConfinementOptions, ModelOptions, ImageOptions, Keyed, Text, OfSession
):
    role: MessageRole = param("Only a message of `user` starts a run.", default="user")
    provider: str | None = optional_name("The provider for this message only.")


@command
class ListMessages(Page, OfSession):
    pass


@command
class SpawnFromSession(SpawnOptions, OfSession):
    pass


@command
class SpawnFromRun(SpawnOptions, OfRun):
    pass


@command
class SpawnArguments(SpawnOptions):
    """The parameters of the client's method: a child of a run or of a session."""

    run_id: str | None = optional_identifier("The run that spawns the child.")
    session_id: str | None = optional_identifier("The parent session, if no run spawns the child.")


@command
class SendToSession(SendOptions):
    from_run_id: str | None = optional_identifier("The run that sends the message.")


@command
class ReplyParent(QuestionOptions, Keyed, OfRun):
    text: str = required(
        "The message or question. A question has at most 65,536 characters.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    wait: bool = param("Keep the run in `waiting` until the question is resolved.", default=False)


@command
class ListRequests(Page):
    status: RequestStatus | None = param("Only requests with this status.", default=None)
    session_id: str | None = optional_identifier("Only requests of this session.")
    root_session_id: str | None = optional_identifier("Only requests of this tree.")
    resolvable: bool | None = param(
        "`true`: only requests that the caller may resolve. `false`: all that it may read. Default: "
        "`false` if a session or tree is named, else `true`.",
        default=None,
    )


@command
class GetRequest(OfRequest):
    wait_s: float = param(
        "Maximum seconds to wait for its resolution.", default=0.0, minimum=0, maximum=86_400
    )


@command
class ResolveRequest(ResolveOptions, Keyed, OfRequest):
    pass


@command
class ExtendRequest(Keyed, OfRequest):
    expires_in_s: float = required(
        "Seconds from now that it stays open. Never shortens its time.",
        kw_only=False,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )


@command
class GetTree(Page, OfSession):
    limit: int = param(
        "Maximum number of descendants to return.", default=1000, minimum=1, maximum=1000
    )


@command
class ListEvents(Page, OfSession):
    cursor: int = param(  # type: ignore[assignment]  # events are numbered
        "The `seq` of the last event that the reader has.",
        default=0,
        minimum=0,
        maximum=MAX_INTEGER,
    )
    wait_s: float = param(
        "Maximum seconds to wait if there is no event after the cursor.",
        default=0.0,
        minimum=0,
        maximum=3600,
    )
    epoch: str | None = param(
        "The `epoch` that came with the cursor. The call fails with 409 `cursor_ahead` if the log was "
        "restored from a backup since and no longer has what the reader read.",
        default=None,
        max_length=MAX_NAME,
    )


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
class ListRuns(Page):
    session_id: str | None = optional_identifier("Only runs of this session.")
    status: StatusName | None = param("Only runs with this status.", default=None)


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
        "Ids of open requests to ignore, such as those left to a person. Repeat the parameter for "
        "several.",
        default=(),
        max_length=MAX_IGNORED,
    )


@command
class DiagnoseRun(OfRun):
    pass


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


@command
class CreateToken:
    name: str = required(
        "The token's name in lists.", kw_only=False, max_length=MAX_NAME, not_blank=True
    )
    principal: str | None = param(
        "The principal that the token stands for, and that owns its sessions. Default: its name.",
        default=None,
        max_length=64,
        pattern=r"[A-Za-z0-9][A-Za-z0-9._@-]*",
    )
    scopes: Sequence[str] = param(
        "What the token allows: `read`, `write`, `approve`, `admin` (everything).",
        default=("read", "write", "approve"),
        flag="--scope",
    )
    expires_in_s: float | None = param(
        "Seconds until the token expires. Default: never.",
        default=None,
        minimum=1,
        maximum=10 * 366 * 86_400,
    )


@command
class ListTokens(Page):
    pass


@command
class RevokeToken:
    token_id: str = identifier("The token.", kw_only=False)


@command
class ListAudit(Page):
    cursor: str | None = param(
        "`next_cursor` of the previous page.", default=None, max_length=18, pattern=r"[0-9]+"
    )


# --- answers --------------------------------------------------------------------------------


@frozen
class SessionReply:
    session: Session


@frozen
class CreateSessionReply:
    session: Session
    message: Message | None = None
    """The first message, if the command had a text."""
    run: Run | None = None
    """The run of that message."""


@frozen
class CloseSessionReply:
    session: Session
    canceled: tuple[str, ...] = ()
    """Ids of the runs that are canceled; empty without `cascade`."""
    closed_count: int = 0
    """Number of sessions that this call closed."""
    at_work_count: int = 0
    """Number of descendants with a run that has not ended. `cascade` cancels these runs."""


@frozen
class AccessReply:
    grants: tuple[Grant, ...]


@frozen
class SessionPage:
    sessions: tuple[Session, ...]
    next_cursor: str | None


@frozen
class MessageReply:
    message: Message
    run: Run | None


@frozen
class SpawnReply:
    session: Session
    message: Message
    run: Run


@frozen
class ReplyParentReply:
    message: Message | None
    """The message to the parent; None if the session has no parent."""
    parent_session_id: str | None
    request: Request | None


@frozen
class RequestReply:
    request: Request


@frozen
class RequestPage:
    requests: tuple[Request, ...]
    next_cursor: str | None


@frozen
class SessionTree:
    """A session with its newest runs and its children's trees."""

    session: Session
    runs: tuple[Run, ...]
    """At most 20, oldest first: the active run and the newest. Results and errors are cut after 1,000
    characters."""
    children: tuple["SessionTree", ...]
    """The children on this page."""
    runs_count: int | None = None
    """Number of runs of the session. None, also of the next field, from a daemon of an older version."""
    children_count: int | None = None
    """Number of its children that the caller may see."""
    cut: tuple[str, ...] = ()
    """Ids of the runs whose result or error is cut."""
    repeated: bool = False
    """Whether an earlier page has this session, which is repeated for its descendants."""


@frozen
class TreePage(SessionTree):
    """A page of a tree. A session precedes its children; siblings are ordered from oldest to
    newest.
    """

    next_cursor: str | None = None


# Their fields refer to these classes by name; a decoder needs the types.
resolve_types(SessionTree)
resolve_types(TreePage)


@frozen
class MessagePage:
    messages: tuple[Message, ...]
    next_cursor: str | None


@frozen
class EventPage:
    """A page of a session's log.

    :param epoch: the epoch of the log. Send it with ``next_cursor`` to learn whether the log was restored
        from a backup in between.
    """

    events: tuple[Event, ...]
    next_cursor: int
    has_more: bool
    epoch: str | None = None


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
class NewToken:
    token: AccessToken
    secret: str = field(repr=False)
    """The bearer token. No other answer contains it."""


@frozen
class TokenReply:
    token: AccessToken


@frozen
class TokenPage:
    tokens: tuple[AccessToken, ...]
    next_cursor: str | None


@frozen
class AuditPage:
    entries: tuple[AuditEntry, ...]
    next_cursor: str | None


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
    "agent_silent",
    "agent_exited",
    "auth_failed",
    "rate_limited",
    "quota_exhausted",
    "thread_missing",
    "worker_lost",
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
    stderr_tail: str

    @property
    def agent_invocation(self) -> InvocationView | None:
        """How its agent was started, for any runner."""
        return self.invocation or self.codex_invocation


@frozen
class DiagnosisReply:
    run: Run
    diagnostics: Diagnostics


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


# --- the table ------------------------------------------------------------------------------

Req = TypeVar("Req")
Res = TypeVar("Res")


@frozen
class Operation(Generic[Req, Res]):
    """One call.

    :param name: the name of the client's method, and the id in the API description.
    :param path: the route; a part in braces is the field of that name. The command's other fields are
        the query of a GET, and the body of any other method.
    :param status: the HTTP status of success, or a function from the answer to it.
    :param scope: the scope that the caller needs.
    """

    name: str
    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str
    request: type[Req]
    answer: type[Res]
    summary: str
    scope: Scope = "read"
    status: int | Callable[[Any], int] = 200
    statuses: tuple[int, ...] = (200,)
    """Every HTTP status of success, for the API description."""
    takes_long: bool = False
    """Whether the call's time grows with the store: a client should set no time limit."""

    @property
    def is_mutation(self) -> bool:
        return self.method != "GET"

    def status_of(self, answer: Res) -> int:
        """Return the HTTP status for this answer."""
        return self.status(answer) if callable(self.status) else self.status

    @property
    def path_fields(self) -> tuple[str, ...]:
        return tuple(
            part[1:-1] for part in self.path.split("/") if part.startswith("{") and part[-1] == "}"
        )


def _made(operation: Operation[Req, Res]) -> Operation[Req, Res]:
    return evolve(operation, status=201, statuses=(201,))


CREATE_SESSION: Final = _made(
    Operation(
        "create_session",
        "POST",
        "/sessions",
        CreateSession,
        CreateSessionReply,
        "Create a session, with its first message if a text is given.",
        scope="write",
    )
)
LIST_SESSIONS: Final = Operation(
    "list_sessions", "GET", "/sessions", ListSessions, SessionPage, "List sessions, oldest first."
)
GET_SESSION: Final = Operation(
    "get_session", "GET", "/sessions/{session_id}", GetSession, SessionReply, "Read a session."
)
UPDATE_SESSION: Final = Operation(
    "update_session",
    "PATCH",
    "/sessions/{session_id}",
    UpdateSession,
    SessionReply,
    "Rename, move, close, reopen or annotate a session.",
    scope="write",
)
CLOSE_SESSION: Final = Operation(
    "close_session",
    "POST",
    "/sessions/{session_id}/close",
    CloseSession,
    CloseSessionReply,
    "Close a session, or its whole tree with `cascade`. A repeat succeeds.",
    scope="write",
)
GET_ACCESS: Final = Operation(
    "get_access",
    "GET",
    "/sessions/{session_id}/access",
    GetAccess,
    AccessReply,
    "Read the grants of a session. Only for its owners.",
)
SET_ACCESS: Final = Operation(
    "set_access",
    "PUT",
    "/sessions/{session_id}/access",
    SetAccess,
    AccessReply,
    "Set the grants of a session and its descendants. Only for its owners.",
    scope="write",
)
SEND_MESSAGE: Final = _made(
    Operation(
        "send_message",
        "POST",
        "/sessions/{session_id}/messages",
        SendMessage,
        MessageReply,
        "Send a message to a session. One of role `user` starts a run.",
        scope="write",
    )
)
LIST_MESSAGES: Final = Operation(
    "list_messages",
    "GET",
    "/sessions/{session_id}/messages",
    ListMessages,
    MessagePage,
    "List a session's messages, oldest first.",
)
SPAWN_FROM_SESSION: Final = _made(
    Operation(
        "spawn_from_session",
        "POST",
        "/sessions/{session_id}/spawn",
        SpawnFromSession,
        SpawnReply,
        "Create a child of a session and send it its task.",
        scope="write",
    )
)
SPAWN_FROM_RUN: Final = _made(
    Operation(
        "spawn_from_run",
        "POST",
        "/runs/{run_id}/spawn",
        SpawnFromRun,
        SpawnReply,
        "Create a child of a run's session and send it its task.",
        scope="write",
    )
)
SEND_TO_SESSION: Final = _made(
    Operation(
        "send_to_session",
        "POST",
        "/sessions/{session_id}/send",
        SendToSession,
        MessageReply,
        "Send a message from one agent to another.",
        scope="write",
    )
)
GET_TREE: Final = Operation(
    "get_tree",
    "GET",
    "/sessions/{session_id}/tree",
    GetTree,
    TreePage,
    "Show a session with its newest runs and its descendants, in pages.",
)
REPLY_PARENT: Final = _made(
    Operation(
        "reply_parent",
        "POST",
        "/runs/{run_id}/reply-parent",
        ReplyParent,
        ReplyParentReply,
        "Send a message or a question to a run's parent.",
        scope="write",
    )
)
LIST_REQUESTS: Final = Operation(
    "list_requests", "GET", "/requests", ListRequests, RequestPage, "List requests (the inbox)."
)
GET_REQUEST: Final = Operation(
    "get_request", "GET", "/requests/{request_id}", GetRequest, RequestReply, "Read a request."
)
RESOLVE_REQUEST: Final = Operation(
    "resolve_request",
    "POST",
    "/requests/{request_id}/resolve",
    ResolveRequest,
    RequestReply,
    "Approve, deny or answer a request. The first decision counts.",
    scope="approve",
)
EXTEND_REQUEST: Final = Operation(
    "extend_request",
    "POST",
    "/requests/{request_id}/extend",
    ExtendRequest,
    RequestReply,
    "Extend the time of an open request. Only for those who may resolve it.",
    scope="approve",
)
LIST_EVENTS: Final = Operation(
    "list_events",
    "GET",
    "/sessions/{session_id}/events",
    ListEvents,
    EventPage,
    "Read a session's events after a cursor.",
)
CREATE_RUN: Final = _made(
    Operation("create_run", "POST", "/runs", CreateRun, RunReply, "Queue a run.", scope="write")
)
LIST_RUNS: Final = Operation(
    "list_runs", "GET", "/runs", ListRuns, RunPage, "List runs, oldest first."
)
GET_RUN: Final = Operation("get_run", "GET", "/runs/{run_id}", GetRun, RunReply, "Read a run.")
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
    "wait_run", "GET", "/runs/{run_id}/wait", WaitRun, WaitReply, "Wait until a run has ended."
)
DIAGNOSE_RUN: Final = Operation(
    "diagnose_run",
    "GET",
    "/runs/{run_id}/diagnose",
    DiagnoseRun,
    DiagnosisReply,
    "Explain a run's state, with evidence.",
)
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
CREATE_TOKEN: Final = _made(
    Operation(
        "create_token",
        "POST",
        "/tokens",
        CreateToken,
        NewToken,
        "Create a named token. No other answer contains its secret.",
        scope="admin",
    )
)
LIST_TOKENS: Final = Operation(
    "list_tokens",
    "GET",
    "/tokens",
    ListTokens,
    TokenPage,
    "List named tokens, oldest first.",
    scope="admin",
)
REVOKE_TOKEN: Final = Operation(
    "revoke_token",
    "POST",
    "/tokens/{token_id}/revoke",
    RevokeToken,
    TokenReply,
    "Revoke a named token. Streams and waits that it opened end.",
    scope="admin",
)
LIST_AUDIT: Final = Operation(
    "list_audit",
    "GET",
    "/daemon/audit",
    ListAudit,
    AuditPage,
    "Read the audit trail, oldest first.",
    scope="admin",
)

OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    CREATE_SESSION,
    LIST_SESSIONS,
    GET_SESSION,
    UPDATE_SESSION,
    CLOSE_SESSION,
    GET_ACCESS,
    SET_ACCESS,
    SEND_MESSAGE,
    LIST_MESSAGES,
    SPAWN_FROM_SESSION,
    SPAWN_FROM_RUN,
    SEND_TO_SESSION,
    GET_TREE,
    REPLY_PARENT,
    LIST_REQUESTS,
    GET_REQUEST,
    RESOLVE_REQUEST,
    EXTEND_REQUEST,
    LIST_EVENTS,
    CREATE_RUN,
    LIST_RUNS,
    GET_RUN,
    TRANSITION_RUN,
    CANCEL_RUN,
    WAIT_RUN,
    DIAGNOSE_RUN,
    STATUS,
    BACK_UP,
    CHECK_STORE,
    DOCTOR,
    CREATE_TOKEN,
    LIST_TOKENS,
    REVOKE_TOKEN,
    LIST_AUDIT,
)


# --- streams --------------------------------------------------------------------------------


HEAD: Final = "head"
"""The cursor for the present end of the log."""


@frozen
class StreamRequest:
    """Follow the events of some sessions.

    :param session_ids: the sessions; empty means every session that the caller may read.
    :param cursor: start after it; None starts at the first event, :data:`HEAD` after the last one. It is
        a ``seq`` with one session, else an opaque string from an earlier item of the same stream.
    :param epoch: with one session, the epoch in which the cursor or an earlier one was read. An opaque
        cursor contains it.
    """

    session_ids: Sequence[str] = ()
    cursor: str | None = None
    epoch: str | None = None


@frozen
class StreamItem:
    """An event and the cursor that resumes after it."""

    cursor: str
    event: Event


@frozen
class CaughtUp:
    """The reader has every event that was in the log when it subscribed."""

    cursor: str


@frozen
class Draining:
    """The daemon accepts no new work and will stop. Events may still follow."""

    cursor: str


StreamPart: TypeAlias = StreamItem | CaughtUp | Draining
"""One part of a stream. Only a daemon sends :class:`Draining`."""

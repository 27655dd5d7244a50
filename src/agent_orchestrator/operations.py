"""What can be asked: one command and one answer class for each call, and the table of them.

Routes, the API description, the HTTP client and the reference page all come from
:data:`OPERATIONS`. A new call is a command, a row here, an engine function and a contract test.
"""

from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from attrs import evolve, field, frozen, resolve_types

from agent_orchestrator.domain.access import Grant, Scope
from agent_orchestrator.domain.audit import AuditEntry
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
"""Seconds for which a question may be open."""

MAX_IGNORED: Final = 200
"""Requests a wait may be told to pass over: they fit into an address."""

WhenBusy = Literal["queue", "steer", "interrupt", "reject"]
StatusName = Literal["queued", "running", "waiting", "completed", "failed", "canceled"]


# --- fields that several commands have ----------------------------------------------------------
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
        "Names this request: a repeat with the same key gets the first answer again.",
        tool_doc="Names this call: the same call again with the same key does nothing twice.",
    )


@command
class Page:
    limit: int = param("How many to return at most.", default=100, minimum=1, maximum=1000)
    cursor: str | None = param(
        "`next_cursor` of the page before.", default=None, max_length=MAX_NAME
    )


@command
class SessionLimits:
    """How far a session may spawn others."""

    max_depth: int | None = param(
        "Maximum depth of descendants. Cannot exceed the inherited limit.",
        default=None,
        minimum=0,
        maximum=MAX_TREE_DEPTH,
    )
    max_children: int | None = param(
        "Maximum number of active children of one run, here and below. Cannot exceed the inherited "
        "limit.",
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
    """When agents ask, and what they may do without."""

    approval_policy: ApprovalPolicy | None = param(
        "When the agent asks: `untrusted` before all but what is known to be harmless, `on-request` "
        "when it wants to do more than the sandbox lets it, `never`. The session's setting, else the "
        "provider's, without one.",
        default=None,
    )
    sandbox: Sandbox | None = param(
        "What the agent's commands may do without asking; the session's setting, else the provider's, "
        "without one. More than `read-only` takes the scope `approve`.",
        default=None,
    )


MAX_IMAGE_TEXT: Final = -(-MAX_IMAGE_BYTES // 3) * 4
"""Characters of the largest image as base64."""

MAX_SCHEMA: Final = 32_768
"""Bytes of an output schema, as JSON."""


@command
class AnswerOptions:
    """What a message asks of its answer."""

    effort: str | None = param(
        "Reasoning effort for this message only, as the model names it, such as `low`, `medium` or "
        "`high`; the provider's setting without one.",
        default=None,
        max_length=32,
        pattern=r"[a-z][a-z0-9_-]*",
    )
    output_schema: Mapping[str, Any] | None = param(
        "JSON Schema, an object, that the agent's answer must match. The answer is JSON text.",
        default=None,
        max_length=MAX_SCHEMA,
    )


@command
class ModelOptions(AnswerOptions):
    """What a message asks of its agent's model."""

    model: str | None = optional_name(
        "The model for this message only; the session's, else the provider's, without one."
    )


@command
class ImageUpload:
    data: str = required(
        "The bytes of the file, as base64.", kw_only=False, max_length=MAX_IMAGE_TEXT
    )
    media_type: str | None = param(
        "Its type, which must be what its first bytes say: `image/png`, `image/jpeg`, `image/gif` or "
        "`image/webp`.",
        default=None,
        max_length=MAX_NAME,
    )


def _uploads(images: Any) -> Any:
    # What is too large is refused here: a daemon refuses so long a body before it knows what is in it.
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
        "Pictures that the agent sees with the text: PNG, JPEG, GIF or WebP, at most "
        f"{MAX_IMAGE_BYTES:,} bytes together.",
        default=(),
        converter=_uploads,
        max_length=MAX_IMAGES,
        flag="--image",
    )


@command
class BusyOption:
    when_busy: WhenBusy = param(
        "What to do when a run of the session is active: `queue` behind it, `steer` it with the text "
        "where its runner can (else queue), `interrupt` it, or `reject`.",
        default="queue",
        tool_doc="While it is at work: `queue` for its next turn, `steer` its present one, `interrupt` "
        "it, or `reject` with an error.",
    )


@command
class Labels:
    title: str | None = optional_name("A short name for people.")


@command
class SpawnOptions(Labels, SessionLimits, ModelOptions, Keyed):
    """A task for a child, and what the child is to be like."""

    task: str = required(
        "What the child shall do.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
        tool_doc="Everything the child needs to know: it sees none of your conversation. Say what to "
        "do, where, and what to report.",
    )
    provider: str | None = optional_name(
        "The child's provider; its parent's without one.",
        tool_doc="Which agent does it; yours without one.",
    )
    cwd: str | None = optional_path(
        "Where the child works, an absolute path; where its parent does without one."
    )
    notify_parent: NotifyParent = param(
        "`wake` hands the child's outcome to the parent's agent as its next message.",
        default="record",
        tool_doc="`wake`: its outcome starts a new turn of yours when you are done, so that you need "
        "not wait for it. `record`: it is kept for you to look at.",
    )
    metadata: Mapping[str, Any] | None = param(
        "Whatever the child's maker wants to keep.", default=None, for_agents=False
    )
    approvals: Approvals | None = param(
        "Who decides what the child's agents ask for: its parent's policy or a stricter one.",
        default=None,
        for_agents=False,
    )


@command
class Text:
    text: str = required(
        "What to tell the agent.", kw_only=False, max_length=MAX_TEXT, not_blank=True
    )


@command
class SendOptions(BusyOption, ModelOptions, Keyed, Text, OfSession):
    """A message of one agent to another."""


@command
class QuestionOptions:
    """What makes a message to the parent a question."""

    request_kind: RequestKind | None = param(
        "Makes it a question, and of what kind.",
        default=None,
        tool_doc="Makes it a question: approval_request (may I do this?), permission_request (may I "
        "have access?), input_request (which, or what?).",
    )
    detail: Mapping[str, Any] | None = param(
        "What exactly is asked for.",
        default=None,
        tool_doc="Facts about what is asked, for whoever decides.",
    )
    options: Sequence[str] | None = param(
        "The answers to choose from.",
        default=None,
        max_length=MAX_OPTIONS,
        item_length=MAX_OPTION,
        flag="--option",
    )
    expires_in_s: float = param(
        "Seconds until the question expires unanswered, which the run sees as a denial.",
        default=3600.0,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )


@command
class ResolveOptions:
    """A decision about a request."""

    decision: Decision = required(
        "`answer` needs a text, and so does `approve` for an `input_request`.", kw_only=False
    )
    scope: Literal["once", "session"] | None = param(
        "How far an approval goes: this once, or the like in the whole session.", default=None
    )
    text: str | None = param(
        "What to tell the agent: the answer, or the reason.", default=None, max_length=MAX_TEXT
    )


@command
class Reasoned:
    reason: str | None = optional_name("Why, for the log.")


# --- commands -------------------------------------------------------------------------------


@command
class SessionOptions(Labels, ConfinementOptions, SessionLimits, Keyed):
    """What a new session is to be like."""

    provider: str | None = optional_name(
        "The provider its messages go to; the default route without one."
    )
    model: str | None = optional_name("The model its runs ask the provider for.")
    cwd: str | None = optional_path(
        "Where its agents work: an absolute path; the daemon's own directory without one."
    )
    metadata: Mapping[str, Any] | None = param("Whatever its maker wants to keep.", default=None)
    approvals: Approvals | None = param(
        "Who decides what its agents ask for; their provider's setting without one, and where that "
        "is stricter.",
        default=None,
    )


@command
class CreateSession(SessionOptions, AnswerOptions, ImageOptions):
    text: str | None = param(
        "The first message. The session, the message and its run are made together or not at all.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )


@command
class StartSession(SessionOptions, AnswerOptions, ImageOptions, Text):
    """A new session with its first message, as the client's method has it."""


@command
class ListSessions(Page):
    status: SessionStatus | None = param("Only these.", default=None)
    parent_session_id: str | None = optional_identifier("Only children of this session.")


@command
class GetSession(OfSession):
    pass


@command
class UpdateSession(Labels, ConfinementOptions, Keyed, OfSession):
    status: SessionStatus | None = param("`closed` refuses further messages.", default=None)
    metadata: Mapping[str, Any] | None = param("Replaces the old one.", default=None)
    cwd: str | None = optional_path(
        "The directory its agents work in from the next run on: an absolute path. `session_busy` "
        "while a run of it is under way."
    )


@command
class CloseSession(Keyed, OfSession):
    cascade: bool = param(
        "Also close all its descendants, and cancel every run of the sessions it closes.",
        default=False,
    )


@command
class GetAccess(OfSession):
    pass


@command
class SetAccess(Keyed, OfSession):
    grants: Sequence[Grant] = required(
        "Who else may do what: `reader` looks, `writer` also works with it, `owner` does all that its "
        "owner may. Replaces what was granted before, here and on every session below; children to "
        "come have the same.",
        kw_only=False,
        max_length=100,
    )


@command
class SendMessage(
    BusyOption, ConfinementOptions, ModelOptions, ImageOptions, Keyed, Text, OfSession
):
    role: MessageRole = param("Who is speaking; only `user` makes a run.", default="user")
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
    """A child of a run or of a session, as the client's method has it."""

    run_id: str | None = optional_identifier("The run that spawns.")
    session_id: str | None = optional_identifier("The parent, where no run of it spawns.")


@command
class SendToSession(SendOptions):
    from_run_id: str | None = optional_identifier("The run that sends it.")


@command
class ReplyParent(QuestionOptions, Keyed, OfRun):
    text: str = required(
        "What to tell or to ask; a question has at most 65,536 characters.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    wait: bool = param("The run cannot go on without: it is `waiting` until then.", default=False)


@command
class ListRequests(Page):
    status: RequestStatus | None = param("Only these.", default=None)
    session_id: str | None = optional_identifier("Only those of this session's runs.")
    root_session_id: str | None = optional_identifier("Only those of this tree.")
    resolvable: bool | None = param(
        "`true`: only those the caller may resolve; `false`: all it may read. Without it all where a "
        "session or a tree is named, else only those.",
        default=None,
    )


@command
class GetRequest(OfRequest):
    wait_s: float = param(
        "How long to wait for its resolution.", default=0.0, minimum=0, maximum=86_400
    )


@command
class ResolveRequest(ResolveOptions, Keyed, OfRequest):
    pass


@command
class ExtendRequest(Keyed, OfRequest):
    expires_in_s: float = required(
        "Seconds from now that it stays open at least; it never expires sooner than it would.",
        kw_only=False,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )


@command
class GetTree(Page, OfSession):
    limit: int = param("Descendants to return at most.", default=1000, minimum=1, maximum=1000)


@command
class ListEvents(Page, OfSession):
    cursor: int = param(  # type: ignore[assignment]  # a log counts its events
        "The `seq` of the last event the reader has.", default=0, minimum=0, maximum=MAX_INTEGER
    )
    wait_s: float = param(
        "How long to wait for an event when there is none yet.",
        default=0.0,
        minimum=0,
        maximum=3600,
    )
    epoch: str | None = param(
        "The `epoch` that came with the cursor. With it, a cursor of a log that has been restored "
        "from a backup since is 409 `cursor_ahead`.",
        default=None,
        max_length=MAX_NAME,
    )


@command
class CreateRun(ModelOptions, ImageOptions, Keyed, OfSession):
    text: str | None = param(
        "What to tell the agent; a manual run may have none.",
        default=None,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    provider: str | None = optional_name(
        "The provider; `manual` leaves the run to whoever holds it."
    )


@command
class ListRuns(Page):
    session_id: str | None = optional_identifier("Only runs of this session.")
    status: StatusName | None = param("Only runs in this state.", default=None)


@command
class GetRun(OfRun):
    pass


@command
class TransitionRun(Reasoned, Keyed, OfRun):
    to_status: StatusName = required("The state to go to; `canceled` is a cancel.", kw_only=False)
    result: Mapping[str, Any] | None = param(
        "With `completed`: `{text}`.", default=None, max_length=4 * MAX_TEXT
    )
    error: Mapping[str, Any] | None = param(
        "With `failed`: `{code, message}`.", default=None, max_length=4 * MAX_TEXT
    )


@command
class CancelRun(Reasoned, Keyed, OfRun):
    cascade: bool = param("Cancel its descendants too.", default=True)


@command
class WaitRun(OfRun):
    timeout_s: float = param("How long to wait.", default=30.0, minimum=0, maximum=86_400)
    interval_ms: int | None = param(
        "Accepted; the answer is pushed, never polled for.",
        default=None,
        minimum=1,
        maximum=3_600_000,
    )
    until: Literal["terminal", "attention"] = param(
        "The run's end, or also an open question of the run or one of its descendants.",
        default="terminal",
    )
    ignore: Collection[str] = param(
        "Requests not to return for, though they are open: those that are left to somebody else. "
        "Repeat the parameter for several.",
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
        "Where to, on the daemon's machine: an absolute path.",
        kw_only=False,
        max_length=MAX_PATH,
        not_blank=True,
        pattern=PATH_PATTERN,
    )
    force: bool = param("Replace an older copy that is there, and nothing else.", default=False)


@command
class CheckStore:
    pass


@command
class CreateToken:
    name: str = required(
        "What it is called in the list.", kw_only=False, max_length=MAX_NAME, not_blank=True
    )
    principal: str | None = param(
        "Whom it stands for; its name without one. Sessions belong to principals.",
        default=None,
        max_length=64,
        pattern=r"[A-Za-z0-9][A-Za-z0-9._@-]*",
    )
    scopes: Sequence[str] = param(
        "What it is good for: `read`, `write`, `approve`, `admin` (everything).",
        default=("read", "write", "approve"),
        flag="--scope",
    )
    expires_in_s: float | None = param(
        "When it ends by itself; never without.", default=None, minimum=1, maximum=10 * 366 * 86_400
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
        "`next_cursor` of the page before.", default=None, max_length=18, pattern=r"[0-9]+"
    )


# --- answers --------------------------------------------------------------------------------


@frozen
class SessionReply:
    session: Session


@frozen
class CreateSessionReply:
    session: Session
    message: Message | None = None
    """The first message, if one was given."""
    run: Run | None = None
    """The run that delivers it."""


@frozen
class CloseSessionReply:
    session: Session
    canceled: tuple[str, ...] = ()
    """The runs the close asked to end; without `cascade` none."""
    closed_count: int = 0
    """Sessions it closed that were open, this one among them."""
    at_work_count: int = 0
    """Sessions below it with a run that has not ended. With `cascade` their agents are being stopped."""


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
    """What the parent was told; None where there is no parent."""
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
    """A session, its newest runs and its children's trees."""

    session: Session
    runs: tuple[Run, ...]
    """At most 20: the active one and the newest, oldest first. Texts of results and errors have at
    most 1,000 characters."""
    children: tuple["SessionTree", ...]
    """Those of this page."""
    runs_count: int | None = None
    """Runs the session has in all; None, here and below, from a daemon that does not count."""
    children_count: int | None = None
    """Children it has in all, of those the caller may see."""
    cut: tuple[str, ...] = ()
    """Ids of the runs whose result or error is shortened here."""
    repeated: bool = False
    """Whether a page before had it, and it is here for what is below it."""


@frozen
class TreePage(SessionTree):
    """A page of a tree: each session before its children, siblings oldest first."""

    next_cursor: str | None = None


# They hold themselves, which a decoder must be able to follow.
resolve_types(SessionTree)
resolve_types(TreePage)


@frozen
class MessagePage:
    messages: tuple[Message, ...]
    next_cursor: str | None


@frozen
class EventPage:
    """A page of a session's log.

    :param epoch: in which it was read. Give it back with ``next_cursor`` to be told when the log was
        restored from a backup meanwhile.
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
    """The runs the cancel reached; empty when the run had ended before."""


@frozen
class WaitReply:
    run: Run
    timed_out: bool
    request: Request | None = None


@frozen
class NewToken:
    token: AccessToken
    secret: str = field(repr=False)
    """What to present as the bearer token: shown this once."""


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
    """The most likely reason a run is as it is."""

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
    """The machine that its agent works on."""


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
    """What is known of a run, from evidence."""

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
    codex_invocation: InvocationView | None
    invocation: InvocationView | None
    stderr_tail: str


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
    """In which way its agents are run, where its runner has several: `codex-app-server` or `codex-exec`."""


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
    """The same counts by provider, where there are any."""
    process_start_id: str | None = None
    """When the process started: the machine's boot and the clock tick after it. No other process has
    this and the pid."""


@frozen
class BackupReply:
    path: str
    size: int
    """In bytes."""


@frozen
class CheckReply:
    """What is wrong with the store, if anything, and how much was looked at."""

    ok: bool
    findings: tuple[str, ...]
    sessions: int
    runs: int
    events: int


@frozen
class Finding:
    """Something an administrator should know.

    :param level: an ``error`` keeps something from working or lets others in; a ``warning`` may come
        to that; a ``note`` is to be decided; ``ok`` is as it should be.
    :param about: what it is about.
    :param hint: what to do.
    :param security: whether it is about who may do what.
    """

    level: Literal["ok", "note", "warning", "error"]
    about: str
    message: str
    hint: str | None = None
    security: bool = False


@frozen
class DoctorReport:
    """What an administrator should know, and whether nothing of it is an error."""

    ok: bool
    findings: tuple[Finding, ...]


# --- the table ------------------------------------------------------------------------------

Req = TypeVar("Req")
Res = TypeVar("Res")


@frozen
class Operation(Generic[Req, Res]):
    """One call.

    :param name: its name everywhere: the client's method, the id in the API description.
    :param path: the route; a part in braces is the field of that name. Of the command's other
        fields, those of a GET are the query and those of any other method the body.
    :param status: the HTTP status of success, or a function of the answer.
    :param scope: what a caller must be allowed to.
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
    """All the statuses success may have, for the API description."""
    takes_long: bool = False
    """As long as the store is large: a client should wait for the answer."""

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
        "Make a session; with a text, put its first message into it too.",
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
    "Close a session; with `cascade`, its whole tree. A repeat succeeds.",
    scope="write",
)
GET_ACCESS: Final = Operation(
    "get_access",
    "GET",
    "/sessions/{session_id}/access",
    GetAccess,
    AccessReply,
    "Read who else than its owner may do what with a session. Its owners may.",
)
SET_ACCESS: Final = Operation(
    "set_access",
    "PUT",
    "/sessions/{session_id}/access",
    SetAccess,
    AccessReply,
    "Set who else than its owner may do what with a session and all below it. Its owners may.",
    scope="write",
)
SEND_MESSAGE: Final = _made(
    Operation(
        "send_message",
        "POST",
        "/sessions/{session_id}/messages",
        SendMessage,
        MessageReply,
        "Put a message into a session; one of role `user` becomes a run.",
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
        "Make a child of a session and give it a task.",
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
        "Make a child of a run and give it a task.",
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
        "Tell or ask a run's parent, whichever that is.",
        scope="write",
    )
)
LIST_REQUESTS: Final = Operation(
    "list_requests", "GET", "/requests", ListRequests, RequestPage, "List requests: the inbox."
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
    "Approve, deny or answer a request; the first answer counts.",
    scope="approve",
)
EXTEND_REQUEST: Final = Operation(
    "extend_request",
    "POST",
    "/requests/{request_id}/extend",
    ExtendRequest,
    RequestReply,
    "Give an open request more time. Whoever may resolve it may.",
    scope="approve",
)
LIST_EVENTS: Final = Operation(
    "list_events",
    "GET",
    "/sessions/{session_id}/events",
    ListEvents,
    EventPage,
    "Read a session's log after a cursor.",
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
    "Drive a manual run, or cancel any.",
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
    "Tell why a run is as it is.",
)
STATUS: Final = Operation(
    "status",
    "GET",
    "/daemon/status",
    GetStatus,
    DaemonStatus,
    "Tell how the daemon, its workers, providers and store are.",
)

BACK_UP: Final = Operation(
    "back_up",
    "POST",
    "/daemon/backup",
    BackUp,
    BackupReply,
    "Copy the store into a file on the daemon's machine, while it is in use.",
    scope="admin",
    takes_long=True,
)
CHECK_STORE: Final = Operation(
    "check_store",
    "GET",
    "/daemon/check",
    CheckStore,
    CheckReply,
    "Check that the store is sound, and that its log says what its rows say.",
    scope="admin",
    takes_long=True,
)
DOCTOR: Final = Operation(
    "doctor",
    "GET",
    "/daemon/doctor",
    Doctor,
    DoctorReport,
    "Tell what is wrong or dangerous about the daemon, its providers, store and settings.",
    scope="admin",
)
CREATE_TOKEN: Final = _made(
    Operation(
        "create_token",
        "POST",
        "/tokens",
        CreateToken,
        NewToken,
        "Make a named token. Its secret is in this answer and nowhere else.",
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
    "End a named token, and every stream and wait that was opened with it.",
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
"""The cursor that stands for the end of the log as it is now."""


@frozen
class StreamRequest:
    """Follow the log of some sessions.

    :param session_ids: which; none means every session the caller may read.
    :param cursor: resume after it; None starts at the first event, :data:`HEAD` after the last there
        is. With one session it is a ``seq``, over many an opaque string that an earlier item of the
        same stream carried.
    :param epoch: with one session, the epoch in which the cursor or an earlier one was read. An opaque
        cursor names its own.
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
    """All that was in the log when the reader came has been handed over."""

    cursor: str


@frozen
class Draining:
    """The daemon takes no new work and is about to stop; what still happens follows."""

    cursor: str


StreamPart: TypeAlias = StreamItem | CaughtUp | Draining
"""What a stream hands over. Only a daemon's tells of draining."""

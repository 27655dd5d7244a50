"""Calls about sessions and their trees."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from attrs import frozen, resolve_types

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Approvals,
    Message,
    Run,
    Sandbox,
    Session,
    SessionStatus,
)
from agent_orchestrator.fields import (
    MAX_TEXT,
    command,
    optional_host,
    optional_identifier,
    optional_name,
    optional_path,
    param,
    required,
)
from agent_orchestrator.operations.options import (
    AnswerOptions,
    ConfinementOptions,
    ImageOptions,
    Keyed,
    Labels,
    NoticeOptions,
    OfSession,
    Ordered,
    Page,
    Placement,
    RetentionOptions,
    SessionLimits,
    Text,
)
from agent_orchestrator.operations.table import Operation, _made

ChangeKind = Literal["add", "update", "delete"]

SessionState = Literal["needs-you", "working", "queued", "failed", "done", "idle"]
"""What a session needs from a caller, the first that holds. ``needs-you``: a decision. ``working``: nothing, a run
is active. ``queued``: a worker. ``failed`` and ``done``: a look at how the last run ended, because the caller
has not seen all. ``idle``: nothing."""


@command
class SessionOptions(
    Labels, Placement, ConfinementOptions, NoticeOptions, RetentionOptions, SessionLimits, Keyed
):
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
class WithActivity:
    activity: bool = param(
        "Also return the `activity`: the run, the open requests and what the caller has seen.",
        default=False,
    )


@command
class ListSessions(WithActivity, Ordered):
    status: SessionStatus | None = param("Only sessions with this status.", default=None)
    provider: str | None = optional_name(
        "Only sessions with this provider. Sessions without one use the default. Searched like `q`."
    )
    parent_session_id: str | None = optional_identifier("Only children of this session.")
    state: SessionState | None = param(
        "Only sessions in this state: `needs-you` (the caller can decide a request), `working`, `queued`, "
        "`failed` or `done` (the last run has ended, and the caller has not seen all), `idle`. Each session is "
        "in one of them. Searched like `q`.",
        default=None,
        for_agents=False,
    )


@command
class GetSession(WithActivity, OfSession):
    pass


@command
class GetDiff(OfSession):
    pass


@command
class MarkSeen(OfSession):
    seq: int = required(
        "The last event that the caller has seen. An earlier one than before changes nothing.",
        kw_only=False,
        minimum=0,
        maximum=2**63 - 1,
    )


@command
class UpdateSession(Labels, ConfinementOptions, NoticeOptions, RetentionOptions, Keyed, OfSession):
    status: SessionStatus | None = param("`closed` refuses further messages.", default=None)
    metadata: Mapping[str, Any] | None = param("Replaces the current metadata.", default=None)
    cwd: str | None = optional_path(
        "The directory that its agents work in from the next run on, an absolute path. Fails with "
        "`session_busy` if a run of the session has started and not ended."
    )
    host: str | None = optional_host(
        "The host that its agents work on from the next run on. Another one needs a `cwd`, a directory there, "
        "which is checked when that run starts. The log and queued runs go along. The agents' conversations "
        "stay behind: the next run begins a new one. Fails with `session_busy` as `cwd` does."
    )
    model: str | None = optional_name(
        "The model for its runs, from the next message on. Queued runs keep theirs."
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
class GetTree(Page, OfSession):
    limit: int = param(
        "Maximum number of descendants to return.", default=1000, minimum=1, maximum=1000
    )


@frozen
class RunState:
    """A run in a list of sessions."""

    id: str
    status: RunStatus
    provider: str
    model: str | None
    host: str | None
    """Id of the machine on which its agent works or last worked; None before its start."""
    waiting_on: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    """Why it failed."""
    cost_usd: float | None
    """What it has cost, if its provider reports it."""
    sandbox: Sandbox | None = None
    """What its agent's commands may do without approval; None means the provider's setting."""


@frozen
class SessionActivity:
    """What a list of sessions shows of each, besides the session."""

    run: RunState | None
    """The active run, else the newest one."""
    open_request_count: int
    """Number of open requests of its runs."""
    seen_seq: int
    """The last event that the caller's token has marked as seen, 0 if none. A session whose `last_seq` is
    greater has something new."""
    state: SessionState = "idle"
    """What the session needs from the caller."""


@frozen
class SessionReply:
    session: Session
    activity: SessionActivity | None = None
    """None unless it was asked for."""


@frozen
class FileChange:
    """The change of one file."""

    path: str
    kind: ChangeKind
    diff: str | None
    """A unified diff without its head for an update, else the text of the file. None if it is unknown, not
    text, or too long."""


@frozen
class SessionDiff:
    """What was changed in a session's directory since the session began."""

    session_id: str
    cwd: str
    source: Literal["git", "events"]
    """`git`: the files that were written since then and differ from the commit of that time. `events`: what
    the agents have reported, in their order, if the directory is in no checkout that can be compared."""
    base: str | None
    """That commit; None if there was none yet, or with `events`."""
    changes: tuple[FileChange, ...]
    """At most 1,000 files, with 4 MiB of diffs."""
    is_truncated: bool
    """Whether something was left out."""


@frozen
class SeenReply:
    seq: int
    """The last event that the caller has seen."""


@frozen
class CreateSessionReply:
    session: Session
    message: Message | None = None
    """The first message, if the command had ``text``."""
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
    activity: tuple[SessionActivity, ...] | None = None
    """One for each session, in their order. None unless it was asked for."""


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


CREATE_SESSION: Final = _made(
    Operation(
        "create_session",
        "POST",
        "/sessions",
        CreateSession,
        CreateSessionReply,
        "Create a session. With `text`, also send its first message.",
        scope="write",
    )
)
LIST_SESSIONS: Final = Operation(
    "list_sessions",
    "GET",
    "/sessions",
    ListSessions,
    SessionPage,
    "List sessions.",
    shared=True,
)
GET_SESSION: Final = Operation(
    "get_session",
    "GET",
    "/sessions/{session_id}",
    GetSession,
    SessionReply,
    "Read a session.",
    shared=True,
)
GET_DIFF: Final = Operation(
    "get_diff",
    "GET",
    "/sessions/{session_id}/diff",
    GetDiff,
    SessionDiff,
    "Show what was changed in a session's directory since the session began.",
    takes_long=True,
)
MARK_SEEN: Final = Operation(
    "mark_seen",
    "POST",
    "/sessions/{session_id}/seen",
    MarkSeen,
    SeenReply,
    "Mark the events of a session as seen. Each token has its own mark.",
    shared=True,
)
UPDATE_SESSION: Final = Operation(
    "update_session",
    "PATCH",
    "/sessions/{session_id}",
    UpdateSession,
    SessionReply,
    "Rename, move, close, reopen or annotate a session, or give it another model.",
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


GET_TREE: Final = Operation(
    "get_tree",
    "GET",
    "/sessions/{session_id}/tree",
    GetTree,
    TreePage,
    "Show a session with its newest runs and its descendants, in pages.",
    shared=True,
)

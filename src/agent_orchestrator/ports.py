"""Protocols between the packages: stores, runners, observers and transports.

:mod:`agent_orchestrator.testing` has a contract suite for the authors of each.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from attrs import frozen

from agent_orchestrator.domain.access import EVERYTHING, Grant, GrantRole, Principal, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.capabilities import Capabilities
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Event,
    Invocation,
    Message,
    Request,
    Run,
    RunError,
    Session,
    Thread,
    Usage,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import takes
from agent_orchestrator.operations import (
    AskOptions,
    Finding,
    Issue,
    MessageReply,
    Operation,
    Problem,
    SendOptions,
    SpawnOptions,
    SpawnReply,
    StreamItem,
    StreamPart,
    StreamRequest,
    WaitReply,
)

T = TypeVar("T")
Req = TypeVar("Req")
Res = TypeVar("Res")


class Clock(Protocol):
    """The time of day. Tests pass a clock that they set."""

    def __call__(self) -> datetime:
        """Return now, aware and in UTC."""
        ...


# --- store ----------------------------------------------------------------------------------

_DELETED_RECORDS: Final = 64
_SIZE_PER_RECORD: Final = 16 * 2**10


def max_deleted_records(size: int) -> int:
    """Return the maximum number of records that :meth:`Transaction.add_record` deletes.

    It is 64, plus one for each 16 KiB of the new answer. One long answer can be as large as 100,000
    short ones, and deleting all of these at once would delay every other change.

    :param size: bytes of the new answer in UTF-8.
    """
    return _DELETED_RECORDS + size // _SIZE_PER_RECORD


@frozen
class Draft:
    """An event before the store numbers it."""

    event_type: str
    data: Mapping[str, Any]
    run_id: str | None = None
    attempt: int | None = None
    text: str | None = None
    """``data`` as JSON, if it is already encoded. The store then ignores ``data``, which may have been
    changed since."""


@frozen
class IdempotencyRecord:
    """The first answer to a request with an idempotency key.

    :param caller: the principal's id.
    :param call: the operation and the ids in its path. A key is unique per caller and call.
    :param fingerprint: a hash of the request's content.
    :param answer: the answer, as JSON text.
    """

    caller: str
    call: str
    key: str
    fingerprint: str
    answer: str
    created_at: datetime


class View(Protocol):
    """A consistent snapshot of the store. Its methods do not wait. Lists are oldest first.

    ``after`` is the identifier of the last item of the previous page. ``within`` limits a list to what a
    caller may see. ``size`` is a number of characters: a list ends with the item whose texts reach it,
    because a single item may have 64 million.
    """

    def session(self, session_id: str) -> Session | None: ...

    def sessions(
        self,
        *,
        within: Visibility = EVERYTHING,
        status: str | None = None,
        parent_session_id: str | None = None,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Session]: ...

    def message(self, message_id: str) -> Message | None: ...

    def messages(
        self, session_id: str, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[Message]: ...

    def image(self, digest: str) -> bytes | None:
        """Return the bytes of an image; None if no message needs it any more."""
        ...

    def image_space(self) -> int:
        """Return the total bytes of all stored images."""
        ...

    def run_messages(self, run_id: str) -> list[Message]:
        """Return the messages that a run delivers, in their order."""
        ...

    def child_message_count(self, run_id: str, *, limit: int) -> int:
        """Return the number of messages from a child's run to its parent, at most ``limit``."""
        ...

    def waiting_messages(
        self, session_id: str, *, limit: int, size: int | None = None
    ) -> list[Message]:
        """Return the messages for the session's agent that have no run yet."""
        ...

    def run(self, run_id: str) -> Run | None: ...

    def runs(
        self,
        *,
        within: Visibility = EVERYTHING,
        session_id: str | None = None,
        status: RunStatus | None = None,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Run]: ...

    def latest_runs(
        self, session_id: str, *, limit: int, cut: int, size: int
    ) -> tuple[list[Run], int]:
        """Return the newest runs of a session, oldest first, and the total bytes of their texts.

        :param cut: characters to return of each result and error message.
        :param size: bytes of stored texts after which no older run is read.
        """
        ...

    def run_count(self, session_id: str) -> int: ...

    def child_count(self, session_id: str, within: Visibility = EVERYTHING) -> int: ...

    def active_run(self, session_id: str) -> Run | None:
        """Return the session's run that is running or waiting."""
        ...

    def request(self, request_id: str) -> Request | None: ...

    def requests(
        self,
        *,
        within: Visibility = EVERYTHING,
        status: str | None = None,
        session_id: str | None = None,
        root_session_id: str | None = None,
        run_id: str | None = None,
        resolvable: bool = False,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Request]:
        """Return requests, the oldest first.

        :param resolvable: only requests that the caller of ``within`` may resolve. A principal may
            resolve those of sessions that it owns, or has the grant ``writer`` or ``owner`` on. A run may
            resolve those of its session's descendants, except those for people only.
        """
        ...

    def last_resolved(
        self, run_id: str, attempt: int, *, statuses: Collection[str], excluding: Collection[str]
    ) -> Request | None:
        """Return an attempt's most recently resolved request with one of the statuses.

        :param excluding: ids of requests to leave out.
        """
        ...

    def expired_requests(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests that expired by ``now``, in order of ``expires_at``."""
        ...

    def requests_to_escalate(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests that go from the parent to people by ``now``, in order of ``human_at``."""
        ...

    def requests_to_warn(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests with a warning due by ``now`` and not ``warned``, in order of ``warn_at``."""
        ...

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        """Return the pending requests that ask this session's agent."""
        ...

    def next_due(self) -> datetime | None:
        """Return the earliest time at which a pending request expires, warns or goes to people."""
        ...

    def child_runs(self, run_id: str) -> list[Run]:
        """Return the runs with this ``parent_run_id``, ended ones included."""
        ...

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        """Return the number of child sessions, spawned by this run or by none, with an unended run."""
        ...

    def live_descendants(self, session_id: str) -> int:
        """Return the number of descendants of a session with an unended run."""
        ...

    def next_runs(self, limit: int) -> list[Run]:
        """Return the queued runs that a worker may start, oldest first.

        A worker may start a run that is not manual and is the first of its session's queue, if the
        session has no active run.
        """
        ...

    def queue_is_full(self, limit: int) -> bool:
        """Return True if at least ``limit`` runs that are not manual are queued."""
        ...

    def queue_position(self, run: Run) -> int | None:
        """Return 1 for the run that a free worker would start next; None if the run is not queued.

        Older runs that a worker may start, and earlier runs of the same session, come before a run.
        """
        ...

    def queued_before(self, run: Run) -> Run | None:
        """Return the run of the same session, queued or active, that this queued run waits for."""
        ...

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        """Return the number of runs by provider and unended state, without zeros."""
        ...

    def lost_runs(self, instance: str) -> list[Run]:
        """Return the active runs whose worker no longer exists, except manual and parked runs.

        A store that only one process can open returns every active run whose worker is not of
        ``instance``. A shared store checks its engines' leases.
        """
        ...

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        """Return the events with a ``seq`` greater than ``after``."""
        ...

    def last_event_at(self, run: Run) -> datetime | None:
        """Return the time of a run's last event. The cost does not depend on the number of events."""
        ...

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        """Return the time of the last event of ``OUTPUT_EVENTS`` of a run, or of one of its attempts."""
        ...

    def feed(
        self,
        *,
        after: str | None,
        until: str | None = None,
        sessions: Sequence[str] = (),
        within: Visibility = EVERYTHING,
        limit: int,
        size: int | None = None,
    ) -> list[StreamItem]:
        """Return the events of several sessions in commit order, after an opaque cursor.

        A cursor contains the epoch in which it was read (see :meth:`epoch`).

        :param until: the cursor of the last event to return; None means the head.
        :param sessions: their ids; empty means all ``within``.
        :raises InvalidRequest: if the cursor is not one of this store.
        :raises CursorAhead: if the cursor is beyond the last event, or beyond the part of the log that is
            unchanged since the cursor's epoch.
        """
        ...

    def feed_head(self) -> str:
        """Return the cursor after the last event of all sessions."""
        ...

    def epoch(self) -> str | None:
        """Return the log's epoch: an opaque text, new each time the store is opened. None if unknown.

        A restored backup gives the same numbers to other events. The epoch of a cursor shows that it was
        read before.
        """
        ...

    def last_common_seq(self, session_id: str, epoch: str) -> int:
        """Return the ``seq`` up to which a session's log is unchanged since an epoch.

        It is the last ``seq`` unless a backup was restored since, and 0 if the epoch is unknown.
        """
        ...

    def event_count(self) -> int: ...

    def newest_ids(self) -> Sequence[str]:
        """Return the greatest identifier of each kind: session, message, run, request."""
        ...

    def attempts(self, run_id: str) -> list[Attempt]: ...

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        """Return the attempt with the token, ended or not."""
        ...

    def thread(self, session_id: str, provider: str) -> Thread | None: ...

    def grants(self, session_id: str) -> list[Grant]:
        """Return the grants of a session, in order of the principals' names."""
        ...

    def role(self, session_id: str, principal: str) -> GrantRole | None:
        """Return the role that a session grants to a principal."""
        ...

    def token(self, token_id: str) -> AccessToken | None: ...

    def token_of_hash(self, token_hash: str) -> AccessToken | None: ...

    def tokens(
        self, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[AccessToken]: ...

    def audit(self, *, after: int, limit: int, size: int | None = None) -> list[AuditEntry]:
        """Return the audit entries with a ``seq`` greater than ``after``."""
        ...

    def last_audit(self) -> AuditEntry | None: ...

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None: ...

    def oldest_record_at(self) -> datetime | None:
        """Return ``created_at`` of the idempotency record that was added first."""
        ...

    def ended_callers(self, *, limit: int) -> list[str]:
        """Return the ids of ended runs that have idempotency records, in order.

        The cost grows with the number of such callers, not with the number of records.
        """
        ...


class Transaction(View, Protocol):
    """A view that can also write. It sees its own writes. All of them are committed, or none."""

    def add_session(self, session: Session) -> None: ...

    def put_session(self, session: Session) -> None:
        """Replace a session's fields, except ``last_seq`` and ``threads``."""
        ...

    def add_message(self, message: Message) -> None: ...

    def put_message(self, message: Message) -> None: ...

    def add_image(self, message_id: str, digest: str, data: bytes) -> None:
        """Store an image of a message. Bytes with the same digest are stored once for all messages.

        :param digest: SHA-256 of the bytes, in hexadecimal.
        """
        ...

    def remove_images(self, message_id: str) -> None:
        """Delete a message's images. Bytes that another message needs stay."""
        ...

    def add_run(self, run: Run) -> None:
        """Add a run, and notify ``run:<id>``."""
        ...

    def put_run(self, run: Run) -> None:
        """Replace a run, and notify ``run:<id>``."""
        ...

    def add_request(self, request: Request) -> None:
        """Add a request, and notify ``request:<id>`` and ``requests``."""
        ...

    def put_request(self, request: Request) -> None:
        """Replace a request, and notify ``request:<id>`` and ``requests``."""
        ...

    def append(self, session_id: str, drafts: Sequence[Draft], at: datetime) -> int:
        """Append events with the session's next ``seq``s, set its ``updated_at``, and notify
        ``session:<id>`` and ``events``.

        :return: the last ``seq``.
        """
        ...

    def put_attempt(self, attempt: Attempt) -> None:
        """Add an attempt, or replace the one of the same run and number, except its ``token_hash``.

        :raises Conflict: if another attempt has the same token.
        """
        ...

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None: ...

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        """Replace the grants of a session and its descendants. Notify ``access:<principal>`` for every
        principal of an old or a new grant.
        """
        ...

    def add_token(self, token: AccessToken, token_hash: str) -> None: ...

    def put_token(self, token: AccessToken) -> None:
        """Replace a token, and notify ``token:<id>``."""
        ...

    def add_audit(self, entry: AuditEntry) -> None:
        """Add an entry to the audit trail. Entries cannot be changed or removed."""
        ...

    def remove_token(self, token_id: str) -> None:
        """Delete a token, if it exists."""
        ...

    def add_record(self, record: IdempotencyRecord, *, max_count: int, max_size: int) -> None:
        """Add a record, and delete the caller's oldest records beyond the bounds.

        At most :func:`max_deleted_records` are deleted at once. The caller's next records delete the
        rest; until then its answers may exceed ``max_size``.

        :param max_count: maximum number of records of a caller.
        :param max_size: bytes of answers in UTF-8. A record is deleted once newer ones have this many.
        :raises Conflict: if there is a record of the same caller, call and key.
        """
        ...

    def delete_records(self, *, before: datetime, limit: int) -> int:
        """Delete those of the first ``limit`` records that were created before a time.

        :return: the number of deleted records; 0 if there are no more.
        """
        ...

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        """Delete the oldest records of a caller.

        :return: the number of deleted records; less than ``limit`` if none is left.
        """
        ...

    def notify(self, topic: str) -> None:
        """Notify every process's subscribers of the topic after the commit."""
        ...

    def suppress(self, topic: str) -> bool:
        """Withdraw this change's notification of the topic. Return True if there was one."""
        ...


class Transactions(Protocol):
    """Reads and changes of a store.

    A change is a function of a :class:`Transaction`. Changes are serializable, and may run on another
    thread. A change must not wait, must affect only the transaction, and may be called again if the
    store retries. If it raises, its writes are rolled back and the caller gets the exception.
    """

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        """Run a change and return its value once it is durable.

        :param reserve: whether the change may use the space reserved for a full disk. Only for a change
            that records an outcome and starts nothing new.
        :raises Unavailable: if it could not be made durable.
        """
        ...

    async def read(self, query: Callable[[View], T]) -> T:
        """Run a function of a consistent view. It should read at most 500 rows."""
        ...


class CommitNotifications(Protocol):
    """Notifications of commits, for tasks that wait for a change."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        """Call ``listener`` with the topics of each commit, also of other processes.

        It is called in the event loop's thread, after the commit and before :meth:`Transactions.transact`
        returns. It must not wait or raise. Notifications carry no data: a subscriber reads the store.
        """
        ...


class StoreStatus(Protocol):
    """The store's part of the daemon's status."""

    @property
    def backend(self) -> str:
        """The kind of store, such as ``sqlite``."""
        ...

    @property
    def location(self) -> str | None:
        """The path or URL, without secrets."""
        ...

    @property
    def schema_version(self) -> int: ...

    async def problems(self) -> Sequence[Problem]:
        """Return the present problems of the store."""
        ...


class Store(Transactions, CommitNotifications, StoreStatus, Protocol):
    """The storage of an engine. It is an async context manager; many tasks may call it at once."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class Maintaining(Protocol):
    """A store that supports backup and check. Optional."""

    async def back_up(self, path: Path, *, replace: bool) -> int:
        """Write a consistent, durable copy to an absolute path and return its size in bytes.

        :raises Conflict: if the file exists and may not be replaced.
        :raises InvalidRequest: if the path cannot be written.
        """
        ...

    async def check(self) -> Sequence[str]:
        """Check the integrity of the whole store and return the problems found."""
        ...


TAG_VARIABLE: Final = "AGENT_ORCHESTRATOR_TAG"
"""The variable in :attr:`RunContext.env` whose value identifies this attempt's processes. A runner finds
processes by it that have left its process group."""

RUN_VARIABLES: Final = frozenset(
    {"AGENTCTL_RUN_ID", "AGENTCTL_SESSION_ID", "AGENTCTL_AUTH_TOKEN", TAG_VARIABLE}
)
"""The variables in :attr:`RunContext.env` that belong to one run. A process that serves several runs
must not have them."""

CWD_MISSING: Final = "the working directory does not exist"
"""An ``invalid_config`` error whose message begins with this is diagnosed as ``cwd_missing``."""

# --- runner ---------------------------------------------------------------------------------


@frozen
class Outcome:
    """The outcome of a completed run.

    :param text: the result. The run fails if it has more than 240 MiB as JSON, which no client could read.
    :param exit_code: of the agent's process, if it has one; negative for a signal. At most 32 bits.
    """

    text: str
    exit_code: int | None = None


@frozen
class Availability:
    """Whether a runner can start an agent now.

    :param reason: why it cannot.
    :param version: of the agent.
    :param mode: how it runs agents, if it has several ways.
    :param logged_in: whether the agent has a login; None if only the agent knows.
    :param capabilities: those of the installed agent; None for those that the runner declares.
    """

    available: bool
    reason: str | None = None
    version: str | None = None
    mode: str | None = None
    logged_in: bool | None = None
    capabilities: Capabilities | None = None


@frozen
class ProtectedPaths:
    """Files and directories that agents may not access: absolute paths without symbolic links.

    :param read_only: paths that no agent may change, or create if they are missing.
    :param secret: paths that no agent may read or change.
    """

    read_only: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read_only or self.secret)


@frozen
class ToolSpec:
    """A tool for agents, as a model needs to know it.

    :param title: for people.
    :param description: for the model: what the tool does and when to use it.
    :param input_schema: the JSON Schema of its arguments, which are an object.
    :param read_only: True if the tool changes nothing.
    """

    name: str
    title: str
    description: str
    input_schema: Mapping[str, Any]
    read_only: bool = False


@frozen
class ToolResult:
    """The answer of a tool.

    :param content: a JSON object. If ``is_error``, its ``error`` has ``code``, ``message`` and ``details``.
    :param text: the same as JSON text, for the model.
    """

    content: Mapping[str, Any]
    text: str
    is_error: bool = False


class Toolbox(Protocol):
    """The orchestration tools for one agent. Adapters offer them to its model.

    A call has the access, the limits and the audit trail of the run's token.
    """

    def list(self) -> Sequence[ToolSpec]:
        """Return the tools."""
        ...

    async def call(self, name: str, given: Mapping[str, Any]) -> ToolResult:
        """Call a tool and return its answer.

        Refusals are answers with ``is_error``: an unknown tool, invalid arguments, a lack of access, an
        attempt that has ended. Cancelling a call that waits changes nothing: a question stays open, and
        the same call continues to wait for its answer.

        :param given: the arguments, as the model gave them.
        """
        ...


class RunContext(Protocol):
    """The engine's interface for a runner during one attempt of a run.

    To stop the runner the engine cancels the anyio scope around it. The runner must end everything
    that it started before it re-raises the cancellation.
    """

    @property
    def run(self) -> Run: ...

    @property
    def session(self) -> Session: ...

    @property
    def is_cwd_resolved(self) -> bool:
        """Whether ``session.cwd`` has no symbolic links and must have none when the agent starts in it.

        It is True if workspaces are confined (``workspace_roots``): a path that changed since it was
        checked could lead out of them.
        """
        ...

    @property
    def protected(self) -> ProtectedPaths:
        """The paths that the sandbox of the agent must deny, if its runner has a sandbox."""
        ...

    @property
    def shared_cwd(self) -> str:
        """The deepest common directory of ``session.cwd`` and the ``cwd`` of each ancestor.

        An ancestor's agent may have written any file below it, so a runner must not execute
        configuration that it finds there.
        """
        ...

    @property
    def prompt(self) -> str: ...

    @property
    def images(self) -> Sequence[ImageContent]:
        """The images for the prompt, in order. Empty unless the runner's capabilities have ``images``."""
        ...

    @property
    def model(self) -> str | None: ...

    @property
    def thread(self) -> Thread | None:
        """The conversation to resume, if the session has one with this provider."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """The complete environment for a process of this run."""
        ...

    @property
    def tools(self) -> Toolbox:
        """The orchestration tools, acting as this run, for a runner that offers them to its agent.

        A call waits for a day unless its ``timeout_s`` says otherwise, as nothing cuts it off here. While the
        engine stops, a call that would change something does not return (see :meth:`spawn`).
        """
        ...

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Append an event of the agent; see ``AGENT_EVENTS`` for the types.

        Returns when the event has its place in the order. It is durable before the run ends. Later
        changes of ``data`` have no effect.

        :raises InvalidEvent: a ``ValueError``, if agents may not emit the type, or the data is not valid
            JSON for clients: nested deeper than 400 levels, a number of more than 100 digits, two keys
            of an object that are equal in JSON, more than 2,097,152 values, or more than 240 MiB.
        """
        ...

    async def delivered(self) -> None:
        """Record that the agent has the prompt: from now on the attempt may have effects.

        It is durable when this returns. If the engine ends before, the next attempt starts afresh.
        """
        ...

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        """Record the agent's conversation, so that the next run resumes it.

        :param state: the runner's own data about it; None keeps the present data of this id.
        :raises InvalidEvent: a ``ValueError``, if the id is not text, the state is not an object, or either is not
            valid JSON as for :meth:`emit`.
        """
        ...

    async def report_usage(self, usage: Usage) -> None:
        """Record the usage of this run, not of the whole thread. A later report replaces it."""
        ...

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        """Record the agent's process for diagnosis, before it gets any work.

        It is durable with the next write, or after half a second. After a crash, processes are found by
        the tag in their environment instead.
        """
        ...

    async def report_confinement(
        self, *, sandbox: str | None = None, approval_policy: str | None = None
    ) -> None:
        """Record a confinement that differs from what the run asks for, such as an administrator's.

        Children get no more than this. None changes nothing.

        :raises ValueError: if a value is unknown.
        """
        ...

    def note_stderr(self, tail: str) -> None:
        """Record the end of the agent's stderr, for diagnosis."""
        ...

    def touch(self) -> None:
        """Record that the agent is alive, when its output is not a complete event, such as half a line."""
        ...

    async def stop_deadline(self) -> None:
        """Wait for the stop deadline. When this returns, kill the agent instead of waiting for it."""
        ...

    @takes(SpawnOptions)
    async def spawn(self, options: SpawnOptions) -> SpawnReply:
        """Create a child of this run and send it its task.

        An attempt may be repeated: with an ``idempotency_key`` the next attempt gets the same child.
        While the engine stops this does not return, and the attempt goes back to the queue.

        :param cwd: this run's directory, or one below it.
        :param effort: reasoning effort for the task; default: that of this run's message.
        :raises Conflict: if a limit of the tree is reached, or this run is canceled.
        :raises Forbidden: if the child would be too deep, work in another directory, or have another model
            or more effort than was chosen for this run.
        """
        ...

    @takes(SendOptions)
    async def send(self, options: SendOptions) -> MessageReply:
        """Send a message to the agent of a descendant.

        :raises NotFound: if the session is not a descendant.
        """
        ...

    async def wait(
        self,
        run_id: str,
        *,
        until: Literal["terminal", "attention"] = "terminal",
        ignore: Collection[str] = (),
        timeout_s: float | None = None,
    ) -> WaitReply:
        """Wait until a descendant's run has ended. Other runs may use the worker meanwhile.

        :param until: ``attention`` also returns when the run's session or a descendant has a request
            that this agent may resolve: the reply's ``request``.
        :param ignore: ids of requests to ignore, such as those that this agent leaves to people.
        :param timeout_s: seconds after which the reply has ``timed_out``; None means no limit.
        :raises NotFound: if it is not a run of a descendant.
        """
        ...

    @takes(AskOptions)
    async def ask_parent(self, question: AskOptions) -> Request:
        """Ask the parent or people, and wait. Meanwhile the run is ``waiting`` and takes no worker.

        Cancelling this call withdraws the question.

        :return: the resolved request; ``denied``, ``expired`` and ``canceled`` all mean no.
        :raises InvalidRequest: if the question is invalid.
        :raises Conflict: if the run is canceled, or has too many open questions.
        """
        ...

    def steering(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Accept messages during the run: ``async with context.steering() as messages``.

        The iterator yields each message sent with ``when_busy="steer"``, and marks it as delivered. A
        message that the iterator has not yielded when the run ends starts another run.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """The adapter that executes runs. One object serves all runs of a provider concurrently.

    If it is an async context manager too, the engine enters it at its start and leaves it when it
    stops. A runner can use this to keep processes warm.
    """

    @property
    def name(self) -> str: ...

    async def run(self, context: RunContext) -> Outcome:
        """Execute one attempt.

        :raises AgentFailed: to end the run as failed with its code. Any other exception ends it as
            failed with ``agent_crashed``.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """A runner that can check whether it is available."""

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Check quickly, without side effects. It is called often: cache costly results.

        :param env: the environment of its provider's runs.
        """
        ...


@runtime_checkable
class Declaring(Protocol):
    """A runner that declares its capabilities."""

    @property
    def capabilities(self) -> Capabilities:
        """Must not change while the engine is open."""
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A runner with findings for the administrator."""

    def findings(self, about: str, env: Mapping[str, str]) -> Iterable[Finding]:
        """Return what is wrong with its agent, and settings that give the agent more rights.

        The doctor calls it in a thread. It may block.

        :param about: the subject of the findings: the provider.
        :param env: the environment of the provider's runs.
        """
        ...


@runtime_checkable
class Diagnosing(Protocol):
    """A runner that can explain failed runs."""

    def diagnose(self, error: RunError) -> Issue | None:
        """Return the likely issue of a failed run; None to leave it to the error's code. Must not block."""
        ...


def capabilities_of(runner: Runner) -> Capabilities:
    """Return the capabilities of a runner."""
    return runner.capabilities if isinstance(runner, Declaring) else Capabilities()


# --- observers ------------------------------------------------------------------------------


class Observer(Protocol):
    """Callbacks for metrics and traces.

    They are called in the event loop's thread, and must not wait or raise.
    """

    def started(self, run: Run, session: Session) -> None:
        """Called when a worker has started an attempt."""
        ...

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        """Called for each event of an agent; see ``AGENT_EVENTS`` for the types."""
        ...

    def ended(self, run: Run, after: Run | None) -> None:
        """Called when an attempt has ended.

        :param run: the run when the attempt started.
        :param after: the run when the attempt has ended: in a terminal state, queued again, or
            parked. None if a later attempt has already changed it.
        """
        ...


# --- transport ------------------------------------------------------------------------------


@frozen
class Reply(Generic[Res]):
    """An answer, and whether it repeats an earlier one because of its idempotency key."""

    answer: Res
    replayed: bool = False
    text: str | None = None
    """The answer as JSON, if it is already encoded."""


class Subscription(Protocol):
    """A reader of a stream. Cancelling :meth:`receive` loses nothing."""

    @property
    def epoch(self) -> str | None:
        """The epoch of the log. Send it with a cursor to resume the stream."""
        ...

    async def receive(self) -> Sequence[StreamPart]:
        """Wait for the next parts, at least one, and return them.

        :raises OrchestratorError: if the reader has lost access.
        """
        ...

    async def wait_revoked(self) -> None:
        """Wait until the reader has lost access. For a server whose client does not read.

        :raises OrchestratorError: then. It never returns.
        """
        ...


class Transport(Protocol):
    """A connection to an engine: in the same process, or over HTTP."""

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Call an operation and return its reply.

        :raises OrchestratorError: if it is refused.
        :raises Unreachable: if there is no answer.
        """
        ...

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Open a stream.

        :raises OrchestratorError: on entering, if it is refused.
        """
        ...


class Gateway(Protocol):
    """The engine's interface for a server: a transport for each caller."""

    def acting_as(self, principal: Principal) -> Transport: ...

    async def holder(self, token_hash: str) -> Principal | None:
        """Return the caller that one of the engine's tokens stands for; None if it is not valid.

        :param token_hash: from :func:`agent_orchestrator.domain.tokens.token_hash`.
        """
        ...

    def has_tokens(self) -> bool:
        """Return True if a named token was ever created: from then on callers need one."""
        ...

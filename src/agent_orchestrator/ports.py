"""The seams: what a store, a runner and a transport must be. Any object with these methods will do.

Contract suites for authors of new ones are in :mod:`agent_orchestrator.testing`.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from attrs import frozen

from agent_orchestrator.domain.access import EVERYTHING, Grant, GrantRole, Principal, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Event,
    Invocation,
    Message,
    Request,
    RequestKind,
    Run,
    Sandbox,
    Session,
    Thread,
    Usage,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import takes
from agent_orchestrator.operations import (
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
    """Tells the time of day; tests pass one they move by hand."""

    def __call__(self) -> datetime:
        """Return now, aware and in UTC."""
        ...


# --- store ----------------------------------------------------------------------------------

_DELETED_RECORDS: Final = 64
_SIZE_PER_RECORD: Final = 16 * 2**10


def max_deleted_records(size: int) -> int:
    """Return how many records :meth:`Transaction.add_record` deletes at most.

    It is 64, and one for each 16 KiB of the new answer. One long answer can outweigh 100,000 short
    ones, and deleting all of these at once would hold up every other change. With each 16 KiB that are
    added at least one record goes, so what is kept beyond the bound is at most 16 KiB a record.

    :param size: bytes of the new answer in UTF-8.
    """
    return _DELETED_RECORDS + size // _SIZE_PER_RECORD


@frozen
class Draft:
    """An event before the store gives it its place in the log."""

    event_type: str
    data: Mapping[str, Any]
    run_id: str | None = None
    attempt: int | None = None
    text: str | None = None
    """``data`` as JSON, where it was encoded before; the store writes this and does not look at
    ``data``, which its maker may have changed since."""


@frozen
class IdempotencyRecord:
    """The first answer to a request that carried an idempotency key.

    :param caller: the principal's id.
    :param call: the operation and the ids in its path; the same key in another call is another
        record.
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
    """A consistent look at the store. Its methods do not wait; lists are oldest first.

    ``after`` is the identifier of the last item of the page before; ``within`` limits a list to what a
    caller may see. With a ``size`` a list ends before ``limit`` after the item with which its texts
    have that many characters: a single item may have 64 million.
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
        """Return the bytes of an image; None once no message needs them."""
        ...

    def image_space(self) -> int:
        """Return how many bytes all images have that are kept."""
        ...

    def run_messages(self, run_id: str) -> list[Message]:
        """Return the messages a run delivers, in the order they came."""
        ...

    def child_message_count(self, run_id: str, *, limit: int) -> int:
        """Return how many messages a child's run has sent to its parent, counted up to ``limit``."""
        ...

    def waiting_messages(
        self, session_id: str, *, limit: int, size: int | None = None
    ) -> list[Message]:
        """Return the messages for the session's agent that no run delivers yet."""
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
        """Return the newest runs of a session, oldest first, and the bytes their texts have in all.

        :param cut: characters to keep of each result and error message.
        :param size: bytes of texts, as they are stored, after which no older run is read.
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

        :param resolvable: only those that whoever may read ``within`` may also resolve: of sessions a
            principal owns or may work with; of what descends from a tree's first session, but for
            those only people may answer.
        """
        ...

    def last_resolved(
        self, run_id: str, attempt: int, *, statuses: Collection[str], told: Collection[str]
    ) -> Request | None:
        """Return the request of an attempt that was resolved last with one of the statuses.

        :param told: ids of requests to leave out.
        """
        ...

    def expired_requests(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests whose time was up at ``now``, the first to expire first."""
        ...

    def requests_to_escalate(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests whose parent has had its time (``human_at``) at ``now``, the
        first of them first.
        """
        ...

    def requests_to_warn(self, now: datetime, limit: int) -> list[Request]:
        """Return pending requests of which it is time to warn (``warn_at``) at ``now`` and which did
        not (``warned``), the first of them first.
        """
        ...

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        """Return the pending requests that this session's agent is called on to answer."""
        ...

    def next_due(self) -> datetime | None:
        """Return when the first of the pending requests expires, is to warn of that, or is to be put
        to people.
        """
        ...

    def child_runs(self, run_id: str) -> list[Run]:
        """Return the runs whose ``parent_run_id`` this is, ended ones included."""
        ...

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        """Return how many child sessions of this session (spawned by this run, or by none) have a
        run that has not ended.
        """
        ...

    def live_descendants(self, session_id: str) -> int:
        """Return how many of the sessions below this one have a run that has not ended."""
        ...

    def next_runs(self, limit: int) -> list[Run]:
        """Return the queued runs a worker may start, first come first: not manual, the first of
        its session's queue, and no run of that session active.
        """
        ...

    def queue_is_full(self, limit: int) -> bool:
        """Tell whether at least ``limit`` runs that are not manual are queued."""
        ...

    def queue_position(self, run: Run) -> int | None:
        """Return 1 for the run a free worker would take next; None when the run is not queued.

        Before a run stand the older ones that a worker may start, and those of its own session.
        """
        ...

    def queued_before(self, run: Run) -> Run | None:
        """Return the run of the same session, queued or active, that this queued run waits for."""
        ...

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        """Return by provider how many runs are in each state that is not an end, zeros left out."""
        ...

    def lost_runs(self, instance: str) -> list[Run]:
        """Return the active runs, manual ones aside, whose worker is gone. One that waits without a
        worker has none to lose.

        A store only one process can open returns every active run whose worker is not of
        ``instance``; a shared one consults its engines' leases.
        """
        ...

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        """Return the events with a ``seq`` greater than ``after``."""
        ...

    def last_event_at(self, run: Run) -> datetime | None:
        """Return the time of a run's last event. Kept where events are appended, not searched for."""
        ...

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        """Return the time of the last of ``OUTPUT_EVENTS`` of a run, or of one of its attempts."""
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

        A cursor names the epoch in which it was read (see :meth:`epoch`).

        :param until: a cursor no event is beyond; None means the head.
        :param sessions: which; none means all there are ``within``.
        :raises InvalidRequest: if the cursor is not one of this store's.
        :raises CursorAhead: if the cursor is beyond the last event, or beyond what the log has in
            common with the one of its epoch.
        """
        ...

    def feed_head(self) -> str:
        """Return the cursor after the last event of all sessions."""
        ...

    def epoch(self) -> str | None:
        """Return the epoch the log is in: the time since the store was last opened.

        It is an opaque text that never comes twice. After a backup was put back, the log goes on
        otherwise under the same numbers; by the epoch in which it read, a reader is told of it.
        None where the store does not know.
        """
        ...

    def last_common_seq(self, session_id: str, epoch: str) -> int:
        """Return the ``seq`` up to which a session's log is the one that was read in an epoch: its
        last unless a backup was put back since; 0 where this store has not seen that epoch.
        """
        ...

    def event_count(self) -> int: ...

    def newest_ids(self) -> Sequence[str]:
        """Return the greatest identifier of each kind there is: sessions, messages, runs, requests."""
        ...

    def attempts(self, run_id: str) -> list[Attempt]: ...

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        """Return the attempt whose agent was given the token, ended or not."""
        ...

    def thread(self, session_id: str, provider: str) -> Thread | None: ...

    def grants(self, session_id: str) -> list[Grant]:
        """Return what others than its owner may do with a session, by their names."""
        ...

    def role(self, session_id: str, principal: str) -> GrantRole | None:
        """Return what is granted to one of them."""
        ...

    def token(self, token_id: str) -> AccessToken | None: ...

    def token_of_hash(self, token_hash: str) -> AccessToken | None: ...

    def tokens(
        self, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[AccessToken]: ...

    def audit(self, *, after: int, limit: int, size: int | None = None) -> list[AuditEntry]:
        """Return the entries of the audit trail with a ``seq`` greater than ``after``."""
        ...

    def last_audit(self) -> AuditEntry | None: ...

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None: ...

    def oldest_record_at(self) -> datetime | None:
        """Return when the idempotency record that was added first was made."""
        ...

    def ended_callers(self, *, limit: int) -> list[str]:
        """Return the ids of runs that have ended and still have idempotency records, in order.

        The cost grows with the number of callers that have records, not with the records.
        """
        ...


class Transaction(View, Protocol):
    """A look that also changes things. It sees its own changes; all of them are committed or none."""

    def add_session(self, session: Session) -> None: ...

    def put_session(self, session: Session) -> None:
        """Replace a session's own fields; ``last_seq`` and ``threads`` are not among them."""
        ...

    def add_message(self, message: Message) -> None: ...

    def put_message(self, message: Message) -> None: ...

    def add_image(self, message_id: str, digest: str, data: bytes) -> None:
        """Keep an image for a message. The bytes of one digest are kept once, for all messages.

        :param digest: SHA-256 of the bytes, in hexadecimal.
        """
        ...

    def remove_images(self, message_id: str) -> None:
        """Keep no image for a message any more; what no other message needs is deleted."""
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
        """Append events in order with the session's next ``seq``s, set its ``updated_at`` and notify
        ``session:<id>`` and ``events``.

        :return: the last ``seq`` given.
        """
        ...

    def put_attempt(self, attempt: Attempt) -> None:
        """Add the attempt, or replace the one of the same run and number, but for ``token_hash``.

        :raises Conflict: if another attempt has the same token.
        """
        ...

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None: ...

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        """Replace the grants of a session and of all that descend from it, and notify
        ``access:<principal>`` for everyone who is or was granted something there.
        """
        ...

    def add_token(self, token: AccessToken, token_hash: str) -> None: ...

    def put_token(self, token: AccessToken) -> None:
        """Replace a token, and notify ``token:<id>``."""
        ...

    def add_audit(self, entry: AuditEntry) -> None:
        """Add an entry to the audit trail; there is no way to change or remove one."""
        ...

    def remove_token(self, token_id: str) -> None:
        """Delete a token, if it is there."""
        ...

    def add_record(self, record: IdempotencyRecord, *, most: int, most_size: int) -> None:
        """Add a record, and delete the oldest of the same caller that are too many beside it.

        At most :func:`max_deleted_records` of them are deleted. Where more are due, the next records of the
        caller delete the rest: until then its answers may have more bytes than ``most_size``.

        :param most: records of a caller that are kept.
        :param most_size: bytes of answers in UTF-8: a record is deleted once those added after it
            have as many.
        :raises Conflict: if there is a record of the same caller, call and key.
        """
        ...

    def delete_records(self, *, before: datetime, limit: int) -> int:
        """Delete those of the first ``limit`` records that were made before a moment.

        :return: how many were deleted; 0 when there are no more.
        """
        ...

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        """Delete the oldest records of a caller.

        :return: how many were deleted; fewer than ``limit`` when none is left.
        """
        ...

    def notify(self, topic: str) -> None:
        """Notify every process's subscribers of the topic after the commit."""
        ...

    def suppress(self, topic: str) -> bool:
        """Withdraw this change's notification of the topic. Return True if there was one."""
        ...


class Transactions(Protocol):
    """What reads and changes a store: for whoever decides.

    A change is a function of a :class:`Transaction`, run alone (or as if alone: serializable) and
    perhaps on another thread. It must not wait, must have no effect but on the transaction, and may
    be called again where the store retries. What it raises undoes it and reaches the caller.
    """

    async def transact(self, change: Callable[[Transaction], T], *, reserve: bool = False) -> T:
        """Run a change and return its value once it is durable.

        :param reserve: it may use what room is kept for when the disk is full: it records how
            something ended, and asks for nothing new.
        :raises Unavailable: if it could not be made durable.
        """
        ...

    async def read(self, query: Callable[[View], T]) -> T:
        """Run a function of a consistent view. Keep it short: at most 500 rows."""
        ...


class CommitNotifications(Protocol):
    """Notifications of commits, for tasks that wait for a change."""

    def listen(self, listener: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        """Call ``listener`` with the topics of each commit, of this process and of others.

        It is called in the event loop's thread, after the commit and before
        :meth:`Transactions.transact` returns, and must not wait or raise. A notification carries no data:
        a subscriber reads the store.
        """
        ...


class StoreStatus(Protocol):
    """What a store says of itself: for the daemon's status."""

    @property
    def backend(self) -> str:
        """The kind of store."""
        ...

    @property
    def location(self) -> str | None:
        """Where it is, without secrets."""
        ...

    @property
    def schema_version(self) -> int: ...

    async def problems(self) -> Sequence[Problem]:
        """Return what is wrong with the store now."""
        ...


class Store(Transactions, CommitNotifications, StoreStatus, Protocol):
    """Where everything is kept. Opened as a scope; its methods may be called by many tasks at once."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


@runtime_checkable
class Maintaining(Protocol):
    """A store that can copy itself into a file, and check itself. A store need not have this."""

    async def back_up(self, path: Path, *, replace: bool) -> int:
        """Write a consistent copy to an absolute path, durably, and return its size in bytes.

        :raises Conflict: if there is a file and it is not to be replaced.
        :raises InvalidRequest: if nothing can be written there.
        """
        ...

    async def check(self) -> Sequence[str]:
        """Look at all of the store; return what is wrong with it as such."""
        ...


TAG_VARIABLE: Final = "AGENT_ORCHESTRATOR_TAG"
"""The variable in :attr:`RunContext.env` whose value only this attempt's processes have: by it a
runner finds, at the end, whatever left its process group."""

RUN_VARIABLES: Final = frozenset(
    {"AGENTCTL_RUN_ID", "AGENTCTL_SESSION_ID", "AGENTCTL_AUTH_TOKEN", TAG_VARIABLE}
)
"""The variables in :attr:`RunContext.env` that differ between the runs of a provider. A process that
serves several runs must not have them."""

CWD_MISSING: Final = "the working directory is not there"
"""How the message of an ``invalid_config`` begins that means this: its diagnosis is ``cwd_missing``."""

# --- runner ---------------------------------------------------------------------------------


@frozen
class Outcome:
    """What a run that went well came to.

    :param text: its result. The run fails if that has more than 240 MiB as JSON, which no client could read.
    :param exit_code: of the agent's process, if it has one; negative for a signal. At most 32 bits.
    """

    text: str
    exit_code: int | None = None


@frozen
class Availability:
    """Whether a runner could start an agent now, and if not, why.

    :param mode: in which way, for a runner that has several.
    """

    available: bool
    reason: str | None = None
    version: str | None = None
    mode: str | None = None


@frozen
class ProtectedPaths:
    """Files of the host that its agents are kept from: absolute paths without symbolic links.

    :param read_only: files and directories that no agent may change. One that is missing may not be
        made.
    :param secret: files and directories that no agent may read either.
    """

    read_only: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.read_only or self.secret)


@frozen
class InputLimit:
    """How much text an agent takes at once; None where there is no limit.

    :param characters: Unicode characters.
    :param size: bytes in UTF-8.
    """

    characters: int | None = None
    size: int | None = None

    def excess(self, text: str) -> str | None:
        """Tell by how much a text is too long; None where it is not."""
        if self.characters is not None and len(text) > self.characters:
            return f"at most {self.characters:,} characters, it has {len(text):,}"
        if self.size is not None and (size := len(text.encode("utf-8", "replace"))) > self.size:
            return f"at most {self.size:,} bytes, it has {size:,}"
        return None


class RunContext(Protocol):
    """What a runner is given for one attempt of a run.

    Cancellation is anyio's: the scope round the runner is cancelled, and the runner must have ended
    everything it started before it lets the cancellation out.
    """

    @property
    def run(self) -> Run: ...

    @property
    def session(self) -> Session: ...

    @property
    def is_cwd_resolved(self) -> bool:
        """Whether ``session.cwd`` had no symbolic link in it when it was let in, and none when the
        attempt began: the directory an agent then comes to by it must have that very path.

        So it is where workspaces are confined (``workspace_roots``); a path that leads elsewhere
        by now leads out of them.
        """
        ...

    @property
    def protected(self) -> ProtectedPaths:
        """What the agent is to be kept from, by a runner whose agents have a sandbox."""
        ...

    @property
    def shared_cwd(self) -> str:
        """The deepest directory that holds ``session.cwd`` and that of each session above it; the
        session's own where all work in the same one.

        An agent above may have written whatever lies below: a runner must not execute
        configuration that it finds there.
        """
        ...

    @property
    def prompt(self) -> str: ...

    @property
    def images(self) -> Sequence[ImageContent]:
        """What the agent is to see with the prompt, in this order: for a runner whose
        ``message_options`` have ``images``; none for others.
        """
        ...

    @property
    def model(self) -> str | None: ...

    @property
    def thread(self) -> Thread | None:
        """The conversation to resume, when the session has one with this provider."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """The whole environment for a process that acts for this run."""
        ...

    async def emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Append an event of what the agent did; see ``AGENT_EVENTS`` for the types.

        Returns when the event is in order behind all before it; it is durable before the run ends.
        The data is taken as it is now; changing it afterwards changes nothing.

        :raises InvalidEvent: a ``ValueError``, if the type is not an agent's, JSON cannot say the data, or
            no client could read it: it is nested deeper than 400 levels, has a number of more than 100 digits, or
            two keys of an object are the same in JSON; or it has more than 2,097,152 values or 240 MiB.
        """
        ...

    async def delivered(self) -> None:
        """Record that the agent has the prompt: from here on the attempt may have had effects.

        It is durable when this returns. A run whose engine is lost before is given to another
        agent as if anew.
        """
        ...

    async def set_thread(self, thread_id: str, state: Mapping[str, Any] | None = None) -> None:
        """Record the conversation the agent is in, at once, so that the next run resumes it.

        :param state: what to remember with it; None leaves what there was for this id.
        :raises InvalidEvent: a ``ValueError``, if the id is no text, the state is no object, or JSON cannot say
            them or no client could read them, as for :meth:`emit`.
        """
        ...

    async def report_usage(self, usage: Usage) -> None:
        """Record what this run (not the whole thread) has used; the last report counts."""
        ...

    async def report_process(self, pid: int, invocation: Invocation) -> None:
        """Record the process that does the work, before it is given any, for diagnosis.

        It is durable with what is written next, or half a second later: after a crash its processes
        are found by the mark in their environment.
        """
        ...

    async def report_confinement(
        self, *, sandbox: str | None = None, approval_policy: str | None = None
    ) -> None:
        """Record that the agent is confined otherwise than its run asks for: by an administrator, say.

        Children that it spawns begin with no more. None leaves what there is.

        :raises ValueError: for a word that there is not.
        """
        ...

    def note_stderr(self, tail: str) -> None:
        """Keep the end of what the agent wrote on stderr, for diagnosis."""
        ...

    def touch(self) -> None:
        """Note that the agent shows life, though what it said is no event yet: half a line, say."""
        ...

    async def stop_deadline(self) -> None:
        """Return when an agent that is being stopped is to be ended without asking any further: the
        engine is about to stop, and will not wait for however long its agents may be given.
        """
        ...

    @takes(SpawnOptions)
    async def spawn(self, options: SpawnOptions) -> SpawnReply:
        """Make a child of this run and give it a task.

        An attempt may be repeated: with an ``idempotency_key`` the next one gets the child that the
        one before made. Where the engine is about to stop this does not return: the attempt is
        given back to the queue.

        :param cwd: where it works: where this run does, or below.
        :param effort: reasoning effort for the task; this run's, where its message gave one.
        :raises Conflict: if a limit of the tree is reached, or this run is canceled.
        :raises Forbidden: if the child would be deeper than the limit, work elsewhere, or have another
            model or more effort than somebody chose for this run.
        """
        ...

    @takes(SendOptions)
    async def send(self, options: SendOptions) -> MessageReply:
        """Send a message to the agent of a child, or of another descendant.

        The options are those of :meth:`spawn`.

        :raises NotFound: if the session is none of these.
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
        """Wait until a child's run has ended; the worker is lent to others meanwhile.

        :param until: ``attention`` also returns when the child or what descends from it asks
            something this agent may answer: the reply's ``request``.
        :param ignore: ids of requests not to return for: those this agent leaves to people.
        :param timeout_s: seconds after which the reply says ``timed_out``; None waits on.
        :raises NotFound: if it is no run of a descendant.
        """
        ...

    async def ask_parent(
        self,
        text: str,
        *,
        kind: RequestKind = "input_request",
        detail: Mapping[str, Any] | None = None,
        options: Sequence[str] | None = None,
        expires_in_s: float = 3600.0,
    ) -> Request:
        """Ask the parent, or people, and wait; the run is ``waiting`` and its worker free.

        Cancelling this call withdraws the question.

        :param expires_in_s: seconds until it expires unanswered; whoever may answer may extend it.
        :return: the request as it was resolved; ``denied``, ``expired`` and ``canceled`` all mean no.
        :raises InvalidRequest: if the question cannot be put so.
        :raises Conflict: if the run may not ask: it is canceled, or has too many questions open.
        """
        ...

    def steering(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Accept messages while the run goes on: ``async with context.steering() as messages``.

        Inside the scope a message sent with ``when_busy="steer"`` comes out of the iterator; taking
        it marks it delivered. One that was not taken when the run ends becomes a run of its own.
        """
        ...


@runtime_checkable
class Runner(Protocol):
    """The adapter that executes runs. One object serves all runs of a provider, at once.

    A runner that is also an async context manager is entered when the engine starts and left when
    it stops, so that it may keep warm processes of its own.
    """

    @property
    def name(self) -> str: ...

    async def run(self, context: RunContext) -> Outcome:
        """Execute one attempt.

        :raises AgentFailed: to end the run as failed with that code. Anything else it raises ends
            it as failed with ``agent_crashed``.
        """
        ...


@runtime_checkable
class Probing(Protocol):
    """A runner that can tell beforehand whether it would work."""

    async def probe(self, env: Mapping[str, str]) -> Availability:
        """Look, quickly and without side effects. Called often: keep what is costly.

        :param env: the environment its provider's runs have.
        """
        ...


@frozen
class Capabilities:
    """What a runner can do. The defaults hold for a runner that declares nothing.

    :param resumes: whether it continues :attr:`RunContext.thread`, also one whose process was ended in
        the middle of a turn. It is then given only the messages that the conversation does not have.
    :param confines: whether it enforces the ``sandbox`` and ``approval_policy`` of
        :attr:`RunContext.run`, or is stricter. A run that sets one is not given to another runner.
    :param sandbox: what its agents may do where a run does not say; None if that is not known here.
        It counts only for a runner that ``confines``: agents of others may do anything.
    :param protects: whether its agents can neither change nor read what :attr:`RunContext.protected`
        names, unless a run asks for less of a sandbox.
    :param message_options: names of the options that it applies to one turn: ``model``
        (:attr:`RunContext.model`), ``effort`` and ``output_schema`` (:attr:`RunContext.run`), ``images``
        (:attr:`RunContext.images`). A message with another option is refused.
    :param max_input: the most that :attr:`RunContext.prompt`, or one message while it works, may have.
        What is waiting beyond it comes in the next turn. A single longer message is refused.
    """

    resumes: bool = False
    confines: bool = False
    sandbox: Sandbox | None = None
    protects: bool = False
    message_options: frozenset[str] = frozenset()
    max_input: InputLimit = InputLimit()


@runtime_checkable
class Declaring(Protocol):
    """A runner that declares what it can do."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do. It does not change while the engine is open."""
        ...


def capabilities_of(runner: Runner) -> Capabilities:
    """Return what a runner can do."""
    return runner.capabilities if isinstance(runner, Declaring) else Capabilities()


# --- observers ------------------------------------------------------------------------------


class Observer(Protocol):
    """Is told what the workers of an engine do, for metrics and traces.

    Called in the event loop's thread, in the middle of the work: it must not wait, and must not
    raise.
    """

    def started(self, run: Run, session: Session) -> None:
        """A worker has begun an attempt."""
        ...

    def emitted(self, run: Run, event_type: str, data: Mapping[str, Any]) -> None:
        """Its agent has done something; see ``AGENT_EVENTS``."""
        ...

    def ended(self, run: Run, left: Run | None) -> None:
        """The attempt is over.

        :param run: as it was when it started.
        :param left: as the attempt left it: at its end, in the queue again, or waiting without an
            agent. None if that is not known here: it has moved on without this attempt.
        """
        ...


# --- transport ------------------------------------------------------------------------------


@frozen
class Reply(Generic[Res]):
    """An answer, and whether it is the repetition of an earlier one."""

    answer: Res
    replayed: bool = False
    text: str | None = None
    """The answer as JSON, where it was encoded already; a server need not do it again."""


class Subscription(Protocol):
    """A reader's place in a stream. Cancelling :meth:`receive` loses nothing."""

    @property
    def epoch(self) -> str | None:
        """The epoch in which the log is read, to be given with a cursor when the reader comes back."""
        ...

    async def receive(self) -> Sequence[StreamPart]:
        """Return what comes next, at least one item, waiting for it if need be.

        :raises OrchestratorError: if the reader may not go on.
        """
        ...

    async def wait_revoked(self) -> None:
        """Wait until the reader may not go on: for who serves one that does not take what it is sent.

        :raises OrchestratorError: then. It never returns.
        """
        ...


class Transport(Protocol):
    """The way to an engine: in the same process, over HTTP, or whatever else carries objects."""

    async def call(self, operation: Operation[Req, Res], request: Req) -> Reply[Res]:
        """Carry out one operation.

        :raises OrchestratorError: if it is refused.
        :raises Unreachable: if there was no answer.
        """
        ...

    def subscribe(self, request: StreamRequest) -> AbstractAsyncContextManager[Subscription]:
        """Open a stream.

        :raises OrchestratorError: on entering, if it is refused.
        """
        ...


class Gateway(Protocol):
    """What a server in front of an engine needs of it: a transport for each caller."""

    def acting_as(self, principal: Principal) -> Transport: ...

    async def holder(self, token_hash: str) -> Principal | None:
        """Return whom a token that was made here stands for now; None if nobody.

        :param token_hash: as :func:`agent_orchestrator.domain.tokens.token_hash` makes it.
        """
        ...

    def has_tokens(self) -> bool:
        """Return whether a named token was ever made: from then on, callers need one."""
        ...

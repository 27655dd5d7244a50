"""Queries of a store, by subject."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, Protocol

from attrs import frozen

from agent_orchestrator.domain.access import EVERYTHING, Grant, GrantRole, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.daemons import DaemonRecord, HostRecord
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Attempt,
    Event,
    Message,
    PrunedLog,
    Request,
    Run,
    Session,
    Thread,
)
from agent_orchestrator.domain.notices import Notice, NoticeState, PushSubscription
from agent_orchestrator.domain.search import FoundText, Search
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.operations.options import ListOrder, RequestOrder

MAX_EXAMINED_TEXTS: Final = 2_000
"""Maximum number of texts that a search examines for a page, so that its cost does not grow with what the
caller may not see."""


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


class SessionQueries(Protocol):
    """Sessions and their trees."""

    def session(self, session_id: str) -> Session | None: ...

    def sessions(
        self,
        *,
        within: Visibility = EVERYTHING,
        status: str | None = None,
        parent_session_id: str | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Session]: ...

    def limited_sessions(self, *, after: str | None = None, limit: int) -> list[Session]:
        """Return the sessions for which limits of retention were set, oldest first."""
        ...

    def child_count(self, session_id: str, within: Visibility = EVERYTHING) -> int: ...

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        """Return the number of child sessions, spawned by this run or by none, with an unended run."""
        ...

    def live_descendants(self, session_id: str) -> int:
        """Return the number of descendants of a session with an unended run."""
        ...

    def grants(self, session_id: str) -> list[Grant]:
        """Return the grants of a session, in order of the principals' names."""
        ...

    def seen(self, reader: str, session_id: str) -> int:
        """Return the ``seq`` up to which a reader has read a session's log; 0 if it is unknown.

        :param reader: the id of a token, or of a principal without one.
        """
        ...

    def role(self, session_id: str, principal: str) -> GrantRole | None:
        """Return the role that a session grants to a principal."""
        ...


class MessageQueries(Protocol):
    """Messages and their images."""

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


class RunQueries(Protocol):
    """Runs, their attempts, and what their agents did last."""

    def run(self, run_id: str) -> Run | None: ...

    def runs(
        self,
        *,
        within: Visibility = EVERYTHING,
        session_id: str | None = None,
        status: RunStatus | None = None,
        order: ListOrder = "oldest",
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

    def active_run(self, session_id: str) -> Run | None:
        """Return the session's run that is running or waiting."""
        ...

    def child_runs(self, run_id: str) -> list[Run]:
        """Return the runs with this ``parent_run_id``, ended ones included."""
        ...

    def attempts(self, run_id: str) -> list[Attempt]: ...

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        """Return the attempt with the token, ended or not."""
        ...

    def thread(self, session_id: str, provider: str) -> Thread | None: ...

    def session_of_thread(self, thread_id: str) -> str | None:
        """Return the id of a session that has this thread, with any provider."""
        ...

    def last_event_at(self, run: Run) -> datetime | None:
        """Return the time of a run's last event. The cost does not depend on the number of events."""
        ...

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        """Return the time of the last event of ``OUTPUT_EVENTS`` of a run, or of one of its attempts."""
        ...


class QueueQueries(Protocol):
    """The queue of the workers."""

    def next_runs(
        self,
        limit: int,
        *,
        providers: Collection[str] | None = None,
        daemon_id: str | None = None,
        host: str | None = None,
    ) -> list[Run]:
        """Return the queued runs that a worker may start, oldest first.

        A worker may start a run that is not manual and is the first of its session's queue, if the
        session has no active run.

        :param providers: only runs of these providers; None means any.
        :param daemon_id: only runs that this daemon may start. Another daemon that has not ended keeps the
            sessions with a conversation that it was the last to continue: its agent may have it open.
        :param host: only runs of sessions of this host; None means any.
        """
        ...

    def queue_is_full(self, limit: int) -> bool:
        """Return True if at least ``limit`` runs that are not manual are queued."""
        ...

    def queue_position(self, run: Run, *, host: str | None = None) -> int | None:
        """Return 1 for the run that a free worker would start next; None if the run is not queued.

        Older runs that a worker may start, and earlier runs of the same session, come before a run.

        :param host: only runs of sessions of this host come before it; None means any.
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
        ``instance``. A shared store returns those whose daemon has ended.
        """
        ...

    def daemons(self) -> list[DaemonRecord]:
        """Return the daemons that share the store and have not ended, oldest first.

        Empty if only one process can open the store.
        """
        ...

    def lost_daemons(self) -> list[DaemonRecord]:
        """Return the daemons that ended without leaving, and were not started again at the same address.

        The newest first, at most 100, and only those of the last day. Empty if only one process can open
        the store.
        """
        ...

    def hosts(self) -> list[HostRecord]:
        """Return the hosts that daemons serve or have served, by name. Each has a daemon, or had one.

        Empty if only one process can open the store.
        """
        ...


class RequestQueries(Protocol):
    """Questions of agents."""

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
        order: RequestOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Request]:
        """Return requests.

        :param order: ``deadline`` returns only pending requests, in order of their
            :func:`~agent_orchestrator.wire.codec.deadline_key`, which is also ``after``. ``status`` is None
            or ``pending`` then.
        :param resolvable: only requests that the caller of ``within`` may resolve. A principal may
            resolve those of sessions that it owns, or has the grant ``writer`` or ``owner`` on. A run may
            resolve those of its session's descendants, except those for people only.
        """
        ...

    def open_request_count(self, session_id: str) -> int:
        """Return the number of pending requests of a session's runs."""
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


@frozen
class Growth:
    """The weight of the events since a time.

    :param count: their number.
    :param size: of their data, in bytes of JSON.
    :param since: that time.
    """

    count: int
    size: int
    since: datetime


class LogQueries(Protocol):
    """The logs of events."""

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        """Return the events with a ``seq`` greater than ``after`` that were not deleted."""
        ...

    def pruned_log(self, session_id: str) -> PrunedLog:
        """Return what was deleted of a session's log."""
        ...

    def log_size(self, session_id: str) -> int:
        """Return the size of the data of a session's events that were not deleted, in bytes of JSON.

        The cost grows with the number of its events.
        """
        ...

    def newest_events(self, *, since: datetime, limit: int) -> Growth:
        """Return the weight of the newest events of all sessions.

        :param since: leave out those that were created before.
        :param limit: maximum number of events to look at, deleted ones included.
        """
        ...

    def unaudited_logs(self, *, limit: int) -> list[str]:
        """Return the ids of sessions of whose logs more was deleted than the audit trail has."""
        ...

    def job_due(self, name: str) -> datetime | None:
        """Return when a job of the store's engines is due; None if it was never claimed."""
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

        A cursor contains the epoch in which it was read (see :meth:`epoch`), and what had been deleted of
        the logs until then. Without a cursor, the first event that was not deleted comes first.

        :param until: the cursor of the last event to return; None means the head.
        :param sessions: their ids; empty means all ``within``.
        :raises InvalidRequest: if the cursor is not one of this store.
        :raises CursorAhead: if the cursor is beyond the last event, or beyond the part of the log that is
            unchanged since the cursor's epoch.
        :raises Gone: if events after the cursor, of these sessions, were deleted since it was read.
            ``details["oldest"]`` is the cursor for the events after it that are left.
        """
        ...

    def feed_of_types(
        self, types: Collection[str], *, after: str | None, limit: int, size: int | None = None
    ) -> list[StreamItem]:
        """Return the events of some types of all sessions in commit order, after a cursor of :meth:`feed`.

        The cost grows with the number of all events after the cursor, but only the returned ones are
        decoded.

        :raises CursorAhead: as :meth:`feed` does.
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

    def event_count(self) -> int:
        """Return the number of events that were ever added, deleted ones included."""
        ...

    def newest_ids(self) -> Sequence[str]:
        """Return the greatest identifier of each kind: session, message, run, request."""
        ...


class SearchQueries(Protocol):
    """Searches of what sessions contain."""

    def search(
        self,
        search: Search,
        *,
        within: Visibility = EVERYTHING,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> tuple[list[FoundText], str | None]:
        """Return the texts that have all phrases of a search, the newest first, and the cursor after them.

        A title is found if it is the present one. The result of a run is not found if its agent said the
        same shortly before its end: that message is found. At most :data:`MAX_EXAMINED_TEXTS` texts are
        examined, so that a page may have few although more follow.

        :return: the cursor is None if no more follow.
        :raises InvalidRequest: if ``after`` is not a cursor of a search.
        """
        ...

    def search_is_complete(self) -> bool:
        """Return whether all texts can be found. False while those of an earlier version are indexed."""
        ...


class NoticeQueries(Protocol):
    """The outbox of notices."""

    def notice(self, notice_id: str) -> Notice | None: ...

    def notices(
        self,
        *,
        principal: str | None = None,
        state: NoticeState | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Notice]:
        """Return notices.

        :param principal: only those of this principal's devices.
        """
        ...

    def notices_about(self, subject: str) -> list[Notice]:
        """Return the notices of a request or run, in order of their creation."""
        ...

    def next_notice(self, now: datetime, *, excluding: Collection[str]) -> Notice | None:
        """Return a notice whose ``next_at`` has passed: that with the earliest deadline, else the oldest.

        :param excluding: targets to leave out.
        """
        ...

    def next_notice_at(self, *, excluding: Collection[str]) -> datetime | None:
        """Return the earliest ``next_at`` of a notice.

        :param excluding: targets to leave out.
        """
        ...

    def push_subscription(self, subscription_id: str) -> PushSubscription | None: ...

    def push_subscription_of(self, endpoint: str) -> PushSubscription | None:
        """Return the subscription of an endpoint."""
        ...

    def push_subscriptions(
        self,
        *,
        principal: str | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[PushSubscription]:
        """Return push subscriptions."""
        ...

    def notice_cursor(self) -> str | None:
        """Return the cursor of the log up to which notices were made; None if none are made."""
        ...


class AccessQueries(Protocol):
    """Tokens and the audit trail."""

    def token(self, token_id: str) -> AccessToken | None: ...

    def token_of_hash(self, token_hash: str) -> AccessToken | None: ...

    def tokens(
        self,
        *,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AccessToken]: ...

    def audit(
        self,
        *,
        order: ListOrder = "oldest",
        after: int | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AuditEntry]:
        """Return the audit entries by their ``seq``, those that follow ``after`` in this order."""
        ...

    def last_audit(self) -> AuditEntry | None: ...


class IdempotencyQueries(Protocol):
    """Answers that a repeated request gets again."""

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None: ...

    def oldest_record_at(self) -> datetime | None:
        """Return ``created_at`` of the idempotency record that was added first."""
        ...

    def ended_callers(self, *, limit: int) -> list[str]:
        """Return the ids of ended runs that have idempotency records, in order.

        The cost grows with the number of such callers, not with the number of records.
        """
        ...


class View(
    SessionQueries,
    MessageQueries,
    RunQueries,
    QueueQueries,
    RequestQueries,
    LogQueries,
    SearchQueries,
    NoticeQueries,
    AccessQueries,
    IdempotencyQueries,
    Protocol,
):
    """A consistent snapshot of the store. Its methods do not wait. Lists are oldest first, unless
    ``order`` says otherwise.

    ``after`` is the identifier of the last item of the previous page, in the same order. ``within`` limits a list to what a
    caller may see. ``size`` is a number of characters: a list ends with the item whose texts reach it,
    because a single item may have 64 million.
    """

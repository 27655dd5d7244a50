"""Queries on the state in memory."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any, TypeVar

import attrs
from attrs import evolve

from agent_orchestrator.domain.access import EVERYTHING, Grant, GrantRole, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.daemons import DaemonRecord, HostRecord
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, is_terminal
from agent_orchestrator.domain.model import (
    MANUAL,
    Attempt,
    Event,
    Message,
    PrunedLog,
    Request,
    Run,
    RunError,
    RunResult,
    Session,
    Thread,
)
from agent_orchestrator.domain.notices import Notice, NoticeState, PushSubscription
from agent_orchestrator.domain.search import FoundText, Search
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations.events import StreamItem
from agent_orchestrator.operations.options import ListOrder, RequestOrder
from agent_orchestrator.ports.queries import Growth, IdempotencyRecord
from agent_orchestrator.stores.encoding import (
    events_gone,
    feed_cursor,
    mark_of,
    position_after,
    position_before,
)
from agent_orchestrator.stores.memory.search import found_text
from agent_orchestrator.stores.memory.state import AttemptActivity, Row, State, Table
from agent_orchestrator.wire.codec import deadline_key
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.strict_json import dumps

T = TypeVar("T")


def _queue_key(run: Run) -> tuple[bool, str]:
    """Return the sort key of a session's queue."""
    return not run.priority, run.id


def _data_size(event: Event) -> int:
    data = event.data
    return len(data.text) if isinstance(data, Encoded) else len(dumps(data).encode())


def _kept(events: Iterable[Event | None]) -> Iterator[Event]:
    """Yield the events that were not deleted."""
    return (event for event in events if event is not None)


def _first(rows: Iterable[T], limit: int, size: int | None = None) -> list[T]:
    selected = []
    for row, _ in zip(rows, range(limit), strict=False):
        selected.append(row)
        if size is not None and (size := size - _text_size(row)) <= 0:
            break
    return selected


def _text_size(value: Any) -> int:
    """Return the approximate number of characters of text in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Encoded):
        return len(value.text)
    if isinstance(value, Mapping):
        return sum(len(name) + _text_size(part) for name, part in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_text_size, value))
    if attrs.has(type(value)):
        return sum(
            _text_size(getattr(value, attribute.name)) for attribute in attrs.fields(type(value))
        )
    return 0


class MemoryView:
    def __init__(self, state: State) -> None:
        self._state = state

    def image(self, digest: str) -> bytes | None:
        return self._state.images.get(digest)

    def image_space(self) -> int:
        return sum(len(data) for data in self._state.images.values())

    def session(self, session_id: str) -> Session | None:
        return self._state.sessions.rows.get(session_id)

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
    ) -> list[Session]:
        newest = order == "newest"
        table = self._state.sessions
        rows: Iterable[Session]
        if parent_session_id is not None:
            rows = table.find("parent", parent_session_id, after=after, newest=newest)
        elif within == EVERYTHING:
            rows = table.find("all", after=after, newest=newest)
        else:
            ids = sorted(self._members(within) & table.rows.keys(), reverse=newest)
            rows = (
                table.rows[session_id]
                for session_id in ids
                if after is None or (session_id < after if newest else session_id > after)
            )
        return _first(
            (
                session
                for session in rows
                if self._is_within(session.id, within) and status in (None, session.status)
            ),
            limit,
            size,
        )

    def _members(self, within: Visibility) -> set[str]:
        """Return the sessions a principal owns or has a grant on, or all sessions of a tree."""
        state = self._state
        if within.tree is not None:
            return set(self._tree(within.tree))
        owned = state.sessions.find("owner", within.principal)
        granted = state.granted.find("principal", within.principal)
        return {row.id for row in owned} | {row.session_id for row in granted}

    def _tree(self, session_id: str) -> list[str]:
        """Return the id of a session, existing or not, and the ids of its descendants."""
        tree = [session_id]
        seen = set(tree)
        for member in tree:
            for child in self._state.sessions.find("parent", member):
                if child.id not in seen:
                    seen.add(child.id)
                    tree.append(child.id)
        return tree

    def _visible_rows(
        self, table: Table[Row], within: Visibility, after: str | None, *, newest: bool
    ) -> Iterator[Row]:
        """Yield the rows of all visible sessions, by id."""
        matches = (
            table.find("session", member, after=after, newest=newest)
            for member in self._members(within)
        )
        return merge(*matches, key=lambda row: row.id, reverse=newest)

    def _is_within(self, session_id: str, within: Visibility) -> bool:
        sessions = self._state.sessions.rows
        if within.principal not in (
            None,
            sessions[session_id].owner,
        ) and within.principal not in self._state.grants.get(session_id, ()):
            return False
        return within.tree is None or within.tree in self._lineage(session_id)

    def _is_resolvable(self, request: Request, within: Visibility) -> bool:
        """Return whether a caller who may read a request may also resolve it."""
        if within.tree is not None and (
            request.session_id == within.tree or request.approvals == "ask-human"
        ):
            return False
        owner = self._state.sessions.rows[request.session_id].owner
        roles = self._state.grants.get(request.session_id, {})
        return within.principal in (None, owner) or roles.get(within.principal) != "reader"

    def _lineage(self, session_id: str) -> list[str]:
        """Return the ids of a session and its ancestors."""
        lineage: list[str] = []
        above: str | None = session_id
        while above is not None and above not in lineage:
            lineage.append(above)
            session = self.session(above)
            above = None if session is None else session.parent_session_id
        return lineage

    def limited_sessions(self, *, after: str | None = None, limit: int) -> list[Session]:
        rows = self._state.sessions.find("all", after=after)
        return _first(
            (one for one in rows if one.retain_days or one.retain_events or one.retain_bytes), limit
        )

    def message(self, message_id: str) -> Message | None:
        return self._state.messages.rows.get(message_id)

    def messages(
        self, session_id: str, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[Message]:
        return _first(self._state.messages.find("session", session_id, after=after), limit, size)

    def run_messages(self, run_id: str) -> list[Message]:
        return list(self._state.messages.find("run", run_id))

    def child_message_count(self, run_id: str, *, limit: int) -> int:
        return min(limit, self._state.messages.count("child", run_id))

    def waiting_messages(
        self, session_id: str, *, limit: int, size: int | None = None
    ) -> list[Message]:
        return _first(self._state.messages.find("waiting", session_id), limit, size)

    def run(self, run_id: str) -> Run | None:
        return self._state.runs.rows.get(run_id)

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
    ) -> list[Run]:
        newest = order == "newest"
        table = self._state.runs
        if session_id is not None:
            rows = table.find("session", session_id, after=after, newest=newest)
        elif within == EVERYTHING:
            rows = table.find("all", after=after, newest=newest)
        else:
            rows = self._visible_rows(table, within, after, newest=newest)
        return _first(
            (
                run
                for run in rows
                if status in (None, run.status) and self._is_within(run.session_id, within)
            ),
            limit,
            size,
        )

    def latest_runs(
        self, session_id: str, *, limit: int, cut: int, size: int
    ) -> tuple[list[Run], int]:
        runs: list[Run] = []
        read = 0
        for run in reversed([*self._state.runs.find("session", session_id)]):
            if len(runs) == limit or read >= size:
                break
            result, error = run.result, run.error
            if result is not None:
                read += len(result.text.encode())
                result = RunResult(result.text[:cut])
            if error is not None:
                read += len(error.message.encode())
                error = RunError(error.code, error.message[:cut])
            runs.append(evolve(run, result=result, error=error))
        return runs[::-1], read

    def run_count(self, session_id: str) -> int:
        return sum(1 for _ in self._state.runs.find("session", session_id))

    def child_count(self, session_id: str, within: Visibility = EVERYTHING) -> int:
        children = self._state.sessions.find("parent", session_id)
        return sum(self._is_within(session.id, within) for session in children)

    def active_run(self, session_id: str) -> Run | None:
        return next(self._state.runs.find("active", session_id), None)

    def request(self, request_id: str) -> Request | None:
        return self._state.requests.rows.get(request_id)

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
        rows: Iterator[Request]
        if order == "deadline":
            status = "pending"
            candidates = self._candidates(within, run_id, session_id, status, None)
            by_deadline = sorted(candidates, key=deadline_key)
            rows = (one for one in by_deadline if after is None or deadline_key(one) > after)
        else:
            newest = order == "newest"
            rows = self._candidates(within, run_id, session_id, status, after, newest=newest)
        return _first(
            (
                request
                for request in rows
                if self._is_within(request.session_id, within)
                and (not resolvable or self._is_resolvable(request, within))
                and status in (None, request.status)
                and session_id in (None, request.session_id)
                and root_session_id in (None, request.root_session_id)
                and run_id in (None, request.run_id)
            ),
            limit,
            size,
        )

    def _candidates(
        self,
        within: Visibility,
        run_id: str | None,
        session_id: str | None,
        status: str | None,
        after: str | None,
        *,
        newest: bool = False,
    ) -> Iterator[Request]:
        requests = self._state.requests
        if run_id is not None:
            return requests.find("run", run_id, after=after, newest=newest)
        if session_id is not None:
            return requests.find("session", session_id, after=after, newest=newest)
        if within != EVERYTHING:
            return self._visible_rows(requests, within, after, newest=newest)
        index = "pending" if status == "pending" else "all"
        return requests.find(index, after=after, newest=newest)

    def open_request_count(self, session_id: str) -> int:
        return sum(one.is_open for one in self._state.requests.find("session", session_id))

    def last_resolved(
        self, run_id: str, attempt: int, *, statuses: Collection[str], excluding: Collection[str]
    ) -> Request | None:
        resolved = [
            (request.resolved_at, request.id, request)
            for request in self._state.requests.find("run", run_id)
            if request.attempt == attempt
            and request.status in statuses
            and request.id not in excluding
            if request.resolved_at is not None
        ]
        return max(resolved)[2] if resolved else None

    def expired_requests(self, now: datetime, limit: int) -> list[Request]:
        due = [
            request for request in self._state.requests.find("pending") if request.expires_at <= now
        ]
        return sorted(due, key=lambda request: request.expires_at)[:limit]

    def requests_to_escalate(self, now: datetime, limit: int) -> list[Request]:
        due = [
            (request.human_at, request)
            for request in self._state.requests.find("pending")
            if request.audience == "parent"
            and request.human_at is not None
            and request.human_at <= now
        ]
        return [request for _, request in sorted(due, key=lambda pair: pair[0])[:limit]]

    def requests_to_warn(self, now: datetime, limit: int) -> list[Request]:
        due = [
            (request.warn_at, request)
            for request in self._state.requests.find("pending")
            if request.warn_at is not None and not request.warned and request.warn_at <= now
        ]
        return [request for _, request in sorted(due, key=lambda pair: pair[0])[:limit]]

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        return _first(self._state.requests.find("asked", session_id), limit)

    def next_due(self) -> datetime | None:
        moments = []
        for request in self._state.requests.find("pending"):
            moments.append(request.expires_at)
            if request.audience == "parent" and request.human_at is not None:
                moments.append(request.human_at)
            if request.warn_at is not None and not request.warned:
                moments.append(request.warn_at)
        return min(moments, default=None)

    def child_runs(self, run_id: str) -> list[Run]:
        return list(self._state.runs.find("parent", run_id))

    def _waiting(self) -> Iterator[Run]:
        queued = self._state.runs.find("status", RunStatus.QUEUED)
        return (run for run in queued if run.provider != MANUAL)

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        return sum(
            child.parent_run_id == parent_run_id and self._is_live(child.id)
            for child in self._state.sessions.find("parent", session_id)
        )

    def live_descendants(self, session_id: str) -> int:
        return sum(map(self._is_live, self._tree(session_id)[1:]))

    def _is_live(self, session_id: str) -> bool:
        return any(
            not is_terminal(run.status) for run in self._state.runs.find("session", session_id)
        )

    def next_runs(
        self,
        limit: int,
        *,
        providers: Collection[str] | None = None,
        daemon_id: str | None = None,  # noqa: ARG002 - there is only one
        host: str | None = None,
    ) -> list[Run]:
        startable = (run for run in self._waiting() if self._is_startable(run))
        matching = (
            run
            for run in startable
            if (providers is None or run.provider in providers)
            and host in (None, self._state.sessions.rows[run.session_id].host)
        )
        return _first(matching, limit)

    def queue_is_full(self, limit: int) -> bool:
        return len(_first(self._waiting(), limit)) >= limit

    def queue_position(self, run: Run, *, host: str | None = None) -> int | None:
        stored = self.run(run.id)
        if stored is None or stored.status is not RunStatus.QUEUED:
            return None
        return 1 + sum(
            other.id < run.id
            and (other.session_id == run.session_id or self._is_startable(other))
            and host in (None, self._state.sessions.rows[other.session_id].host)
            for other in self._waiting()
        )

    def queued_before(self, run: Run) -> Run | None:
        stored = self.run(run.id)
        if stored is None or stored.status is not RunStatus.QUEUED:
            return None
        if active := self.active_run(stored.session_id):
            return active
        earlier = [
            other
            for other in self._state.runs.find("queue", stored.session_id)
            if _queue_key(other) < _queue_key(run)
        ]
        return max(earlier, key=_queue_key, default=None)

    def _is_startable(self, run: Run) -> bool:
        return (
            self.active_run(run.session_id) is None
            and run.id == min(self._state.runs.find("queue", run.session_id), key=_queue_key).id
        )

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        by_provider: dict[str, dict[RunStatus, int]] = {}
        for status in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING):
            for run in self._state.runs.find("status", status):
                counts = by_provider.setdefault(run.provider, {})
                counts[status] = counts.get(status, 0) + 1
        return by_provider

    def lost_runs(self, instance: str) -> list[Run]:
        lost = [
            run
            for status in ACTIVE
            for run in self._state.runs.find("status", status)
            if run.provider != MANUAL
            and run.worker_id is not None
            and not run.worker_id.startswith(f"{instance}/")
        ]
        return sorted(lost, key=lambda run: run.id)

    def daemons(self) -> list[DaemonRecord]:
        return []

    def lost_daemons(self) -> list[DaemonRecord]:
        return []

    def hosts(self) -> list[HostRecord]:
        return []

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        # The event with seq n is at index n - 1.
        log = self._state.logs.get(session_id, [])
        return _first(_kept(log[index] for index in range(after, len(log))), limit, size)

    def log_size(self, session_id: str) -> int:
        log = self._state.logs.get(session_id, [])
        return sum(_data_size(event) for event in _kept(log))

    def newest_events(self, *, since: datetime, limit: int) -> Growth:
        newest = list(_kept(islice(reversed(self._state.log), limit)))
        first = min((event.created_at for event in newest), default=since)
        events = [event for event in newest if event.created_at >= since]
        return Growth(len(events), sum(map(_data_size, events)), max(since, first))

    def unaudited_logs(self, *, limit: int) -> list[str]:
        found = self._state.pruned.items()
        return [key for key, one in found if one.log.count != one.log.audited_count][:limit]

    def job_due(self, name: str) -> datetime | None:
        return self._state.jobs.get(name)

    def pruned_log(self, session_id: str) -> PrunedLog:
        pruned = self._state.pruned.get(session_id)
        return PrunedLog() if pruned is None else pruned.log

    def _activity(self, run: Run, attempt: int | None) -> list[AttemptActivity]:
        """Return the activity of a run's attempts, latest first."""
        numbers = range((self._state.runs.rows.get(run.id) or run).attempt + 1)
        records = [
            self._state.activity.get((run.id, number))
            for number in (numbers if attempt is None else (attempt,))
        ]
        return sorted(filter(None, records), key=lambda activity: activity.last_seq, reverse=True)

    def last_event_at(self, run: Run) -> datetime | None:
        return next((activity.event_at for activity in self._activity(run, None)), None)

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        return next(
            (activity.output_at for activity in self._activity(run, attempt) if activity.output_at),
            None,
        )

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
        log = self._state.log
        start = position_after(after, len(log), self._end_of)
        end = len(log) if until is None else position_after(until, len(log), self._end_of)
        if after is not None:
            self._require_kept(after, start, sessions, within)
        positions: Iterable[int] = range(start, end)
        if sessions or within != EVERYTHING:
            session_ids = set(sessions) or self._members(within)
            positions = merge(
                *(self._positions(session_id, start, end) for session_id in session_ids)
            )
        items = self._items(positions)
        within_reach = (item for item in items if self._is_within(item.event.session_id, within))
        return _first(within_reach, limit, size)

    def _items(self, positions: Iterable[int]) -> Iterator[StreamItem]:
        mark = self._last_mark()
        for position in positions:
            if (event := self._state.log[position]) is not None:
                yield StreamItem(feed_cursor(position + 1, self._state.epoch, mark), event)

    def _require_kept(
        self, cursor: str, position: int, sessions: Sequence[str], within: Visibility
    ) -> None:
        """Raise ``Gone`` if events after a cursor were deleted since it was read."""
        since = mark_of(cursor)
        for session_id, pruned in self._state.pruned.items():
            if (
                pruned.mark > since
                and pruned.position > position
                and (not sessions or session_id in sessions)
                and self._is_within(session_id, within)
            ):
                raise events_gone(cursor, position, self._state.epoch, self._last_mark())

    def _last_mark(self) -> int:
        return max((pruned.mark for pruned in self._state.pruned.values()), default=0)

    def _positions(self, session_id: str, start: int, end: int) -> Iterator[int]:
        positions = self._state.positions.get(session_id, [])
        return (
            positions[n] for n in range(bisect_left(positions, start), bisect_left(positions, end))
        )

    def search(
        self,
        search: Search,
        *,
        within: Visibility = EVERYTHING,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> tuple[list[FoundText], str | None]:
        log = self._state.log
        positions = range(min(position_before(after), len(log) + 1) - 1, 0, -1)
        texts = filter(
            None,
            (
                found_text(self._state, search, position, event)
                for position in positions
                if (event := log[position - 1]) is not None
                and self._is_within(event.session_id, within)
            ),
        )
        found: list[FoundText] = []
        for text in texts:
            found.append(text)
            if size is not None:
                size -= len(text.text)
            if len(found) == limit or (size is not None and size <= 0):
                more = next(texts, None) is not None
                return found, text.cursor if more else None
        return found, None

    def search_is_complete(self) -> bool:
        return True

    def feed_of_types(
        self, types: Collection[str], *, after: str | None, limit: int, size: int | None = None
    ) -> list[StreamItem]:
        log = self._state.log
        start = position_after(after, len(log), self._end_of)
        items = self._items(range(start, len(log)))
        return _first((item for item in items if item.event.event_type in types), limit, size)

    def feed_head(self) -> str:
        return feed_cursor(len(self._state.log), self._state.epoch, self._last_mark())

    def epoch(self) -> str | None:
        return self._state.epoch

    def last_common_seq(self, session_id: str, epoch: str) -> int:
        return 0 if self._end_of(epoch) is None else len(self._state.logs.get(session_id, ()))

    def _end_of(self, epoch: str) -> int | None:
        return len(self._state.log) if epoch == self._state.epoch else None

    def event_count(self) -> int:
        return len(self._state.log)

    def newest_ids(self) -> Sequence[str]:
        state = self._state
        kinds = (state.sessions.rows, state.messages.rows, state.runs.rows, state.requests.rows)
        return [max(rows) for rows in kinds if rows]

    def attempts(self, run_id: str) -> list[Attempt]:
        attempts = [a for (of_run, _), a in self._state.attempts.items() if of_run == run_id]
        return sorted(attempts, key=lambda attempt: attempt.attempt)

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        key = self._state.tokens.get(token_hash)
        return None if key is None else self._state.attempts[key]

    def thread(self, session_id: str, provider: str) -> Thread | None:
        return self._state.threads.get((session_id, provider))

    def session_of_thread(self, thread_id: str) -> str | None:
        owners = (
            session_id
            for (session_id, _), thread in self._state.threads.items()
            if thread.id == thread_id
        )
        return min(owners, default=None)

    def grants(self, session_id: str) -> list[Grant]:
        granted = self._state.grants.get(session_id, {})
        return [Grant(principal, role) for principal, role in sorted(granted.items())]

    def seen(self, reader: str, session_id: str) -> int:
        return self._state.seen.get((reader, session_id), 0)

    def role(self, session_id: str, principal: str) -> GrantRole | None:
        return self._state.grants.get(session_id, {}).get(principal)

    def notice(self, notice_id: str) -> Notice | None:
        return self._state.notices.rows.get(notice_id)

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
        found = (
            notice
            for notice in self._state.notices.find("all", after=after, newest=order == "newest")
            if (principal is None or notice.principal == principal)
            and (state is None or notice.state == state)
        )
        return _first(found, limit, size)

    def notices_about(self, subject: str) -> list[Notice]:
        return list(self._state.notices.find("subject", subject))

    def _next_times(self, excluding: Collection[str]) -> list[tuple[datetime, Notice]]:
        return [
            (notice.next_at, notice)
            for notice in self._state.notices.find("due")
            if notice.next_at is not None and notice.target not in excluding
        ]

    def next_notice(self, now: datetime, *, excluding: Collection[str]) -> Notice | None:
        due = [notice for next_at, notice in self._next_times(excluding) if next_at <= now]

        def order(notice: Notice) -> tuple[bool, float, str]:
            deadline = notice.deadline
            return deadline is None, deadline.timestamp() if deadline else 0, notice.id

        return min(due, key=order, default=None)

    def next_notice_at(self, *, excluding: Collection[str]) -> datetime | None:
        return min((next_at for next_at, _ in self._next_times(excluding)), default=None)

    def push_subscription(self, subscription_id: str) -> PushSubscription | None:
        return self._state.push_subscriptions.rows.get(subscription_id)

    def push_subscription_of(self, endpoint: str) -> PushSubscription | None:
        return next(self._state.push_subscriptions.find("endpoint", endpoint), None)

    def push_subscriptions(
        self,
        *,
        principal: str | None = None,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[PushSubscription]:
        table, newest = self._state.push_subscriptions, order == "newest"
        found = (
            table.find("all", after=after, newest=newest)
            if principal is None
            else table.find("principal", principal, after=after, newest=newest)
        )
        return _first(found, limit, size)

    def notice_cursor(self) -> str | None:
        return self._state.notice_cursor.get(None)

    def token(self, token_id: str) -> AccessToken | None:
        return self._state.access_tokens.rows.get(token_id)

    def token_of_hash(self, token_hash: str) -> AccessToken | None:
        token_id = self._state.token_ids.get(token_hash)
        return None if token_id is None else self.token(token_id)

    def tokens(
        self,
        *,
        order: ListOrder = "oldest",
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AccessToken]:
        tokens = self._state.access_tokens.find("all", after=after, newest=order == "newest")
        return _first(tokens, limit, size)

    def audit(
        self,
        *,
        order: ListOrder = "oldest",
        after: int | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[AuditEntry]:
        entries = self._state.audit
        if order == "newest":
            last = len(entries) if after is None else min(after - 1, len(entries))
            seqs = range(last, 0, -1)
        else:
            seqs = range((after or 0) + 1, len(entries) + 1)
        rows = (entries[seq] for seq in seqs)
        return _first(rows, limit, size)

    def last_audit(self) -> AuditEntry | None:
        return self._state.audit.get(len(self._state.audit))

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        stored = next(self._state.records.find("key", (caller, call, key)), None)
        return None if stored is None else stored.record

    def oldest_record_at(self) -> datetime | None:
        stored = next(self._state.records.find("all"), None)
        return None if stored is None else stored.record.created_at

    def ended_callers(self, *, limit: int) -> list[str]:
        runs = self._state.runs.rows
        callers = sorted(self._state.record_sizes)
        ended = (
            caller for caller in callers if caller in runs and is_terminal(runs[caller].status)
        )
        return list(islice(ended, limit))

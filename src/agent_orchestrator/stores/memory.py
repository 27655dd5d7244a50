"""The reference store: everything in dictionaries, nothing kept, every change in the caller's task."""

import json
from bisect import bisect_right, insort
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio.lowlevel
import attrs
from attrs import evolve

from agent_orchestrator.domain.access import EVERYTHING, Grant, Reach, Role
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import Conflict, NotFound, Unavailable
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus, is_terminal
from agent_orchestrator.domain.model import (
    MANUAL,
    Attempt,
    Event,
    Message,
    Request,
    Run,
    Session,
    Thread,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.operations import Problem, StreamItem
from agent_orchestrator.ports import Draft, IdempotencyRecord, Transaction, View
from agent_orchestrator.stores.bells import Bells
from agent_orchestrator.stores.encoding import plain, position_after


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Row = TypeVar("Row", bound=_Identified)


class _Table(Generic[Row]):
    """Rows by id, and for each index the ids of a key, in order of the ids."""

    def __init__(self, **indexes: Callable[[Row], Hashable | None]) -> None:
        self.rows: dict[str, Row] = {}
        self._indexes: dict[str, tuple[Callable[[Row], Hashable | None], dict[Any, list[str]]]] = {
            name: (key_of, {}) for name, key_of in {"all": lambda _: True, **indexes}.items()
        }

    def set(self, row_id: str, row: Row | None) -> None:
        """Put a row in its place, or with None take away the one there is."""
        before = self.rows.pop(row_id, None)
        if row is not None:
            self.rows[row_id] = row
        for key_of, ids_of in self._indexes.values():
            old = None if before is None else key_of(before)
            new = None if row is None else key_of(row)
            if old == new:
                continue
            if old is not None:
                ids_of[old].remove(row_id)
            if new is not None:
                insort(ids_of.setdefault(new, []), row_id)

    def find(self, index: str, key: Hashable = True, *, after: str | None = None) -> Iterator[Row]:
        ids = self._indexes[index][1].get(key, [])
        start = 0 if after is None else bisect_right(ids, after)
        for place in range(start, len(ids)):
            yield self.rows[ids[place]]


class _State:
    def __init__(self) -> None:
        self.sessions = _Table[Session](parent=lambda session: session.parent_session_id)
        self.messages = _Table[Message](
            session=lambda message: message.session_id, run=lambda message: message.run_id
        )
        self.runs = _Table[Run](
            session=lambda run: run.session_id,
            parent=lambda run: run.parent_run_id,
            status=lambda run: run.status,
            active=lambda run: run.session_id if run.status in ACTIVE else None,
            queue=lambda run: run.session_id if run.status is RunStatus.QUEUED else None,
        )
        self.requests = _Table[Request](
            run=lambda request: request.run_id,
            pending=lambda request: request.is_open or None,
            asked=_asked,
        )
        self.log: list[Event] = []
        self.logs: dict[str, list[Event]] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.audit: dict[int, AuditEntry] = {}
        self.access_tokens = _Table[AccessToken]()
        self.token_ids: dict[str, str] = {}
        self.tokens: dict[str, tuple[str, int]] = {}
        self.grants: dict[str, dict[str, Role]] = {}
        self.threads: dict[tuple[str, str], Thread] = {}
        self.records: dict[tuple[str, str, str], IdempotencyRecord] = {}


def _asked(request: Request) -> str | None:
    """Return the session whose agent is called on to answer a request now."""
    asked = request.is_open and request.audience == "parent"
    return request.parent_session_id if asked else None


def _turn(run: Run) -> tuple[bool, str]:
    """Return what a session's queue is sorted by."""
    return not run.interrupts, run.id


def _first(rows: Iterable[T], limit: int, size: int | None = None) -> list[T]:
    found = []
    for row, _ in zip(rows, range(limit), strict=False):
        found.append(row)
        if size is not None and (size := size - _extent(row)) <= 0:
            break
    return found


def _extent(value: Any) -> int:
    """Return about how many characters of text there are in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _extent(part) for name, part in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_extent, value))
    if attrs.has(type(value)):
        return sum(_extent(getattr(value, one.name)) for one in attrs.fields(type(value)))
    return 0


class _MemoryView:
    def __init__(self, state: _State) -> None:
        self._state = state

    def session(self, session_id: str) -> Session | None:
        return self._state.sessions.rows.get(session_id)

    def sessions(
        self,
        *,
        within: Reach = EVERYTHING,
        status: str | None = None,
        parent_session_id: str | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[Session]:
        table = self._state.sessions
        found = (
            table.find("all", after=after)
            if parent_session_id is None
            else table.find("parent", parent_session_id, after=after)
        )
        return _first(
            (
                session
                for session in found
                if self._is_within(session.id, within) and status in (None, session.status)
            ),
            limit,
        )

    def _is_within(self, session_id: str, within: Reach) -> bool:
        sessions = self._state.sessions.rows
        if within.principal not in (
            None,
            sessions[session_id].owner,
        ) and within.principal not in self._state.grants.get(session_id, ()):
            return False
        return within.tree is None or within.tree in self._lineage(session_id)

    def _is_resolvable(self, request: Request, within: Reach) -> bool:
        """Tell whether what may be read may also be resolved."""
        if within.tree is not None and (
            request.session_id == within.tree or request.approvals == "ask-human"
        ):
            return False
        owner = self._state.sessions.rows[request.session_id].owner
        roles = self._state.grants.get(request.session_id, {})
        return within.principal in (None, owner) or roles.get(within.principal) != "reader"

    def _lineage(self, session_id: str) -> list[str]:
        """Return the ids of a session and of all above it."""
        found: list[str] = []
        above: str | None = session_id
        while above is not None and above not in found:
            found.append(above)
            session = self.session(above)
            above = None if session is None else session.parent_session_id
        return found

    def message(self, message_id: str) -> Message | None:
        return self._state.messages.rows.get(message_id)

    def messages(
        self, session_id: str, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[Message]:
        return _first(self._state.messages.find("session", session_id, after=after), limit, size)

    def run_messages(self, run_id: str) -> list[Message]:
        return list(self._state.messages.find("run", run_id))

    def waiting_messages(self, session_id: str) -> list[Message]:
        return [
            message
            for message in self._state.messages.find("session", session_id)
            if message.run_id is None and message.delivery == "queued"
        ]

    def run(self, run_id: str) -> Run | None:
        return self._state.runs.rows.get(run_id)

    def runs(
        self,
        *,
        within: Reach = EVERYTHING,
        session_id: str | None = None,
        status: RunStatus | None = None,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Run]:
        table = self._state.runs
        found = (
            table.find("all", after=after)
            if session_id is None
            else table.find("session", session_id, after=after)
        )
        return _first(
            (
                run
                for run in found
                if status in (None, run.status) and self._is_within(run.session_id, within)
            ),
            limit,
            size,
        )

    def active_run(self, session_id: str) -> Run | None:
        return next(self._state.runs.find("active", session_id), None)

    def request(self, request_id: str) -> Request | None:
        return self._state.requests.rows.get(request_id)

    def requests(
        self,
        *,
        within: Reach = EVERYTHING,
        status: str | None = None,
        session_id: str | None = None,
        root_session_id: str | None = None,
        run_id: str | None = None,
        resolvable: bool = False,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Request]:
        return _first(
            (
                request
                for request in self._candidates(run_id, status, after)
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
        self, run_id: str | None, status: str | None, after: str | None
    ) -> Iterator[Request]:
        requests = self._state.requests
        if run_id is not None:
            return requests.find("run", run_id, after=after)
        return requests.find("pending" if status == "pending" else "all", after=after)

    def due_requests(self, now: datetime, limit: int) -> list[Request]:
        due = [one for one in self._state.requests.find("pending") if one.expires_at <= now]
        return sorted(due, key=lambda request: request.expires_at)[:limit]

    def unanswered_requests(self, now: datetime, limit: int) -> list[Request]:
        due = [
            (one.people_at, one)
            for one in self._state.requests.find("pending")
            if one.audience == "parent" and one.people_at is not None and one.people_at <= now
        ]
        return [one for _, one in sorted(due, key=lambda pair: pair[0])[:limit]]

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        return _first(self._state.requests.find("asked", session_id), limit)

    def next_due(self) -> datetime | None:
        moments = []
        for one in self._state.requests.find("pending"):
            moments.append(one.expires_at)
            if one.audience == "parent" and one.people_at is not None:
                moments.append(one.people_at)
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
        tree = [session_id]
        for member in tree:
            children = self._state.sessions.find("parent", member)
            tree += [child.id for child in children if child.id not in tree]
        return sum(map(self._is_live, tree[1:]))

    def _is_live(self, session_id: str) -> bool:
        return any(
            not is_terminal(run.status) for run in self._state.runs.find("session", session_id)
        )

    def next_runs(self, limit: int) -> list[Run]:
        return _first(
            (run for run in self._waiting() if self._is_startable(run)),
            limit,
        )

    def queue_is_full(self, limit: int) -> bool:
        return len(_first(self._waiting(), limit)) >= limit

    def queue_position(self, run: Run) -> int | None:
        stored = self.run(run.id)
        if stored is None or stored.status is not RunStatus.QUEUED:
            return None
        return 1 + sum(
            other.id < run.id and (other.session_id == run.session_id or self._is_startable(other))
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
            if _turn(other) < _turn(run)
        ]
        return max(earlier, key=_turn, default=None)

    def _is_startable(self, run: Run) -> bool:
        return (
            self.active_run(run.session_id) is None
            and run.id == min(self._state.runs.find("queue", run.session_id), key=_turn).id
        )

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        found: dict[str, dict[RunStatus, int]] = {}
        for status in (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING):
            for run in self._state.runs.find("status", status):
                counts = found.setdefault(run.provider, {})
                counts[status] = counts.get(status, 0) + 1
        return found

    def lost_runs(self, instance: str) -> list[Run]:
        found = [
            run
            for status in ACTIVE
            for run in self._state.runs.find("status", status)
            if run.provider != MANUAL
            and run.worker_id is not None
            and not run.worker_id.startswith(f"{instance}/")
        ]
        return sorted(found, key=lambda run: run.id)

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        # seq n stands at place n - 1: the log has no gap.
        return _first(self._state.logs.get(session_id, [])[after : after + limit], limit, size)

    def last_event_at(
        self, run: Run, types: Collection[str] = (), *, attempt: int | None = None
    ) -> datetime | None:
        for event in reversed(self._state.logs.get(run.session_id, [])):
            if (
                event.run_id == run.id
                and (not types or event.event_type in types)
                and attempt in (None, event.attempt)
            ):
                return event.created_at
        return None

    def feed(
        self,
        *,
        after: str | None,
        until: str | None = None,
        sessions: Sequence[str] = (),
        within: Reach = EVERYTHING,
        limit: int,
        size: int | None = None,
    ) -> list[StreamItem]:
        log = self._state.log
        start = position_after(after, len(log))
        end = len(log) if until is None else position_after(until, len(log))
        wanted = frozenset(sessions)
        return _first(
            (
                StreamItem(str(place + 1), log[place])
                for place in range(start, end)
                if (not wanted or log[place].session_id in wanted)
                and self._is_within(log[place].session_id, within)
            ),
            limit,
            size,
        )

    def feed_head(self) -> str:
        return str(len(self._state.log))

    def event_count(self) -> int:
        return len(self._state.log)

    def newest_ids(self) -> Sequence[str]:
        state = self._state
        kinds = (state.sessions.rows, state.messages.rows, state.runs.rows, state.requests.rows)
        return [max(rows) for rows in kinds if rows]

    def attempts(self, run_id: str) -> list[Attempt]:
        found = [a for (of_run, _), a in self._state.attempts.items() if of_run == run_id]
        return sorted(found, key=lambda attempt: attempt.attempt)

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        key = self._state.tokens.get(token_hash)
        return None if key is None else self._state.attempts[key]

    def thread(self, session_id: str, provider: str) -> Thread | None:
        return self._state.threads.get((session_id, provider))

    def grants(self, session_id: str) -> list[Grant]:
        granted = self._state.grants.get(session_id, {})
        return [Grant(principal, role) for principal, role in sorted(granted.items())]

    def role(self, session_id: str, principal: str) -> Role | None:
        return self._state.grants.get(session_id, {}).get(principal)

    def token(self, token_id: str) -> AccessToken | None:
        return self._state.access_tokens.rows.get(token_id)

    def token_of_hash(self, token_hash: str) -> AccessToken | None:
        token_id = self._state.token_ids.get(token_hash)
        return None if token_id is None else self.token(token_id)

    def tokens(self, *, after: str | None = None, limit: int) -> list[AccessToken]:
        return _first(self._state.access_tokens.find("all", after=after), limit)

    def audit(self, *, after: int, limit: int) -> list[AuditEntry]:
        entries = self._state.audit
        return _first((entries[seq] for seq in range(after + 1, len(entries) + 1)), limit)

    def last_audit(self) -> AuditEntry | None:
        return self._state.audit.get(len(self._state.audit))

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        return self._state.records.get((caller, call, key))


class _MemoryTransaction(_MemoryView):
    """Changes the state in place and keeps, for each step, the way back."""

    def __init__(self, state: _State) -> None:
        super().__init__(state)
        self._back: list[Callable[[], object]] = []
        self.topics: set[str] = set()

    def undo(self) -> None:
        while self._back:
            self._back.pop()()

    def _set(self, table: _Table[Row], row: Row) -> None:
        self._back.append(partial(table.set, row.id, table.rows.get(row.id)))
        table.set(row.id, row)

    def _assign(self, mapping: dict[K, V], key: K, value: V) -> None:
        if key in mapping:
            self._back.append(partial(mapping.__setitem__, key, mapping[key]))
        else:
            self._back.append(partial(mapping.__delitem__, key))
        mapping[key] = value

    def _remove(self, mapping: dict[K, V], key: K) -> None:
        # Dictionaries keep their order of insertion, and readers sort: the way back may append.
        if key in mapping:
            self._back.append(partial(mapping.__setitem__, key, mapping.pop(key)))

    def _known(self, session_id: str) -> Session:
        session = self.session(session_id)
        if session is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        return session

    def _add(self, table: _Table[Row], row: Row) -> None:
        if row.id in table.rows:
            raise Conflict(f"{row.id} exists already")
        self._set(table, row)

    def _replace(self, table: _Table[Row], row: Row) -> None:
        if row.id not in table.rows:
            raise NotFound(f"no {row.id}")
        self._set(table, row)

    def add_session(self, session: Session) -> None:
        metadata = plain(session.metadata)
        self._add(self._state.sessions, evolve(session, metadata=metadata, threads={}, last_seq=0))

    def put_session(self, session: Session) -> None:
        stored = self._known(session.id)
        self._set(
            self._state.sessions,
            evolve(
                session,
                metadata=plain(session.metadata),
                threads=stored.threads,
                last_seq=stored.last_seq,
            ),
        )

    def add_message(self, message: Message) -> None:
        self._known(message.session_id)
        message.text.encode()
        self._add(self._state.messages, message)

    def put_message(self, message: Message) -> None:
        self._known(message.session_id)
        message.text.encode()
        self._replace(self._state.messages, message)

    def _check_single(self, run: Run) -> None:
        active = self.active_run(run.session_id)
        if run.status in ACTIVE and active is not None and active.id != run.id:
            raise Conflict(f"{active.id} of the same session is active")

    def add_run(self, run: Run) -> None:
        self._known(run.session_id)
        self._check_single(run)
        self._add(self._state.runs, run)
        self.topics.add(f"run:{run.id}")

    def put_run(self, run: Run) -> None:
        self._known(run.session_id)
        self._check_single(run)
        self._replace(self._state.runs, run)
        self.topics.add(f"run:{run.id}")

    def append(self, session_id: str, drafts: Sequence[Draft], at: datetime) -> int:
        session = self._known(session_id)
        log = self._state.logs.setdefault(session_id, [])
        events = [
            Event(
                seq=seq,
                session_id=session_id,
                run_id=draft.run_id,
                attempt=draft.attempt,
                event_type=str(draft.event_type),
                data=plain(draft.data) if draft.text is None else json.loads(draft.text),
                created_at=at,
            )
            for seq, draft in enumerate(drafts, session.last_seq + 1)
        ]
        last_seq = session.last_seq + len(events)
        self._set(self._state.sessions, evolve(session, last_seq=last_seq, updated_at=at))
        for entries in (log, self._state.log):
            self._back.append(partial(_truncate, entries, len(entries)))
            entries.extend(events)
        self.topics.update((f"session:{session_id}", "events"))
        return last_seq

    def add_request(self, request: Request) -> None:
        self._known(request.session_id)
        if request.run_id not in self._state.runs.rows:
            raise NotFound(f"no run {request.run_id}", {"run_id": request.run_id})
        if request.id in self._state.requests.rows:
            raise Conflict(f"there is a request {request.id} already")
        self._put_request(request)

    def put_request(self, request: Request) -> None:
        if request.id not in self._state.requests.rows:
            raise NotFound(f"no request {request.id}")
        self._put_request(request)

    def _put_request(self, request: Request) -> None:
        detail = None if request.detail is None else plain(request.detail)
        self._set(self._state.requests, evolve(request, detail=detail))
        self.topics.update((f"request:{request.id}", "requests"))

    def put_attempt(self, attempt: Attempt) -> None:
        if attempt.run_id not in self._state.runs.rows:
            raise NotFound(f"no run {attempt.run_id}", {"run_id": attempt.run_id})
        key = (attempt.run_id, attempt.attempt)
        before = self._state.attempts.get(key)
        if before is not None:
            attempt = evolve(attempt, token_hash=before.token_hash)
        elif (token := attempt.token_hash) is not None:
            if token in self._state.tokens:
                raise Conflict("another attempt has this token")
            self._assign(self._state.tokens, token, key)
        self._assign(self._state.attempts, key, attempt)

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None:
        session = self._known(session_id)
        kept = Thread(thread.id, plain(thread.state))
        self._assign(self._state.threads, (session_id, provider), kept)
        threads = {**session.threads, provider: thread.id}
        self._set(self._state.sessions, evolve(session, threads=threads))

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        granted = {grant.principal: grant.role for grant in grants}
        if len(granted) < len(grants):
            raise Conflict("somebody is granted something twice")
        pending, seen = [self._known(session_id).id], set[str]()
        while pending:
            seen.add(one := pending.pop())
            children = self._state.sessions.find("parent", one)
            pending += [child.id for child in children if child.id not in seen]
            named = self._state.grants.get(one, {}).keys() | granted.keys()
            self.topics.update(f"access:{principal}" for principal in named)
            self._assign(self._state.grants, one, granted)

    def add_token(self, token: AccessToken, token_hash: str) -> None:
        if token_hash in self._state.token_ids:
            raise Conflict("there is this token already")
        self._add(self._state.access_tokens, token)
        self._assign(self._state.token_ids, token_hash, token.id)

    def put_token(self, token: AccessToken) -> None:
        self._replace(self._state.access_tokens, token)
        self.topics.add(f"token:{token.id}")

    def add_audit(self, entry: AuditEntry) -> None:
        if entry.seq != len(self._state.audit) + 1:
            raise Conflict(f"there is an audit entry {entry.seq} already, or one is left out")
        self._assign(self._state.audit, entry.seq, evolve(entry, detail=plain(entry.detail)))

    def remember(self, record: IdempotencyRecord, *, forget_before: datetime) -> None:
        records = self._state.records
        for key, old in _first(records.items(), 4):
            if old.created_at < forget_before:
                self._remove(records, key)
        key = (record.caller, record.call, record.key)
        if key in records and records[key].created_at >= forget_before:
            raise Conflict("the idempotency key has a record already", {"key": record.key})
        self._assign(records, key, record)

    def ring(self, topic: str) -> None:
        self.topics.add(topic)

    def unring(self, topic: str) -> bool:
        had = topic in self.topics
        self.topics.discard(topic)
        return had


def _truncate(entries: list[Event], length: int) -> None:
    del entries[length:]


class MemoryStore:
    """A store that forgets: for tests, for trying things out, and to compare other stores with.

    What was put in stays while the object lives, so it can be opened again to play a restart.
    """

    def __init__(self) -> None:
        self._state = _State()
        self._bells = Bells()
        self._open = False

    @property
    def backend(self) -> str:
        return "memory"

    @property
    def location(self) -> str | None:
        return None

    @property
    def schema_version(self) -> int:
        return 1

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False

    async def transact(
        self,
        change: Callable[[Transaction], T],
        *,
        reserve: bool = False,  # noqa: ARG002 - nothing fills up here
    ) -> T:
        # The one place to wait stands before the change: once it is made nothing can get between
        # it and its answer.
        await anyio.lowlevel.checkpoint()
        self._check_open()
        transaction = _MemoryTransaction(self._state)
        try:
            value = change(transaction)
        except BaseException:
            transaction.undo()
            raise
        self._bells.ring(frozenset(transaction.topics))
        return value

    async def read(self, look: Callable[[View], T]) -> T:
        await anyio.lowlevel.checkpoint()
        self._check_open()
        return look(_MemoryView(self._state))

    async def back_up(self, path: Path, *, replace: bool) -> int:  # noqa: ARG002 - see what it says
        raise Conflict("a store in memory cannot be copied into a file")

    async def check(self) -> Sequence[str]:
        return ()

    async def problems(self) -> Sequence[Problem]:
        return ()

    def listen(self, bell: Callable[[frozenset[str]], None]) -> AbstractContextManager[None]:
        return self._bells.listen(bell)

    def _check_open(self) -> None:
        if not self._open:
            raise Unavailable("the store is not open")

"""What there is to know, as SQL. All statements are constants: each connection keeps them compiled."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import apsw

from agent_orchestrator.domain.access import EVERYTHING, Grant, Reach, Role
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.lifecycle import RunStatus
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
from agent_orchestrator.operations import StreamItem
from agent_orchestrator.ports import IdempotencyRecord
from agent_orchestrator.stores.encoding import feed_cursor, position_after
from agent_orchestrator.stores.sqlite.epochs import NO_END, end_of
from agent_orchestrator.stores.sqlite.rows import (
    ACCESS_COLUMNS,
    ATTEMPT_COLUMNS,
    AUDIT_COLUMNS,
    EVENT_COLUMNS,
    MESSAGE_COLUMNS,
    RECORD_COLUMNS,
    REQUEST_COLUMNS,
    RUN_COLUMNS,
    SESSION_COLUMNS,
    attempt_from,
    audit_from,
    columns,
    event_from,
    message_from,
    record_from,
    request_from,
    run_from,
    session_from,
    token_from,
)
from agent_orchestrator.wire.codec import format_time, parse_time

_SESSION: Final = f"""
    SELECT {SESSION_COLUMNS}, last_seq,
        (SELECT json_group_object(provider, thread_id) FROM threads WHERE session_id = sessions.id)
    FROM sessions"""
_MESSAGE: Final = f"SELECT {MESSAGE_COLUMNS} FROM messages"
_REQUEST: Final = f"SELECT {REQUEST_COLUMNS} FROM requests"
_FOR_PARENT: Final = "status = 'pending' AND audience = 'parent'"
_TO_WARN: Final = "status = 'pending' AND warned = 0"
_NEXT_DUE: Final = f"""
    SELECT min(moment) FROM (
        SELECT min(expires_at) AS moment FROM requests INDEXED BY requests_to_expire
        WHERE status = 'pending'
        UNION ALL
        SELECT min(people_at) FROM requests INDEXED BY requests_for_people WHERE {_FOR_PARENT}
        UNION ALL
        SELECT min(warn_at) FROM requests INDEXED BY requests_to_warn WHERE {_TO_WARN}
    )"""
_RUN: Final = f"SELECT {RUN_COLUMNS} FROM runs"
_LATEST_RUNS: Final = (
    "SELECT "
    + RUN_COLUMNS.replace(" result,", " substr(result, 1, ?),").replace(
        " error_message,", " substr(error_message, 1, ?),"
    )
    + ", coalesce(octet_length(result), 0) + coalesce(octet_length(error_message), 0)"
    " FROM runs WHERE session_id = ? ORDER BY id DESC LIMIT ?"
)
_EVENT: Final = f"SELECT {EVENT_COLUMNS} FROM events"
_FEED: Final = (
    f"SELECT {columns(EVENT_COLUMNS, 'e')}, e.position, s.id"
    " FROM events e CROSS JOIN sessions s ON s.number = e.session WHERE e.position > ? AND e.position <= ?"
)

# A partial index serves only a query that repeats its condition word for word.
_ACTIVE: Final = "status IN ('running', 'waiting')"
_FOR_WORKERS: Final = f"status = 'queued' AND provider <> '{MANUAL}'"

TREE: Final = """
    WITH RECURSIVE tree (id) AS (
        VALUES (?) UNION
        SELECT s.id FROM sessions s JOIN tree ON s.parent_session_id = tree.id)
    SELECT id FROM tree"""


def _let_in(session_id: str, *, to_work: bool = False) -> str:
    """Return the condition that a principal owns a session or has a grant on it.

    :param to_work: one that lets it do more than look.
    """
    roles = " AND role <> 'reader'" if to_work else ""
    return (
        f"? IN (SELECT owner FROM sessions WHERE sessions.id = {session_id}"
        f" UNION ALL SELECT principal FROM grants WHERE grants.session_id = {session_id}{roles})"
    )


_GRANTED: Final = "id IN (SELECT session_id FROM grants WHERE principal = ?)"

_IS_LIVE: Final = (
    "EXISTS (SELECT 1 FROM runs r WHERE r.session_id = s.id"
    " AND r.status IN ('queued', 'running', 'waiting'))"
)

_STARTABLE: Final = """(
    NOT EXISTS (SELECT 1 FROM runs a WHERE a.session_id = r.session_id
                AND a.status IN ('running', 'waiting'))
    AND NOT EXISTS (SELECT 1 FROM runs q WHERE q.session_id = r.session_id
                    AND q.status = 'queued'
                    AND (NOT q.interrupts, q.id) < (NOT r.interrupts, r.id)))"""

_NEXT_RUNS: Final = f"""
    SELECT {columns(RUN_COLUMNS, "r")} FROM runs r INDEXED BY runs_for_workers
    WHERE r.status = 'queued' AND r.provider <> '{MANUAL}' AND {_STARTABLE}
    ORDER BY r.id LIMIT ?"""

_BEFORE: Final = f"""
    SELECT count(*) FROM runs r
    WHERE r.status = 'queued' AND r.provider <> '{MANUAL}' AND r.id < ?
      AND (r.session_id = ? OR {_STARTABLE})"""


def _where(parts: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """Return the condition that all comparisons hold whose value is not None, and the values."""
    given = {part: value for part, value in parts.items() if value is not None}
    return (" WHERE " + " AND ".join(given) if given else ""), tuple(given.values())


class SqliteView:
    """A look through one connection, consistent while the transaction round it is open.

    :param epoch: the one there is now.
    """

    def __init__(self, connection: apsw.Connection, epoch: str | None = None) -> None:
        self._connection = connection
        self._epoch = epoch
        self._execute = connection.execute

    def _one(self, sql: str, *values: Any) -> Any:
        return self._execute(sql, values).fetchone()

    def session(self, session_id: str) -> Session | None:
        row = self._one(_SESSION + " WHERE id = ?", session_id)
        return None if row is None else session_from(row)

    def sessions(
        self,
        *,
        within: Reach = EVERYTHING,
        status: str | None = None,
        parent_session_id: str | None = None,
        after: str | None = None,
        limit: int,
        size: int | None = None,
    ) -> list[Session]:
        found: dict[str, Any] = {}
        # Own sessions and those of others come each by an index of their own.
        for let_in in self._ways_in(within):
            # A plus sign takes a condition out of the choice of an index: children are few.
            where, values = _where(
                {
                    let_in if parent_session_id is None else f"+{let_in}": within.principal,
                    f"id IN ({TREE})": within.tree,
                    "status = ?": status,
                    "parent_session_id = ?": parent_session_id,
                    "id > ?": after,
                }
            )
            rows = self._execute(f"{_SESSION}{where} ORDER BY id LIMIT ?", (*values, limit))
            found |= {row[0]: row for row in _up_to(size, rows)}
        first = (found[session_id] for session_id in sorted(found)[:limit])
        return [session_from(row) for row in _up_to(size, first)]

    def _ways_in(self, within: Reach) -> tuple[str, ...]:
        """Return the conditions of which one holds for each session a principal may see."""
        granted = (
            "SELECT EXISTS (SELECT 1 FROM grants WHERE principal = ?)",
            within.principal,
        )
        if within.principal is None or not self._one(*granted)[0]:
            return ("owner = ?",)
        return ("owner = ?", _GRANTED)

    def message(self, message_id: str) -> Message | None:
        row = self._one(_MESSAGE + " WHERE id = ?", message_id)
        return None if row is None else message_from(row)

    def messages(
        self, session_id: str, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[Message]:
        rows = self._execute(
            _MESSAGE + " WHERE session_id = ? AND id > ? ORDER BY id LIMIT ?",
            (session_id, after or "", limit),
        )
        return [message_from(row) for row in _up_to(size, rows)]

    def run_messages(self, run_id: str) -> list[Message]:
        rows = self._execute(_MESSAGE + " WHERE run_id = ? ORDER BY id", (run_id,))
        return [message_from(row) for row in rows]

    def waiting_messages(
        self, session_id: str, *, limit: int, size: int | None = None
    ) -> list[Message]:
        rows = self._execute(
            _MESSAGE + " WHERE session_id = ? AND run_id IS NULL AND delivery = 'queued'"
            " ORDER BY id LIMIT ?",
            (session_id, limit),
        )
        return [message_from(row) for row in _up_to(size, rows)]

    def run(self, run_id: str) -> Run | None:
        row = self._one(_RUN + " WHERE id = ?", run_id)
        return None if row is None else run_from(row)

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
        where, values = _where(
            {
                "session_id = ?": session_id,
                "status = ?" if session_id is None else "+status = ?": status,
                "id > ?": after,
                _let_in("runs.session_id"): within.principal,
                f"session_id IN ({TREE})": within.tree,
            }
        )
        rows = self._execute(f"{_RUN}{where} ORDER BY id LIMIT ?", (*values, limit))
        return [run_from(row) for row in _up_to(size, rows)]

    def latest_runs(
        self, session_id: str, *, limit: int, cut: int, size: int
    ) -> tuple[list[Run], int]:
        rows: list[Any] = []
        read = 0
        for row in self._execute(_LATEST_RUNS, (cut, cut, session_id, limit)):
            rows.append(row)
            read += row[-1]
            if read >= size:
                break
        return [run_from(row) for row in reversed(rows)], read

    def run_count(self, session_id: str) -> int:
        return int(self._one("SELECT count(*) FROM runs WHERE session_id = ?", session_id)[0])

    def child_count(self, session_id: str, within: Reach = EVERYTHING) -> int:
        where, values = _where(
            {
                "parent_session_id = ?": session_id,
                _let_in("sessions.id"): within.principal,
                f"id IN ({TREE})": within.tree,
            }
        )
        return int(self._one(f"SELECT count(*) FROM sessions{where}", *values)[0])

    def active_run(self, session_id: str) -> Run | None:
        row = self._one(f"{_RUN} WHERE session_id = ? AND {_ACTIVE}", session_id)
        return None if row is None else run_from(row)

    def request(self, request_id: str) -> Request | None:
        row = self._one(_REQUEST + " WHERE id = ?", request_id)
        return None if row is None else request_from(row)

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
        below = within.tree if resolvable else None
        # What is open is found by itself: an agent may have asked any number of questions before.
        index = ""
        if status == "pending" and (run_id is not None or session_id is not None):
            index = f" INDEXED BY requests_open_of_{'session' if run_id is None else 'run'}"
        where, values = _where(
            {
                # A plus sign leaves the choice of an index to the narrower condition.
                "status = ?" if run_id is None else "+status = ?": None if index else status,
                "session_id = ?": session_id,
                "root_session_id = ?": root_session_id,
                "run_id = ?": run_id,
                "id > ?": after,
                _let_in("requests.session_id", to_work=resolvable): within.principal,
                f"session_id IN ({TREE})": within.tree,
                "session_id <> ?": below,
                "approvals <> ?": None if below is None else "ask-human",
            }
        )
        if index:
            where += " AND status = 'pending'"
        rows = self._execute(f"{_REQUEST}{index}{where} ORDER BY id LIMIT ?", (*values, limit))
        return [request_from(row) for row in _up_to(size, rows)]

    def due_requests(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            _REQUEST + " INDEXED BY requests_to_expire WHERE status = 'pending'"
            " AND expires_at <= ? ORDER BY expires_at LIMIT ?",
            (format_time(now), limit),
        )
        return [request_from(row) for row in rows]

    def unanswered_requests(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_for_people WHERE {_FOR_PARENT}"
            " AND people_at <= ? ORDER BY people_at LIMIT ?",
            (format_time(now), limit),
        )
        return [request_from(row) for row in rows]

    def expiring_requests(self, now: datetime, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_to_warn WHERE {_TO_WARN}"
            " AND warn_at <= ? ORDER BY warn_at LIMIT ?",
            (format_time(now), limit),
        )
        return [request_from(row) for row in rows]

    def parent_requests(self, session_id: str, limit: int) -> list[Request]:
        rows = self._execute(
            f"{_REQUEST} INDEXED BY requests_for_parent WHERE {_FOR_PARENT}"
            " AND parent_session_id = ? ORDER BY id LIMIT ?",
            (session_id, limit),
        )
        return [request_from(row) for row in rows]

    def next_due(self) -> datetime | None:
        row = self._one(_NEXT_DUE)
        return None if row is None or row[0] is None else parse_time(row[0])

    def child_runs(self, run_id: str) -> list[Run]:
        rows = self._execute(_RUN + " WHERE parent_run_id = ? ORDER BY id", (run_id,))
        return [run_from(row) for row in rows]

    def live_children(self, session_id: str, parent_run_id: str | None) -> int:
        return int(
            self._one(
                f"SELECT count(*) FROM sessions s WHERE s.parent_session_id = ?"
                f" AND s.parent_run_id IS ? AND {_IS_LIVE}",
                session_id,
                parent_run_id,
            )[0]
        )

    def live_descendants(self, session_id: str) -> int:
        return int(
            self._one(
                f"SELECT count(*) FROM sessions s WHERE s.id IN ({TREE}) AND s.id <> ? AND {_IS_LIVE}",
                session_id,
                session_id,
            )[0]
        )

    def next_runs(self, limit: int) -> list[Run]:
        return [run_from(row) for row in self._execute(_NEXT_RUNS, (limit,))]

    def queue_is_full(self, limit: int) -> bool:
        counted = f"SELECT count(*) FROM (SELECT 1 FROM runs WHERE {_FOR_WORKERS} LIMIT ?)"
        return bool(self._one(counted, limit)[0] >= limit)

    def queue_position(self, run: Run) -> int | None:
        if not self._is_queued(run):
            return None
        return int(self._one(_BEFORE, run.id, run.session_id)[0]) + 1

    def queued_before(self, run: Run) -> Run | None:
        if not self._is_queued(run):
            return None
        if active := self.active_run(run.session_id):
            return active
        row = self._one(
            _RUN + " WHERE session_id = ? AND status = 'queued'"
            " AND (NOT interrupts, id) < (?, ?) ORDER BY NOT interrupts DESC, id DESC LIMIT 1",
            run.session_id,
            not run.interrupts,
            run.id,
        )
        return None if row is None else run_from(row)

    def _is_queued(self, run: Run) -> bool:
        return (
            self._one("SELECT 1 FROM runs WHERE id = ? AND status = 'queued'", run.id) is not None
        )

    def live_runs(self) -> dict[str, dict[RunStatus, int]]:
        found: dict[str, dict[RunStatus, int]] = {}
        for provider, status, count in self._execute(
            "SELECT provider, status, count(*) FROM runs"
            " WHERE status IN ('queued', 'running', 'waiting') GROUP BY provider, status"
        ):
            found.setdefault(provider, {})[RunStatus(status)] = count
        return found

    def lost_runs(self, instance: str) -> list[Run]:
        rows = self._execute(
            f"{_RUN} WHERE {_ACTIVE} AND provider <> '{MANUAL}' AND worker_id IS NOT NULL"
            " AND substr(worker_id, 1, ?) <> ? ORDER BY id",
            (len(instance) + 1, f"{instance}/"),
        )
        return [run_from(row) for row in rows]

    def events(
        self, session_id: str, *, after: int, limit: int, size: int | None = None
    ) -> list[Event]:
        rows = self._execute(
            _EVENT + " WHERE session = (SELECT number FROM sessions WHERE id = ?)"
            " AND seq > ? ORDER BY seq LIMIT ?",
            (session_id, after, limit),
        )
        return [event_from(row, session_id) for row in _up_to(size, rows)]

    def last_event_at(self, run: Run) -> datetime | None:
        row = self._one(
            "SELECT event_at FROM activity WHERE run_id = ? ORDER BY last_seq DESC LIMIT 1", run.id
        )
        return None if row is None else parse_time(row[0])

    def last_output_at(self, run: Run, *, attempt: int | None = None) -> datetime | None:
        where, values = _where({"run_id = ?": run.id, "attempt = ?": attempt})
        row = self._one(
            f"SELECT output_at FROM activity{where} AND output_at IS NOT NULL"
            " ORDER BY last_seq DESC LIMIT 1",
            *values,
        )
        return None if row is None else parse_time(row[0])

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
        head = self.event_count()
        position = position_after(after, head, self._end_of)
        last = head if until is None else position_after(until, head, self._end_of)
        if not sessions and within == EVERYTHING:
            rows = self._execute(_FEED + " ORDER BY e.position LIMIT ?", (position, last, limit))
            return self._items(_up_to(size, rows))
        # Only a session with something new is looked for, so that a quiet reader costs nothing.
        # The plus sign forbids the index of each session's log: in one pass over the whole log
        # the first events come first, where the index would need all of them to sort.
        numbers = self._with_news(position, sessions, within)
        if not numbers:
            return []
        rows = self._execute(
            _FEED + " AND +e.session IN (SELECT value FROM json_each(?))"
            " ORDER BY e.position LIMIT ?",
            (position, last, json.dumps(numbers), limit),
        )
        return self._items(_up_to(size, rows))

    def _items(self, rows: Iterable[Any]) -> list[StreamItem]:
        return [
            StreamItem(feed_cursor(row[6], self._epoch), event_from(row, row[7])) for row in rows
        ]

    def _with_news(self, position: int, sessions: Sequence[str], within: Reach) -> list[int]:
        found: set[int] = set()
        for let_in in self._ways_in(within):
            where, values = _where(
                {
                    "id IN (SELECT value FROM json_each(?))": json.dumps(list(sessions))
                    if sessions
                    else None,
                    let_in: within.principal,
                    f"id IN ({TREE})": within.tree,
                    "last_position > ?": position,
                }
            )
            rows = self._execute(f"SELECT number FROM sessions{where}", values)
            found.update(row[0] for row in rows)
        return sorted(found)

    def feed_head(self) -> str:
        return feed_cursor(self.event_count(), self._epoch)

    def epoch(self) -> str | None:
        return self._epoch

    def last_common_seq(self, session_id: str, epoch: str) -> int:
        session = self.session(session_id)
        end = self._end_of(epoch)
        if session is None or end is None:
            return 0
        if end >= NO_END:
            return session.last_seq
        found = (
            "SELECT position FROM events"
            " WHERE session = (SELECT number FROM sessions WHERE id = ?) AND seq = ?"
        )
        return bisect_right(
            range(1, session.last_seq + 1),
            end,
            key=lambda seq: self._one(found, session_id, seq)[0],
        )

    def _end_of(self, epoch: str) -> int | None:
        return NO_END if epoch == self._epoch else end_of(self._connection, epoch)

    def event_count(self) -> int:
        # Positions have no gap, so the last one is the count; counting would read the whole table.
        return int(self._one("SELECT coalesce(max(position), 0) FROM events")[0])

    def newest_ids(self) -> list[str]:
        tables = ("sessions", "messages", "runs", "requests")
        rows = [self._one(f"SELECT max(id) FROM {table}") for table in tables]
        return [row[0] for row in rows if row[0] is not None]

    def attempts(self, run_id: str) -> list[Attempt]:
        rows = self._execute(
            f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE run_id = ? ORDER BY attempt", (run_id,)
        )
        return [attempt_from(row) for row in rows]

    def attempt_of_token(self, token_hash: str) -> Attempt | None:
        row = self._one(f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE token_hash = ?", token_hash)
        return None if row is None else attempt_from(row)

    def thread(self, session_id: str, provider: str) -> Thread | None:
        row = self._one(
            "SELECT thread_id, state FROM threads WHERE session_id = ? AND provider = ?",
            session_id,
            provider,
        )
        return None if row is None else Thread(row[0], json.loads(row[1]))

    def grants(self, session_id: str) -> list[Grant]:
        rows = self._execute(
            "SELECT principal, role FROM grants WHERE session_id = ? ORDER BY principal",
            (session_id,),
        )
        return [Grant(*row) for row in rows]

    def role(self, session_id: str, principal: str) -> Role | None:
        found = "SELECT role FROM grants WHERE session_id = ? AND principal = ?"
        row = self._one(found, session_id, principal)
        return None if row is None else row[0]

    def token(self, token_id: str) -> AccessToken | None:
        row = self._one(f"SELECT {ACCESS_COLUMNS} FROM access_tokens WHERE id = ?", token_id)
        return None if row is None else token_from(row)

    def token_of_hash(self, token_hash: str) -> AccessToken | None:
        found = f"SELECT {ACCESS_COLUMNS} FROM access_tokens WHERE token_hash = ?"
        row = self._one(found, token_hash)
        return None if row is None else token_from(row)

    def tokens(
        self, *, after: str | None = None, limit: int, size: int | None = None
    ) -> list[AccessToken]:
        rows = self._execute(
            f"SELECT {ACCESS_COLUMNS} FROM access_tokens WHERE id > ? ORDER BY id LIMIT ?",
            (after or "", limit),
        )
        return [token_from(row) for row in _up_to(size, rows)]

    def audit(self, *, after: int, limit: int, size: int | None = None) -> list[AuditEntry]:
        rows = self._execute(
            f"SELECT {AUDIT_COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        return [audit_from(row) for row in _up_to(size, rows)]

    def last_audit(self) -> AuditEntry | None:
        row = self._one(f"SELECT {AUDIT_COLUMNS} FROM audit ORDER BY seq DESC LIMIT 1")
        return None if row is None else audit_from(row)

    def idempotency(self, caller: str, call: str, key: str) -> IdempotencyRecord | None:
        row = self._one(
            f"SELECT {RECORD_COLUMNS} FROM idempotency WHERE caller = ? AND call = ? AND key = ?",
            caller,
            call,
            key,
        )
        return None if row is None else record_from(row)


def _up_to(size: int | None, rows: Iterable[Any]) -> Iterable[Any]:
    """Return the rows up to the one with which their texts have so many characters; those behind it
    are not read.
    """
    return rows if size is None else _fitting(size, rows)


def _fitting(size: int, rows: Iterable[Any]) -> Iterator[Any]:
    for row in rows:
        yield row
        for cell in row:
            if type(cell) is str:
                size -= len(cell)
        if size <= 0:
            return

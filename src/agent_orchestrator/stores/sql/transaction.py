"""Transactions as SQL statements."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.events import OUTPUT_EVENTS, EventType
from agent_orchestrator.domain.model import Attempt, Message, Request, Run, Session, Thread
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.domain.search import REPEATS_WITHIN
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import (
    Draft,
    PastEvent,
    check_deletion,
    last_line,
    max_deleted_records,
)
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.sql.listing import TREE
from agent_orchestrator.stores.sql.long_values import LongValues
from agent_orchestrator.stores.sql.rows import (
    ATTEMPTS,
    AUDIT,
    MESSAGES,
    NOTICES,
    RECORDS,
    REQUESTS,
    RUNS,
    SESSIONS,
    SUBSCRIPTIONS,
    TOKENS,
    is_long_result,
)
from agent_orchestrator.stores.sql.view import Execute, SqlView
from agent_orchestrator.wire.codec import format_time
from agent_orchestrator.wire.strict_json import check_unicode, dumps, encode_in_slices, is_long


def _insert(table: str, names: str, rows: int = 1) -> str:
    placeholders = ", ".join("?" * len(names.split(", ")))
    return f"INSERT INTO {table} ({names}) VALUES " + ", ".join([f"({placeholders})"] * rows)


def _insert_owned(table: str, names: str) -> str:
    """Return an INSERT that also copies the session's owner. Its last parameter is the session id."""
    placeholders = ", ".join("?" * len(names.split(", ")))
    owner = "(SELECT owner FROM sessions WHERE id = ?)"
    return f"INSERT INTO {table} ({names}, owner) VALUES ({placeholders}, {owner})"


def _update(table: str, names: str) -> str:
    assignments = ", ".join(
        f"{name} = ?{number}" for number, name in enumerate(names.split(", "), 1) if name != "id"
    )
    return f"UPDATE {table} SET {assignments} WHERE id = ?1"


_ADD_SESSION: Final = _insert("sessions", SESSIONS.columns)
_PUT_SESSION: Final = _update("sessions", SESSIONS.columns)
_ADD_MESSAGE: Final = _insert("messages", MESSAGES.columns)
_PUT_MESSAGE: Final = _update("messages", MESSAGES.columns)
_ADD_IMAGE_USE: Final = (
    "INSERT INTO image_uses (message_id, digest) VALUES (?, ?) ON CONFLICT DO NOTHING"
)
_IMAGES_OF: Final = "SELECT digest FROM image_uses WHERE message_id = ?"
_DELETE_IMAGE_USES: Final = "DELETE FROM image_uses WHERE message_id = ?"
_DELETE_UNUSED_IMAGE: Final = """
    DELETE FROM images WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM image_uses WHERE digest = ?1)
    RETURNING length(data)"""
_ADD_IMAGE_SPACE: Final = "UPDATE image_space SET bytes = bytes + ? WHERE id = 1"
_ADD_RUN: Final = _insert_owned("runs", RUNS.columns)
_PUT_RUN: Final = _update("runs", RUNS.columns)
_DELETE_LONG_RESULT: Final = "DELETE FROM long_results WHERE run_id = ?"
_ADD_REQUEST: Final = _insert_owned("requests", REQUESTS.columns)
_PUT_REQUEST: Final = _update("requests", REQUESTS.columns)
_PUT_ATTEMPT: Final = (
    _insert("attempts", ATTEMPTS.columns)
    # The token hash never changes. Omitting it saves an update of its randomly ordered index.
    + " ON CONFLICT (run_id, attempt) DO UPDATE SET "
    + ", ".join(
        f"{name} = excluded.{name}"
        for name in ATTEMPTS.columns.split(", ")
        if name not in ("run_id", "attempt", "token_hash")
    )
)
_PUT_THREAD: Final = (
    _insert("threads", "session_id, provider, thread_id, state")
    + " ON CONFLICT (session_id, provider) DO UPDATE SET thread_id = excluded.thread_id,"
    " state = excluded.state"
)
_FORGET_THREADS: Final = "DELETE FROM threads WHERE session_id = ?"

_ADD_TOKEN: Final = _insert("access_tokens", f"{TOKENS.columns}, token_hash")
_PUT_TOKEN: Final = _update("access_tokens", TOKENS.columns)
_MARK_USED: Final = (
    "UPDATE access_tokens SET seen_at = ? WHERE id = ? AND coalesce(seen_at, '') < ?"
)
_PRINCIPALS_IN_TREE: Final = f"SELECT DISTINCT principal FROM grants WHERE session_id IN ({TREE})"
_GRANT: Final = (
    f"INSERT INTO grants (session_id, principal, role) SELECT id, ?, ? FROM ({TREE}) AS tree"
)
_PUT_LAST_LINE: Final = "UPDATE sessions SET last_line = ? WHERE id = ?"
_PUT_SEEN: Final = (
    _insert("seen", "reader, session_id, seq")
    + " ON CONFLICT (reader, session_id) DO UPDATE SET seq = excluded.seq"
)
_NOTE_ACTIVITY: Final = {
    rows: _insert("activity", "run_id, attempt, last_seq, event_at, output_at", rows)
    + """ ON CONFLICT (run_id, attempt) DO UPDATE SET last_seq = excluded.last_seq,
        event_at = excluded.event_at, output_at = coalesce(excluded.output_at, activity.output_at)"""
    for rows in (2, 1)
}
"""Statements by number of rows. The events of a new run need two: without an attempt, and its first attempt."""
_ADD_AUDIT: Final = _insert("audit", AUDIT.columns)
_ADD_NOTICE: Final = _insert("notices", NOTICES.columns)
_PUT_NOTICE: Final = _update("notices", NOTICES.columns)
_CLAIM_NOTICE: Final = (
    "UPDATE notices SET claimed_by = ?, next_at = ? WHERE id = ? AND state = ? AND next_at = ?"
)
_ADD_SUBSCRIPTION: Final = _insert("push_subscriptions", SUBSCRIPTIONS.columns)
_PUT_SUBSCRIPTION: Final = _update("push_subscriptions", SUBSCRIPTIONS.columns)
_REMOVE_SUBSCRIPTION: Final = "DELETE FROM push_subscriptions WHERE id = ?"
_SET_NOTICE_CURSOR: Final = (
    _insert("notice_cursor", "id, cursor")
    + " ON CONFLICT (id) DO UPDATE SET cursor = excluded.cursor"
)
_REMOVE_NOTICE_CURSOR: Final = "DELETE FROM notice_cursor WHERE id = 1"
_DELETE_NOTICES: Final = """
    DELETE FROM notices WHERE id IN (
        SELECT id FROM notices WHERE next_at IS NULL AND updated_at < ? ORDER BY updated_at LIMIT ?)"""
_EVENT_COLUMNS: Final = (
    "position, session, seq, run_id, attempt, event_type, created_at, data, long_data"
)
_ADD_EVENTS: Final = {rows: _insert("events", _EVENT_COLUMNS, rows) for rows in (64, 16, 4, 2, 1)}
"""INSERT statements by number of rows. Per row, inserting many costs a third of inserting one. It also
releases the interpreter lock only once."""

_REMOVE_TOKEN: Final = "DELETE FROM access_tokens WHERE id = ?"  # noqa: S105
# ``place`` numbers the records of a caller. ``total`` has the bytes of the answers up to this record.
_ADD_RECORD: Final = _insert("idempotency", f"{RECORDS.columns}, place, total")
_LAST_OF_CALLER: Final = (
    "SELECT place, total FROM idempotency WHERE caller = ? ORDER BY place DESC LIMIT 1"
)
_FIRST_OF_CALLER: Final = (
    "SELECT number, place, total FROM idempotency WHERE caller = ? ORDER BY place LIMIT 1"
)
_DELETE_RECORD: Final = "DELETE FROM idempotency WHERE number = ?"
_DELETE_OLD_RECORDS: Final = """
    DELETE FROM idempotency WHERE number IN (
        SELECT number FROM (SELECT number, created_at FROM idempotency ORDER BY number LIMIT ?) AS oldest
        WHERE created_at < ?)"""
_DELETE_RECORDS_OF_CALLER: Final = """
    DELETE FROM idempotency WHERE number IN (
        SELECT number FROM idempotency WHERE caller = ? ORDER BY place LIMIT ?)"""


_LAST_UP_TO: Final = (
    "SELECT position FROM events WHERE session = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
)
_DELETE_FIRST_EVENTS: Final = "DELETE FROM events WHERE session = ? AND seq <= ?"
_NOTE_PRUNED: Final = """
    INSERT INTO pruned_logs (session, seq, position, count, mark, digest) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (session) DO UPDATE SET seq = excluded.seq, position = excluded.position,
        count = pruned_logs.count + excluded.count, mark = excluded.mark, digest = excluded.digest"""
_NOTE_PIECES: Final = """
    INSERT INTO pruned_logs (session, count) VALUES (?, ?)
    ON CONFLICT (session) DO UPDATE SET count = pruned_logs.count + excluded.count"""
_NOTE_MISSING: Final = """
    INSERT INTO pruned_logs (session, seq, count, digest, audited_count) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (session) DO UPDATE SET count = pruned_logs.count + excluded.count,
        audited_count = pruned_logs.audited_count + excluded.audited_count"""
_CLAIM_JOB: Final = """
    INSERT INTO jobs (name, next_at) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET next_at = excluded.next_at WHERE jobs.next_at <= ?"""
_MARK_AUDITED: Final = """
    UPDATE pruned_logs SET audited_count = count
    WHERE session = (SELECT number FROM sessions WHERE id = ?)"""


class SqlTransaction(SqlView):
    """A transaction on the writing connection, managed by the writer."""

    def __init__(
        self, execute: Execute, epoch: str | None = None, long_values: LongValues | None = None
    ) -> None:
        super().__init__(execute, epoch, long_values)
        self.topics: set[str] = set()
        self._notified: dict[str, int] = {}
        self._said: dict[tuple[int, str], tuple[int, str | None]] = {}
        """By session and run, the last message of its agent that this change has added: its ``seq`` and text."""

    _max_long_rows: ClassVar[int] = 64
    """Maximum number of events in one statement if any event is long."""

    @abstractmethod
    def _write(self, sql: str, values: Sequence[Any]) -> None:
        """Run a statement that may break a rule of the schema.

        :raises NotFound: if a row refers to one that does not exist.
        :raises Conflict: if it breaks another rule.
        """

    @abstractmethod
    def _changed_rows(self, sql: str, values: Sequence[Any]) -> int:
        """Do what :meth:`_write` does, and return the number of rows that were changed."""

    @abstractmethod
    def _advance(self, session_id: str, count: int, when: str) -> tuple[int, int, int, str] | None:
        """Reserve numbers for some events of a session, and set its ``updated_at``.

        :return: the session's number, the last reserved ``seq``, its position in the log of all
            sessions, and the session's owner; None if there is no such session.
        """

    @abstractmethod
    def _blob(self, data: bytes) -> Any:
        """Return the cell to insert for long data."""

    @abstractmethod
    def _fill(self, table: str, column: str, row: int, data: str | bytes) -> None:
        """Write long data into the cell that :meth:`_blob` returned, after it was inserted."""

    @abstractmethod
    def _add_image_data(self, digest: str, data: bytes) -> None:
        """Insert the bytes of an image."""

    @abstractmethod
    def _put_long_result(self, run_id: str, text: str) -> None:
        """Insert or replace the long result of a run."""

    def _replace(self, sql: str, values: tuple[Any, ...]) -> None:
        if not self._changed_rows(sql, values):
            raise NotFound(f"{values[0]} does not exist")

    def add_session(self, session: Session) -> None:
        self._write(_ADD_SESSION, SESSIONS.values(session))

    def put_session(self, session: Session) -> None:
        self._replace(_PUT_SESSION, SESSIONS.values(session))

    def add_message(self, message: Message) -> None:
        self._write(_ADD_MESSAGE, MESSAGES.values(message))

    def put_message(self, message: Message) -> None:
        self._replace(_PUT_MESSAGE, MESSAGES.values(message))

    def add_image(self, message_id: str, digest: str, data: bytes) -> None:
        if self._first_row("SELECT 1 FROM images WHERE digest = ?", digest) is None:
            self._add_image_data(digest, data)
            self._execute(_ADD_IMAGE_SPACE, (len(data),))
        self._write(_ADD_IMAGE_USE, (message_id, digest))

    def remove_images(self, message_id: str) -> None:
        digests = self._execute(_IMAGES_OF, (message_id,)).fetchall()
        self._execute(_DELETE_IMAGE_USES, (message_id,))
        for (digest,) in digests:
            if (dropped := self._first_row(_DELETE_UNUSED_IMAGE, digest)) is not None:
                self._execute(_ADD_IMAGE_SPACE, (-dropped[0],))

    def add_run(self, run: Run) -> None:
        self._write(_ADD_RUN, (*RUNS.values(run), run.session_id))
        self._put_result(run)
        self.topics.add(f"run:{run.id}")

    def put_run(self, run: Run) -> None:
        self._replace(_PUT_RUN, RUNS.values(run))
        self._put_result(run)
        self.topics.add(f"run:{run.id}")

    def _put_result(self, run: Run) -> None:
        if run.result is None:
            return
        text = run.result.text
        if is_long_result(text):
            self._put_long_result(run.id, text)
        else:
            self._execute(_DELETE_LONG_RESULT, (run.id,))

    def add_request(self, request: Request) -> None:
        self._write(_ADD_REQUEST, (*REQUESTS.values(request), request.session_id))
        self.topics.update((f"request:{request.id}", "requests"))

    def put_request(self, request: Request) -> None:
        self._replace(_PUT_REQUEST, REQUESTS.values(request))
        self.topics.update((f"request:{request.id}", "requests"))

    def append(self, session_id: str, drafts: Sequence[Draft], at: datetime) -> int:
        count = len(drafts)
        texts = _texts(drafts)
        advanced = self._advanced(session_id, count, at)
        last_seq = advanced[1]
        seqs = range(last_seq - count + 1, last_seq + 1)
        self._add_events(session_id, advanced, drafts, seqs, [at] * count, texts)
        return int(last_seq)

    def add_past(
        self,
        session_id: str,
        events: Sequence[PastEvent],
        *,
        oldest_cursor: int = 0,
        digest: str = "",
    ) -> None:
        row = self._first_row("SELECT last_seq FROM sessions WHERE id = ?", session_id)
        drafts, seqs = [event.draft for event in events], [event.seq for event in events]
        texts = _texts(drafts)
        span = seqs[-1] - (0 if row is None else row[0])
        # As if all had been appended, and those that are missing had been deleted.
        advanced = self._advanced(session_id, span, events[-1].at)
        self._add_events(session_id, advanced, drafts, seqs, [event.at for event in events], texts)
        if missing := span - len(events):
            self._write(_NOTE_MISSING, (advanced[0], oldest_cursor, missing, digest, missing))

    def _advanced(self, session_id: str, count: int, at: datetime) -> tuple[int, int, int, str]:
        advanced = self._advance(session_id, count, format_time(at))
        if advanced is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        return advanced

    def _add_events(
        self,
        session_id: str,
        advanced: tuple[int, int, int, str],
        drafts: Sequence[Draft],
        seqs: Sequence[int],
        times: Sequence[datetime],
        texts: Sequence[str | bytes],
    ) -> None:
        """Add events with reserved numbers.

        :param advanced: what :meth:`_advance` returned.
        :param texts: the data of the events, as JSON.
        """
        if (line := last_line(drafts)) is not None:
            self._put_last_line(session_id, line)
        session, last_seq, position, owner = advanced
        offset = position - last_seq  # the position of an event of this call is its seq plus this
        count = len(drafts)
        start = 0
        is_long = any(isinstance(text, bytes) for text in texts)
        for rows, statement in _ADD_EVENTS.items():
            if is_long and rows > self._max_long_rows:
                continue
            while count - start >= rows:
                values: list[Any] = []
                for index in range(start, start + rows):
                    draft, text, seq = drafts[index], texts[index], seqs[index]
                    values += (
                        offset + seq,
                        session,
                        seq,
                        draft.run_id,
                        draft.attempt,
                        draft.event_type,
                        format_time(times[index]),
                        "" if isinstance(text, bytes) else text,
                        self._blob(text) if isinstance(text, bytes) else None,
                    )
                self._execute(statement, values)
                start += rows
        for seq, text in zip(seqs, texts, strict=True):
            if not isinstance(text, str):
                self._fill("events", "long_data", offset + seq, text)
        self.topics.add(f"session:{session_id}")
        self.topics.add("events")
        self._note_activity(drafts, seqs, times)
        self._index_events(drafts, texts, session, owner, seqs, offset)

    def _put_last_line(self, session_id: str, line: str) -> None:
        self._execute(_PUT_LAST_LINE, (line, session_id))

    def _index_events(
        self,
        drafts: Sequence[Draft],
        texts: Sequence[str | bytes],
        session: int,
        owner: str,
        seqs: Sequence[int],
        offset: int,
    ) -> None:
        """Add the texts of new events to the index of words.

        :param texts: the data of the events, as JSON.
        :param offset: from a ``seq`` to its position in the log of all sessions.
        """
        for seq, draft, data in zip(seqs, drafts, texts, strict=True):
            text = draft.searchable
            if draft.event_type == EventType.AGENT_MESSAGE and draft.run_id is not None:
                said = None if text is None else text.text
                self._said[session, draft.run_id] = seq, said
            if text is None:
                continue
            if draft.event_type == EventType.RUN_COMPLETED and self._repeats(
                session, seq, draft.run_id, text.text
            ):
                continue
            is_long = isinstance(data, bytes)
            self._add_entry(self._entry(offset + seq, session, owner, text, is_long=is_long))

    def _repeats(self, session: int, seq: int, run_id: str | None, text: str) -> bool:
        """Do what :meth:`_is_repeated` does, without a query if this change has added the agent's last message."""
        last = None if run_id is None else self._said.get((session, run_id))
        if last is None:
            return self._is_repeated(session, seq, run_id, text)
        return seq - last[0] <= REPEATS_WITHIN and last[1] == text

    def _note_activity(
        self, drafts: Sequence[Draft], seqs: Sequence[int], times: Sequence[datetime]
    ) -> None:
        """Record the times of the last events of attempts. One statement takes up to two attempts."""
        activity: dict[tuple[str, int], tuple[int, str, str | None]] = {}
        for seq, draft, at in zip(seqs, drafts, times, strict=True):
            if draft.run_id is not None:
                key, when = (draft.run_id, draft.attempt or 0), format_time(at)
                output_at = when if draft.event_type in OUTPUT_EVENTS else None
                activity[key] = seq, when, output_at or activity.get(key, (0, "", None))[2]
        values = [
            (run_id, attempt, seq, when, output_at)
            for (run_id, attempt), (seq, when, output_at) in activity.items()
        ]
        for start in range(0, len(values), 2):
            rows = values[start : start + 2]
            self._execute(_NOTE_ACTIVITY[len(rows)], [cell for row in rows for cell in row])

    def delete_events(
        self, session_id: str, *, through: int = 0, seqs: Sequence[int] = (), digest: str = ""
    ) -> int:
        check_deletion(through, seqs)
        self._said.clear()
        row = self._first_row("SELECT number, last_seq FROM sessions WHERE id = ?", session_id)
        if row is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        number, last_seq = row
        through = min(through, last_seq - 1)
        last_deleted = self._first_row(_LAST_UP_TO, number, through)
        results = self._results_repeating(number, through) if last_deleted is not None else []
        count = self._changed_rows(_DELETE_FIRST_EVENTS, (number, through))
        if seqs:
            among, values = self._in_list("seq", seqs)
            delete = f"DELETE FROM events WHERE session = ? AND seq < ? AND {among}"
            count += self._changed_rows(delete, (number, last_seq, *values))
        if last_deleted is not None:
            mark = self._last_mark() + 1
            self._write(_NOTE_PRUNED, (number, through, last_deleted[0], count, mark, digest or ""))
        elif count:
            self._write(_NOTE_PIECES, (number, count))
        for entry in results:  # now the only place of their texts
            self._add_entry(entry)
        return count

    def claim_job(self, name: str, *, now: datetime, until: datetime) -> bool:
        values = (name, format_time(until), format_time(now))
        return self._changed_rows(_CLAIM_JOB, values) > 0

    def mark_pruned_audited(self, session_id: str) -> None:
        self._write(_MARK_AUDITED, (session_id,))

    def put_attempt(self, attempt: Attempt) -> None:
        self._write(_PUT_ATTEMPT, ATTEMPTS.values(attempt))

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None:
        self._write(_PUT_THREAD, (session_id, provider, thread.id, dumps(thread.state)))

    def forget_threads(self, session_id: str) -> None:
        self._execute(_FORGET_THREADS, (session_id,))

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        if self._first_row("SELECT 1 FROM sessions WHERE id = ?", session_id) is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        granted = {grant.principal for grant in grants}
        if len(granted) < len(grants):
            raise Conflict("a principal has two grants")
        former = self._execute(_PRINCIPALS_IN_TREE, (session_id,)).fetchall()
        self._execute(f"DELETE FROM grants WHERE session_id IN ({TREE})", (session_id,))
        for grant in grants:
            self._execute(_GRANT, (grant.principal, grant.role, session_id))
        self.topics.update(f"access:{name}" for name in granted.union(*former))

    def add_notice(self, notice: Notice) -> None:
        self._write(_ADD_NOTICE, NOTICES.values(notice))
        self.topics.update((f"notice:{notice.id}", "notices"))

    def put_notice(self, notice: Notice) -> None:
        self._replace(_PUT_NOTICE, NOTICES.values(notice))
        self.topics.update((f"notice:{notice.id}", "notices"))

    def claim_notice(self, notice: Notice, claimant: str, until: datetime) -> bool:
        if notice.next_at is None:
            return False
        values = (claimant, format_time(until), notice.id, notice.state)
        return self._changed_rows(_CLAIM_NOTICE, (*values, format_time(notice.next_at))) > 0

    def add_push_subscription(self, subscription: PushSubscription) -> None:
        self._write(_ADD_SUBSCRIPTION, SUBSCRIPTIONS.values(subscription))
        self.topics.add("push")

    def put_push_subscription(self, subscription: PushSubscription) -> None:
        self._replace(_PUT_SUBSCRIPTION, SUBSCRIPTIONS.values(subscription))
        self.topics.add("push")

    def remove_push_subscription(self, subscription_id: str) -> None:
        self._execute(_REMOVE_SUBSCRIPTION, (subscription_id,))

    def set_notice_cursor(self, cursor: str | None) -> None:
        if cursor is None:
            self._execute(_REMOVE_NOTICE_CURSOR, ())
        else:
            self._execute(_SET_NOTICE_CURSOR, (1, cursor))

    def delete_notices(self, *, before: datetime, limit: int) -> int:
        return self._changed_rows(_DELETE_NOTICES, (format_time(before), limit))

    def put_seen(self, reader: str, session_id: str, seq: int) -> None:
        self._write(_PUT_SEEN, (reader, session_id, seq))

    def add_token(self, token: AccessToken, token_hash: str) -> None:
        self._write(_ADD_TOKEN, (*TOKENS.values(token), token_hash))

    def put_token(self, token: AccessToken) -> None:
        self._replace(_PUT_TOKEN, TOKENS.values(token))
        self.topics.add(f"token:{token.id}")

    def mark_token_used(self, token_id: str, at: datetime) -> None:
        when = format_time(at)
        self._execute(_MARK_USED, (when, token_id, when))

    def add_audit(self, entry: AuditEntry) -> None:
        self._write(_ADD_AUDIT, AUDIT.values(entry))

    def remove_token(self, token_id: str) -> None:
        self._execute(_REMOVE_TOKEN, (token_id,))

    def add_record(self, record: IdempotencyRecord, *, max_count: int, max_size: int) -> None:
        last = self._last_of_caller(record.caller)
        place, total = (1, 0) if last is None else (last[0] + 1, last[1])
        size = len(record.answer.encode())
        total += size
        try:
            self._write(_ADD_RECORD, (*RECORDS.values(record), place, total))
        except Conflict:
            raise Conflict(
                "the idempotency key already has a record", {"key": record.key}
            ) from None
        self._note_last(record.caller, place, total)
        if place <= max_count and total < max_size:
            return  # the limits were never reached
        for _ in range(max_deleted_records(size)):
            number, first, first_total = self._first_row(_FIRST_OF_CALLER, record.caller)
            if first == place or (place - first < max_count and total - first_total < max_size):
                return
            self._execute(_DELETE_RECORD, (number,))

    def _last_of_caller(self, caller: str) -> tuple[int, int] | None:
        """Return ``place`` and ``total`` of a caller's last record."""
        last: tuple[int, int] | None = self._first_row(_LAST_OF_CALLER, caller)
        return last

    def _note_last(self, caller: str, place: int, total: int) -> None:
        """Called with a caller's new last record, for stores that cache it."""

    def delete_records(self, *, before: datetime, limit: int) -> int:
        return self._changed_rows(_DELETE_OLD_RECORDS, (limit, format_time(before)))

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        return self._changed_rows(_DELETE_RECORDS_OF_CALLER, (caller, limit))

    def notify(self, topic: str) -> None:
        self.topics.add(topic)
        self._notified[topic] = self._notified.get(topic, 0) + 1

    def suppress(self, topic: str) -> int:
        if topic not in self.topics:
            return 0
        self.topics.discard(topic)
        return self._notified.pop(topic, 1)


def _texts(drafts: Sequence[Draft]) -> list[str | bytes]:
    """Return the data of events as JSON. Called first, so that invalid data is refused before anything is written."""
    texts = [_encoded(draft.data) if draft.text is None else draft.text for draft in drafts]
    for text in texts:
        if isinstance(text, str):
            check_unicode(text)
    return texts


def _encoded(data: Mapping[str, Any]) -> str | bytes:
    # This thread shares the interpreter lock with the event loop; one long call would block that.
    return encode_in_slices(data) if is_long(data) else dumps(data)

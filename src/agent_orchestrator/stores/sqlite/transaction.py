"""Transactions as SQL statements."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import apsw

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.events import OUTPUT_EVENTS
from agent_orchestrator.domain.model import Attempt, Message, Request, Run, Session, Thread
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.long_work import short_turns
from agent_orchestrator.ports.changes import Draft, max_deleted_records
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.sqlite.listing import TREE
from agent_orchestrator.stores.sqlite.rows import (
    ATTEMPTS,
    AUDIT,
    MESSAGES,
    RECORDS,
    REQUESTS,
    RUNS,
    SESSIONS,
    TOKENS,
    is_long_result,
    slices,
)
from agent_orchestrator.stores.sqlite.view import SqliteView
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
_ADD_IMAGE: Final = "INSERT INTO images (digest, data) VALUES (?, zeroblob(?)) RETURNING number"
_ADD_IMAGE_USE: Final = "INSERT OR IGNORE INTO image_uses (message_id, digest) VALUES (?, ?)"
_IMAGES_OF: Final = "SELECT digest FROM image_uses WHERE message_id = ?"
_DELETE_IMAGE_USES: Final = "DELETE FROM image_uses WHERE message_id = ?"
_DELETE_UNUSED_IMAGE: Final = """
    DELETE FROM images WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM image_uses WHERE digest = ?1)
    RETURNING length(data)"""
_ADD_IMAGE_SPACE: Final = "UPDATE image_space SET bytes = bytes + ? WHERE id = 1"
_ADD_RUN: Final = _insert_owned("runs", RUNS.columns)
_PUT_RUN: Final = _update("runs", RUNS.columns)
_PUT_LONG_RESULT: Final = (
    "REPLACE INTO long_results (run_id, result) VALUES (?, zeroblob(?)) RETURNING number"
)
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
    "REPLACE INTO threads (session_id, provider, thread_id, state) VALUES (?,?,?,?)"
)

_ADD_TOKEN: Final = _insert("access_tokens", f"{TOKENS.columns}, token_hash")
_PUT_TOKEN: Final = _update("access_tokens", TOKENS.columns)
_PRINCIPALS_IN_TREE: Final = f"SELECT DISTINCT principal FROM grants WHERE session_id IN ({TREE})"
_GRANT: Final = f"INSERT INTO grants (session_id, principal, role) SELECT id, ?, ? FROM ({TREE})"
_NOTE_ACTIVITY: Final = (
    _insert("activity", "run_id, attempt, last_seq, event_at, output_at")
    + """ ON CONFLICT (run_id, attempt) DO UPDATE SET last_seq = excluded.last_seq,
        event_at = excluded.event_at, output_at = coalesce(excluded.output_at, output_at)"""
)
_ADD_AUDIT: Final = _insert("audit", AUDIT.columns)
_ADVANCE_LAST_SEQ: Final = """
    UPDATE sessions SET last_seq = last_seq + ?1, updated_at = ?2,
        last_position = (SELECT coalesce(max(position), 0) FROM events) + ?1
    WHERE id = ?3 RETURNING number, last_seq, last_position"""
_EVENT_COLUMNS: Final = (
    "position, session, seq, run_id, attempt, event_type, created_at, data, long_data"
)
_ADD_EVENTS: Final = {rows: _insert("events", _EVENT_COLUMNS, rows) for rows in (64, 16, 4, 2, 1)}
"""INSERT statements by number of rows. Per row, inserting many costs a third of inserting one. It also
releases the interpreter lock only once."""

_REMOVE_TOKEN: Final = "DELETE FROM access_tokens WHERE id = ?"  # noqa: S105
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
        SELECT number FROM (SELECT number, created_at FROM idempotency ORDER BY number LIMIT ?)
        WHERE created_at < ?)"""
_DELETE_RECORDS_OF_CALLER: Final = """
    DELETE FROM idempotency WHERE number IN (
        SELECT number FROM idempotency WHERE caller = ? ORDER BY place LIMIT ?)"""


class SqliteTransaction(SqliteView):
    """A transaction on the writing connection, in a savepoint managed by the writer."""

    def __init__(self, connection: apsw.Connection, epoch: str | None = None) -> None:
        super().__init__(connection, epoch)
        self.topics: set[str] = set()

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        try:
            self._execute(sql, values)
        except apsw.ConstraintError as error:
            # apsw sets the code on the instance, which its type stubs omit.
            if error.extendedresult == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:  # type: ignore[attr-defined]
                raise NotFound("the session or run that this refers to does not exist") from error
            raise Conflict(f"this conflicts with a stored row: {error}") from error

    def _replace(self, sql: str, values: tuple[Any, ...]) -> None:
        self._write(sql, values)
        if not self._connection.changes():
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
            number = self._first_row(_ADD_IMAGE, digest, len(data))[0]
            self._fill("images", "data", number, slices(data))
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
        if not is_long_result(text):
            self._execute(_DELETE_LONG_RESULT, (run.id,))
            return
        size = sum(len(piece) for piece in slices(text))
        number = self._first_row(_PUT_LONG_RESULT, run.id, size)[0]
        self._fill("long_results", "result", number, slices(text))

    def add_request(self, request: Request) -> None:
        self._write(_ADD_REQUEST, (*REQUESTS.values(request), request.session_id))
        self.topics.update((f"request:{request.id}", "requests"))

    def put_request(self, request: Request) -> None:
        self._replace(_PUT_REQUEST, REQUESTS.values(request))
        self.topics.update((f"request:{request.id}", "requests"))

    def append(self, session_id: str, drafts: Sequence[Draft], at: datetime) -> int:
        count = len(drafts)
        when = format_time(at)
        # Encoded first, so that invalid data is refused before anything is written.
        texts = [_encoded(draft.data) if draft.text is None else draft.text for draft in drafts]
        for text in texts:
            if isinstance(text, str):
                check_unicode(text)
        advanced = self._first_row(_ADVANCE_LAST_SEQ, count, when, session_id)
        if advanced is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        session, last_seq, position = advanced
        offset = position - last_seq  # from a seq of this session to its position in the whole log
        seq = last_seq - count
        start = 0
        for rows, statement in _ADD_EVENTS.items():
            while count - start >= rows:
                values: list[Any] = []
                for index in range(start, start + rows):
                    draft, text = drafts[index], texts[index]
                    is_long = not isinstance(text, str)
                    seq += 1
                    values += (
                        offset + seq,
                        session,
                        seq,
                        draft.run_id,
                        draft.attempt,
                        draft.event_type,
                        when,
                        "" if is_long else text,
                        apsw.zeroblob(len(text)) if is_long else None,
                    )
                self._execute(statement, values)
                start += rows
        for position, text in enumerate(texts, offset + last_seq - count + 1):
            if not isinstance(text, str):
                self._fill("events", "long_data", position, slices(text))
        self.topics.add(f"session:{session_id}")
        self.topics.add("events")
        self._note_activity(drafts, last_seq - count, when)
        return int(last_seq)

    def _fill(self, table: str, column: str, row: int, data: Iterable[bytes]) -> None:
        """Write a long value into the zeroblob that was inserted for it."""
        blob_open = self._connection.blob_open
        with short_turns(), blob_open("main", table, column, row, True) as blob:  # noqa: FBT003
            for piece in data:
                blob.write(piece)

    def _note_activity(self, drafts: Sequence[Draft], before: int, when: str) -> None:
        """Record the times of attempts' last events, with one statement per attempt."""
        activity: dict[tuple[str, int], tuple[int, str | None]] = {}
        for seq, draft in enumerate(drafts, before + 1):
            if draft.run_id is not None:
                key = draft.run_id, draft.attempt or 0
                output_at = when if draft.event_type in OUTPUT_EVENTS else None
                activity[key] = seq, output_at or activity.get(key, (0, None))[1]
        for (run_id, attempt), (seq, output_at) in activity.items():
            self._execute(_NOTE_ACTIVITY, (run_id, attempt, seq, when, output_at))

    def put_attempt(self, attempt: Attempt) -> None:
        self._write(_PUT_ATTEMPT, ATTEMPTS.values(attempt))

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None:
        self._write(_PUT_THREAD, (session_id, provider, thread.id, dumps(thread.state)))

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

    def add_token(self, token: AccessToken, token_hash: str) -> None:
        self._write(_ADD_TOKEN, (*TOKENS.values(token), token_hash))

    def put_token(self, token: AccessToken) -> None:
        self._replace(_PUT_TOKEN, TOKENS.values(token))
        self.topics.add(f"token:{token.id}")

    def add_audit(self, entry: AuditEntry) -> None:
        self._write(_ADD_AUDIT, AUDIT.values(entry))

    def remove_token(self, token_id: str) -> None:
        self._execute(_REMOVE_TOKEN, (token_id,))

    def add_record(self, record: IdempotencyRecord, *, max_count: int, max_size: int) -> None:
        last = self._first_row(_LAST_OF_CALLER, record.caller)
        place, total = (1, 0) if last is None else (last[0] + 1, last[1])
        size = len(record.answer.encode())
        total += size
        try:
            self._execute(_ADD_RECORD, (*RECORDS.values(record), place, total))
        except apsw.ConstraintError:
            raise Conflict(
                "the idempotency key already has a record", {"key": record.key}
            ) from None
        if place <= max_count and total < max_size:
            return  # the limits were never reached
        for _ in range(max_deleted_records(size)):
            number, first, first_total = self._first_row(_FIRST_OF_CALLER, record.caller)
            if first == place or (place - first < max_count and total - first_total < max_size):
                return
            self._execute(_DELETE_RECORD, (number,))

    def delete_records(self, *, before: datetime, limit: int) -> int:
        self._execute(_DELETE_OLD_RECORDS, (limit, format_time(before)))
        return self._connection.changes()

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        self._execute(_DELETE_RECORDS_OF_CALLER, (caller, limit))
        return self._connection.changes()

    def notify(self, topic: str) -> None:
        self.topics.add(topic)

    def suppress(self, topic: str) -> bool:
        had = topic in self.topics
        self.topics.discard(topic)
        return had


def _encoded(data: Mapping[str, Any]) -> str | bytes:
    # This thread shares the interpreter lock with the event loop; one long call would block that.
    return encode_in_slices(data) if is_long(data) else dumps(data)

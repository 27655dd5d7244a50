"""Transactions on the state in memory, with an undo log."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from attrs import evolve

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.errors import Conflict, NotFound
from agent_orchestrator.domain.events import OUTPUT_EVENTS
from agent_orchestrator.domain.lifecycle import ACTIVE
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
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import (
    Draft,
    PastEvent,
    check_deletion,
    last_line,
    max_deleted_records,
)
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.encoding import plain
from agent_orchestrator.stores.memory.state import (
    AttemptActivity,
    Row,
    State,
    StoredGrant,
    StoredPruning,
    StoredRecord,
    Table,
)
from agent_orchestrator.stores.memory.view import MemoryView
from agent_orchestrator.wire.encoded import Encoded
from agent_orchestrator.wire.strict_json import encode_in_slices, is_long

K = TypeVar("K")
V = TypeVar("V")


class MemoryTransaction(MemoryView):
    """Changes the state in place and records how to undo each step."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._undo_steps: list[Callable[[], object]] = []
        self.topics: set[str] = set()
        self._notified: dict[str, int] = {}

    def undo(self) -> None:
        while self._undo_steps:
            self._undo_steps.pop()()

    def _set(self, table: Table[Row], row: Row) -> None:
        self._set_or_remove(table, row.id, row)

    def _set_or_remove(self, table: Table[Row], row_id: str, row: Row | None) -> None:
        self._undo_steps.append(partial(table.set, row_id, table.rows.get(row_id)))
        table.set(row_id, row)

    def _assign(self, mapping: dict[K, V], key: K, value: V) -> None:
        if key in mapping:
            self._undo_steps.append(partial(mapping.__setitem__, key, mapping[key]))
        else:
            self._undo_steps.append(partial(mapping.__delitem__, key))
        mapping[key] = value

    def _remove(self, mapping: dict[K, V], key: K) -> None:
        # Undoing may change the order of the keys. Readers sort, so that is harmless.
        if key in mapping:
            self._undo_steps.append(partial(mapping.__setitem__, key, mapping.pop(key)))

    def _known(self, session_id: str) -> Session:
        session = self.session(session_id)
        if session is None:
            raise NotFound(f"no session {session_id}", {"session_id": session_id})
        return session

    def _add(self, table: Table[Row], row: Row) -> None:
        if row.id in table.rows:
            raise Conflict(f"{row.id} already exists")
        self._set(table, row)

    def _replace(self, table: Table[Row], row: Row) -> None:
        if row.id not in table.rows:
            raise NotFound(f"no {row.id}")
        self._set(table, row)

    def add_session(self, session: Session) -> None:
        metadata = plain(session.metadata)
        fresh = evolve(
            session, metadata=metadata, threads={}, last_seq=0, last_line=None, oldest_cursor=0
        )
        self._add(self._state.sessions, fresh)

    def put_session(self, session: Session) -> None:
        stored = self._known(session.id)
        self._set(
            self._state.sessions,
            evolve(
                session,
                metadata=plain(session.metadata),
                threads=stored.threads,
                last_seq=stored.last_seq,
                last_line=stored.last_line,
                oldest_cursor=stored.oldest_cursor,
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

    def add_image(self, message_id: str, digest: str, data: bytes) -> None:
        if message_id not in self._state.messages.rows:
            raise NotFound(f"no message {message_id}", {"message_id": message_id})
        uses = self._state.image_uses.get(message_id, frozenset())
        if digest in uses:
            return
        self._assign(self._state.image_uses, message_id, uses | {digest})
        users = self._state.image_users.get(digest, 0)
        self._assign(self._state.image_users, digest, users + 1)
        if not users:
            self._assign(self._state.images, digest, data)

    def remove_images(self, message_id: str) -> None:
        uses = self._state.image_uses.get(message_id, frozenset())
        self._remove(self._state.image_uses, message_id)
        for digest in uses:
            users = self._state.image_users[digest] - 1
            if users:
                self._assign(self._state.image_users, digest, users)
            else:
                self._remove(self._state.image_users, digest)
                self._remove(self._state.images, digest)

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
        before = self._known(session_id).last_seq
        return self._add_events(
            session_id, [PastEvent(seq, one, at) for seq, one in enumerate(drafts, before + 1)], at
        )

    def add_past(
        self,
        session_id: str,
        events: Sequence[PastEvent],
        *,
        oldest_cursor: int = 0,
        digest: str = "",
    ) -> None:
        missing = events[-1].seq - self._known(session_id).last_seq - len(events)
        self._add_events(session_id, events, events[-1].at)
        if not missing:
            return
        stored = self._state.pruned.get(session_id)
        if stored is None:
            stored = StoredPruning(PrunedLog(oldest_cursor, digest=digest))
            if oldest_cursor:
                changed = evolve(self._known(session_id), oldest_cursor=oldest_cursor)
                self._set(self._state.sessions, changed)
        log = evolve(
            stored.log,
            count=stored.log.count + missing,
            audited_count=stored.log.audited_count + missing,
        )
        self._assign(self._state.pruned, session_id, evolve(stored, log=log))

    def _add_events(self, session_id: str, added: Sequence[PastEvent], at: datetime) -> int:
        """Add events with their numbers, and None for each number that is left out."""
        session = self._known(session_id)
        drafts = [one.draft for one in added]
        log = self._state.logs.setdefault(session_id, [])
        positions = self._state.positions.setdefault(session_id, [])
        self._undo_steps.append(partial(_truncate, positions, len(positions)))
        first = len(self._state.log)
        last_seq = added[-1].seq if added else session.last_seq
        positions.extend(range(first, first + last_seq - session.last_seq))
        events: list[Event | None] = [None] * (last_seq - session.last_seq)
        for one in added:
            event = Event(
                seq=one.seq,
                session_id=session_id,
                run_id=one.draft.run_id,
                attempt=one.draft.attempt,
                event_type=str(one.draft.event_type),
                data=_stored_data(one.draft),
                created_at=one.at,
            )
            events[one.seq - session.last_seq - 1] = event
        line = last_line(drafts) or session.last_line
        changed = evolve(session, last_seq=last_seq, updated_at=at, last_line=line)
        self._set(self._state.sessions, changed)
        for entries in (log, self._state.log):
            self._undo_steps.append(partial(_truncate, entries, len(entries)))
            entries.extend(events)
        for written in events:
            if written is not None and written.run_id is not None:
                self._note_activity(written, written.run_id)
        self.topics.update((f"session:{session_id}", "events"))
        return last_seq

    def delete_events(
        self, session_id: str, *, through: int = 0, seqs: Sequence[int] = (), digest: str = ""
    ) -> int:
        check_deletion(through, seqs)
        session = self._known(session_id)
        log = self._state.logs.get(session_id, [])
        through = min(through, session.last_seq - 1)
        first = self.pruned_log(session_id).seq
        count = sum(self._delete_event(session_id, seq) for seq in range(first + 1, through + 1))
        is_pruned = count > 0
        later = {seq for seq in seqs if 0 < seq < len(log)}
        count += sum(self._delete_event(session_id, seq) for seq in later)
        if not count:
            return 0
        before = self._state.pruned.get(session_id, StoredPruning(PrunedLog()))
        pruned = evolve(before, log=evolve(before.log, count=before.log.count + count))
        if is_pruned:
            position = self._state.positions[session_id][through - 1] + 1
            changed = evolve(pruned.log, seq=through, digest=digest)
            pruned = StoredPruning(changed, position, self._last_mark() + 1)
            self._set(self._state.sessions, evolve(session, oldest_cursor=through))
        self._assign(self._state.pruned, session_id, pruned)
        return count

    def _delete_event(self, session_id: str, seq: int) -> bool:
        """Return whether the event was there."""
        log, position = self._state.logs[session_id], self._state.positions[session_id][seq - 1]
        if log[seq - 1] is None:
            return False
        for entries, index in ((log, seq - 1), (self._state.log, position)):
            self._undo_steps.append(partial(entries.__setitem__, index, entries[index]))
            entries[index] = None
        return True

    def claim_job(self, name: str, *, now: datetime, until: datetime) -> bool:
        due = self._state.jobs.get(name)
        if due is not None and due > now:
            return False
        self._assign(self._state.jobs, name, until)
        return True

    def mark_pruned_audited(self, session_id: str) -> None:
        if (pruned := self._state.pruned.get(session_id)) is not None:
            marked = evolve(pruned.log, audited_count=pruned.log.count)
            self._assign(self._state.pruned, session_id, evolve(pruned, log=marked))

    def _note_activity(self, event: Event, run_id: str) -> None:
        key = run_id, event.attempt or 0
        before = self._state.activity.get(key)
        output_at = event.created_at if event.event_type in OUTPUT_EVENTS else None
        last_output_at = output_at or (None if before is None else before.output_at)
        self._assign(
            self._state.activity, key, AttemptActivity(event.seq, event.created_at, last_output_at)
        )

    def add_request(self, request: Request) -> None:
        self._known(request.session_id)
        if request.run_id not in self._state.runs.rows:
            raise NotFound(f"no run {request.run_id}", {"run_id": request.run_id})
        if request.id in self._state.requests.rows:
            raise Conflict(f"request {request.id} already exists")
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
        stored = Thread(thread.id, plain(thread.state))
        self._assign(self._state.threads, (session_id, provider), stored)
        threads = {**session.threads, provider: thread.id}
        self._set(self._state.sessions, evolve(session, threads=threads))

    def forget_threads(self, session_id: str) -> None:
        session = self._known(session_id)
        for provider in session.threads:
            self._remove(self._state.threads, (session_id, provider))
        self._set(self._state.sessions, evolve(session, threads={}))

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        granted = {grant.principal: grant.role for grant in grants}
        if len(granted) < len(grants):
            raise Conflict("a principal has two grants")
        pending, seen = [self._known(session_id).id], set[str]()
        while pending:
            seen.add(member_id := pending.pop())
            children = self._state.sessions.find("parent", member_id)
            pending += [child.id for child in children if child.id not in seen]
            named = self._state.grants.get(member_id, {}).keys() | granted.keys()
            for principal in named:
                row = StoredGrant(member_id, principal)
                stored = row if principal in granted else None
                self._set_or_remove(self._state.granted, row.id, stored)
            self.topics.update(f"access:{principal}" for principal in named)
            self._assign(self._state.grants, member_id, granted)

    def add_notice(self, notice: Notice) -> None:
        if any(other.target == notice.target for other in self.notices_about(notice.subject)):
            raise Conflict(f"{notice.target} has a notice of {notice.subject}")
        self._add(self._state.notices, notice)
        self.topics.update((f"notice:{notice.id}", "notices"))

    def put_notice(self, notice: Notice) -> None:
        self._replace(self._state.notices, notice)
        self.topics.update((f"notice:{notice.id}", "notices"))

    def claim_notice(self, notice: Notice, claimant: str, until: datetime) -> bool:
        found = self._state.notices.rows.get(notice.id)
        if found is None or notice.next_at is None:
            return False
        if (found.state, found.next_at) != (notice.state, notice.next_at):
            return False
        self._replace(self._state.notices, evolve(found, claimed_by=claimant, next_at=until))
        return True

    def add_push_subscription(self, subscription: PushSubscription) -> None:
        if self.push_subscription_of(subscription.endpoint) is not None:
            raise Conflict("the endpoint has a subscription")
        self._add(self._state.push_subscriptions, subscription)
        self.topics.add("push")

    def put_push_subscription(self, subscription: PushSubscription) -> None:
        self._replace(self._state.push_subscriptions, subscription)
        self.topics.add("push")

    def remove_push_subscription(self, subscription_id: str) -> None:
        self._set_or_remove(self._state.push_subscriptions, subscription_id, None)

    def set_notice_cursor(self, cursor: str | None) -> None:
        if cursor is None:
            self._remove(self._state.notice_cursor, None)
        else:
            self._assign(self._state.notice_cursor, None, cursor)

    def delete_notices(self, *, before: datetime, limit: int) -> int:
        done = [
            notice
            for notice in self._state.notices.find("all")
            if notice.next_at is None and notice.updated_at < before
        ]
        oldest = sorted(done, key=lambda notice: notice.updated_at)[:limit]
        for notice in oldest:
            self._set_or_remove(self._state.notices, notice.id, None)
        return len(oldest)

    def put_seen(self, reader: str, session_id: str, seq: int) -> None:
        self._known(session_id)
        self._assign(self._state.seen, (reader, session_id), seq)

    def add_token(self, token: AccessToken, token_hash: str) -> None:
        if token_hash in self._state.token_ids:
            raise Conflict("the token already exists")
        self._add(self._state.access_tokens, token)
        self._assign(self._state.token_ids, token_hash, token.id)

    def put_token(self, token: AccessToken) -> None:
        self._replace(self._state.access_tokens, token)
        self.topics.add(f"token:{token.id}")

    def mark_token_used(self, token_id: str, at: datetime) -> None:
        token = self._state.access_tokens.rows.get(token_id)
        if token is not None and (token.seen_at is None or token.seen_at < at):
            self._replace(self._state.access_tokens, evolve(token, seen_at=at))

    def add_audit(self, entry: AuditEntry) -> None:
        if entry.seq != len(self._state.audit) + 1:
            raise Conflict(f"audit entry {entry.seq} already exists, or one is missing before it")
        self._assign(self._state.audit, entry.seq, evolve(entry, detail=plain(entry.detail)))

    def remove_token(self, token_id: str) -> None:
        hashes = self._state.token_ids
        for token_hash in [key for key, value in hashes.items() if value == token_id]:
            self._undo_steps.append(partial(hashes.__setitem__, token_hash, hashes.pop(token_hash)))
        self._set_or_remove(self._state.access_tokens, token_id, None)

    def add_record(self, record: IdempotencyRecord, *, max_count: int, max_size: int) -> None:
        state, caller = self._state, record.caller
        if self.idempotency(caller, record.call, record.key) is not None:
            raise Conflict("the idempotency key already has a record", {"key": record.key})
        state.record_count += 1  # not undone: gaps are allowed
        stored = StoredRecord(state.record_count, record, len(record.answer.encode()))
        self._set(state.records, stored)
        size = state.record_sizes.get(caller, 0) + stored.size
        self._assign(state.record_sizes, caller, size)
        for _ in range(max_deleted_records(stored.size)):
            first = next(state.records.find("caller", caller))
            younger = state.record_sizes[caller] - first.size
            if state.records.count("caller", caller) <= max_count and younger < max_size:
                break
            if first is stored:
                break
            self._delete_record(first)

    def _delete_record(self, stored: StoredRecord) -> None:
        caller = stored.record.caller
        self._set_or_remove(self._state.records, stored.id, None)
        remaining = self._state.record_sizes[caller] - stored.size
        if self._state.records.count("caller", caller):
            self._assign(self._state.record_sizes, caller, remaining)
        else:
            self._remove(self._state.record_sizes, caller)

    def delete_records(self, *, before: datetime, limit: int) -> int:
        first = islice(self._state.records.find("all"), limit)
        old = [stored for stored in first if stored.record.created_at < before]
        for stored in old:
            self._delete_record(stored)
        return len(old)

    def delete_records_of(self, caller: str, *, limit: int) -> int:
        oldest = list(islice(self._state.records.find("caller", caller), limit))
        for stored in oldest:
            self._delete_record(stored)
        return len(oldest)

    def notify(self, topic: str) -> None:
        self.topics.add(topic)
        self._notified[topic] = self._notified.get(topic, 0) + 1

    def suppress(self, topic: str) -> int:
        if topic not in self.topics:
            return 0
        self.topics.discard(topic)
        return self._notified.pop(topic, 1)


def _truncate(entries: list[Any], length: int) -> None:
    del entries[length:]


def _stored_data(draft: Draft) -> Mapping[str, Any]:
    if draft.text is not None:
        return dict(json.loads(draft.text))
    return Encoded(encode_in_slices(draft.data)) if is_long(draft.data) else plain(draft.data)

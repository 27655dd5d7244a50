"""The data of a store in memory: tables of rows with indexes."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from attrs import frozen

from agent_orchestrator.domain.access import GrantRole
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.lifecycle import ACTIVE, RunStatus
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
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.stores.encoding import new_epoch


class Identified(Protocol):
    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=Identified)


class Table(Generic[Row]):
    """Rows by id, with indexes. Each index maps a key to the sorted ids of its rows."""

    def __init__(self, **indexes: Callable[[Row], Hashable | None]) -> None:
        self.rows: dict[str, Row] = {}
        self._indexes: dict[str, tuple[Callable[[Row], Hashable | None], dict[Any, list[str]]]] = {
            name: (key_of, {}) for name, key_of in {"all": lambda _: True, **indexes}.items()
        }

    def set(self, row_id: str, row: Row | None) -> None:
        """Insert or replace a row. With None, remove it."""
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
                if not ids_of[old]:
                    del ids_of[old]
            if new is not None:
                insort(ids_of.setdefault(new, []), row_id)

    def find(
        self,
        index: str,
        key: Hashable = True,
        *,
        after: str | None = None,
        newest: bool = False,
    ) -> Iterator[Row]:
        """Yield the rows with a key, by id.

        :param after: an id; only the rows after it.
        :param newest: yield the greatest id first.
        """
        ids = self._indexes[index][1].get(key, [])
        if newest:
            positions = range((len(ids) if after is None else bisect_left(ids, after)) - 1, -1, -1)
        else:
            positions = range(0 if after is None else bisect_right(ids, after), len(ids))
        for position in positions:
            yield self.rows[ids[position]]

    def count(self, index: str, key: Hashable = True) -> int:
        return len(self._indexes[index][1].get(key, ()))


@frozen
class AttemptActivity:
    """The times of an attempt's last event and last output."""

    last_seq: int
    event_at: datetime
    output_at: datetime | None


@frozen
class StoredGrant:
    """An index row: this principal has a grant on this session."""

    session_id: str
    principal: str

    @property
    def id(self) -> str:
        return f"{self.session_id} {self.principal}"


@frozen
class StoredPruning:
    """What was deleted of a session's log.

    :param position: of the last deleted event, without pieces.
    :param mark: the number of this deletion among all of the store.
    """

    log: PrunedLog
    position: int = 0
    mark: int = 0


@frozen
class StoredRecord:
    """An idempotency record with its number in order of insertion."""

    number: int
    record: IdempotencyRecord
    size: int
    """Bytes of the answer in UTF-8."""

    @property
    def id(self) -> str:
        return f"{self.number:020}"


class State:
    def __init__(self) -> None:
        self.epoch = new_epoch()
        self.sessions = Table[Session](
            parent=lambda session: session.parent_session_id, owner=lambda session: session.owner
        )
        self.messages = Table[Message](
            session=lambda message: message.session_id,
            run=lambda message: message.run_id,
            waiting=lambda message: message.session_id if _waits(message) else None,
            child=lambda message: message.source.run_id if message.source.kind == "child" else None,
        )
        self.images: dict[str, bytes] = {}
        """Image bytes by digest."""
        self.image_uses: dict[str, frozenset[str]] = {}
        """Digests of a message's images, by message id."""
        self.image_users: dict[str, int] = {}
        """Number of messages that use an image, by digest."""
        self.runs = Table[Run](
            session=lambda run: run.session_id,
            parent=lambda run: run.parent_run_id,
            status=lambda run: run.status,
            active=lambda run: run.session_id if run.status in ACTIVE else None,
            queue=lambda run: run.session_id if run.status is RunStatus.QUEUED else None,
        )
        self.requests = Table[Request](
            run=lambda request: request.run_id,
            session=lambda request: request.session_id,
            pending=lambda request: request.is_open or None,
            asked=_asked_session,
        )
        self.log: list[Event | None] = []
        """All events. A deleted one is None."""
        self.logs: dict[str, list[Event | None]] = {}
        self.positions: dict[str, list[int]] = {}
        """Positions of a session's events in ``log``, by session id."""
        self.pruned: dict[str, StoredPruning] = {}
        """By session id."""
        self.jobs: dict[str, datetime] = {}
        """When each job is due."""
        self.activity: dict[tuple[str, int], AttemptActivity] = {}
        """By run id and attempt. Attempt 0 collects events that belong to no attempt."""
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.audit: dict[int, AuditEntry] = {}
        self.access_tokens = Table[AccessToken]()
        self.notices = Table[Notice](
            subject=lambda notice: notice.subject,
            due=lambda notice: notice.next_at is not None or None,
            state=lambda notice: notice.state,
        )
        self.push_subscriptions = Table[PushSubscription](
            endpoint=lambda subscription: subscription.endpoint,
            principal=lambda subscription: subscription.principal,
        )
        self.notice_cursor: dict[None, str] = {}
        """The cursor under the key None; empty if there is none."""
        self.token_ids: dict[str, str] = {}
        self.tokens: dict[str, tuple[str, int]] = {}
        self.seen: dict[tuple[str, str], int] = {}
        """The ``seq`` up to which a reader has read a session's log, by reader and session id."""
        self.grants: dict[str, dict[str, GrantRole]] = {}
        self.granted = Table[StoredGrant](principal=lambda grant: grant.principal)
        self.threads: dict[tuple[str, str], Thread] = {}
        self.records = Table[StoredRecord](
            caller=lambda stored: stored.record.caller,
            key=lambda stored: (stored.record.caller, stored.record.call, stored.record.key),
        )
        self.record_sizes: dict[str, int] = {}
        """Total bytes of a caller's stored answers, by caller."""
        self.record_count = 0
        """Number of records added so far, deleted ones included."""


def _waits(message: Message) -> bool:
    return message.run_id is None and message.delivery == "queued"


def _asked_session(request: Request) -> str | None:
    """Return the session whose agent must answer the request now, or None."""
    is_for_parent = request.is_open and request.audience == "parent"
    return request.parent_session_id if is_for_parent else None

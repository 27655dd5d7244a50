"""Changes of a store."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from attrs import Factory, field, frozen

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Attempt, Message, Request, Run, Session, Thread
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.domain.search import Searchable, searchable
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.queries import IdempotencyRecord, View

_DELETED_RECORDS: Final = 64
_SIZE_PER_RECORD: Final = 16 * 2**10


def max_deleted_records(size: int) -> int:
    """Return the maximum number of records that :meth:`Transaction.add_record` deletes.

    It is 64, plus one for each 16 KiB of the new answer. One long answer can be as large as 100,000
    short ones, and deleting all of these at once would delay every other change.

    :param size: bytes of the new answer in UTF-8.
    """
    return _DELETED_RECORDS + size // _SIZE_PER_RECORD


_LAST_LINE: Final = 200
_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)))


def line_said(event_type: str, data: Mapping[str, Any]) -> str | None:
    """Return the last line that an agent says in an event, at most 200 characters; None if it says nothing."""
    said: Any = data if event_type == EventType.AGENT_MESSAGE else None
    if event_type == EventType.RUN_COMPLETED:  # an agent may have only a result
        said = data.get("result")
    text = said.get("text") if isinstance(said, Mapping) else None
    if not isinstance(text, str):
        return None
    lines = (line.translate(_CONTROLS).strip() for line in text[-5 * _LAST_LINE :].splitlines())
    found = [line for line in lines if line]
    return found[-1][:_LAST_LINE] if found else None


def check_deletion(through: int, seqs: Sequence[int]) -> None:
    """Raise :exc:`ValueError` if :meth:`Transaction.delete_events` is given both."""
    if through and seqs:
        raise ValueError("`through` and `seqs` need two calls: one call deletes either")


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
    searchable: Searchable | None = field(
        default=Factory(lambda self: searchable(self.event_type, self.data), takes_self=True)
    )
    """Its content for the search. Required together with ``text``."""
    line: str | None = field(
        default=Factory(lambda self: line_said(self.event_type, self.data), takes_self=True)
    )
    """The last line that an agent says in it. Required together with ``text``."""


@frozen
class PastEvent:
    """An event of a log that was kept elsewhere, with its own number and time."""

    seq: int
    draft: Draft
    at: datetime


def last_line(drafts: Sequence[Draft]) -> str | None:
    """Return the last line that an agent says in some events; None if it says nothing."""
    return next((draft.line for draft in reversed(drafts) if draft.line is not None), None)


class Transaction(View, Protocol):
    """A view that can also write. It sees its own writes. All of them are committed, or none."""

    def add_session(self, session: Session) -> None: ...

    def put_session(self, session: Session) -> None:
        """Replace a session's fields, except ``last_seq``, ``last_line``, ``threads`` and
        ``oldest_cursor``.
        """
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
        """Append events with the session's next ``seq``s, set its ``updated_at`` and, if its agent says
        something, its ``last_line`` (:func:`last_line`). Notify ``session:<id>`` and ``events``.

        :return: the last ``seq``.
        """
        ...

    def add_past(
        self,
        session_id: str,
        events: Sequence[PastEvent],
        *,
        oldest_cursor: int = 0,
        digest: str = "",
    ) -> None:
        """Add events that keep their ``seq`` and time. Notify as :meth:`append` does.

        A ``seq`` that is left out counts as a deleted event, which the audit trail has.

        :param events: in order, all after the session's last ``seq``.
        :param oldest_cursor: with the first events of a session: the earlier ones are not kept.
        :param digest: of the events up to it; see :class:`~agent_orchestrator.domain.model.PrunedLog`.
        """
        ...

    def delete_events(
        self, session_id: str, *, through: int = 0, seqs: Sequence[int] = (), digest: str = ""
    ) -> int:
        """Delete events of a session, and what the search has of them. Its newest event always stays.

        Either ``through`` or ``seqs`` is given: what one deletes decides what the search needs of the rest.

        :param through: delete all events up to this ``seq``, which becomes the ``oldest_cursor``.
        :param seqs: delete these. They leave gaps in the log.
        :param digest: the digest of the events up to ``through``; see
            :class:`~agent_orchestrator.domain.model.PrunedLog`.
        :return: the number of deleted events.
        :raises ValueError: if both are given (:func:`check_deletion`).
        """
        ...

    def claim_job(self, name: str, *, now: datetime, until: datetime) -> bool:
        """Claim a job of the store's engines if it is due, so that no other one does it before a time.

        :return: whether it was due.
        """
        ...

    def mark_pruned_audited(self, session_id: str) -> None:
        """Note that the audit trail has all that was deleted of a session's log."""
        ...

    def put_attempt(self, attempt: Attempt) -> None:
        """Add an attempt, or replace the one of the same run and number, except its ``token_hash``.

        :raises Conflict: if another attempt has the same token.
        """
        ...

    def put_thread(self, session_id: str, provider: str, thread: Thread) -> None: ...

    def forget_threads(self, session_id: str) -> None:
        """Remove the conversations of a session, so that its next run begins a new one."""
        ...

    def put_grants(self, session_id: str, grants: Sequence[Grant]) -> None:
        """Replace the grants of a session and its descendants. Notify ``access:<principal>`` for every
        principal of an old or a new grant.
        """
        ...

    def add_notice(self, notice: Notice) -> None:
        """Add a notice, and notify ``notices`` and ``notice:<id>``.

        :raises Conflict: if its target has a notice of the same subject.
        """
        ...

    def put_notice(self, notice: Notice) -> None:
        """Replace a notice, and notify ``notices`` and ``notice:<id>``."""
        ...

    def claim_notice(self, notice: Notice, claimant: str, until: datetime) -> bool:
        """Claim a notice, so that no other engine of the store sends it before a time. Notify nothing.

        Sets ``claimed_by`` and ``next_at``, unless the notice's state or ``next_at`` has changed since it
        was read. So of several engines that have read the same notice, one claims it.

        :return: whether it was claimed.
        """
        ...

    def add_push_subscription(self, subscription: PushSubscription) -> None:
        """Add a push subscription, and notify ``push``.

        :raises Conflict: if there is one of the same endpoint.
        """
        ...

    def put_push_subscription(self, subscription: PushSubscription) -> None:
        """Replace a push subscription, and notify ``push``."""
        ...

    def remove_push_subscription(self, subscription_id: str) -> None:
        """Remove a push subscription, if it exists."""
        ...

    def set_notice_cursor(self, cursor: str | None) -> None: ...

    def delete_notices(self, *, before: datetime, limit: int) -> int:
        """Delete notices for which nothing is left to do, and whose state changed before a time.

        :return: the number of deleted notices.
        """
        ...

    def put_seen(self, reader: str, session_id: str, seq: int) -> None:
        """Record how far a reader has read a session's log (:meth:`~SessionQueries.seen`)."""
        ...

    def add_token(self, token: AccessToken, token_hash: str) -> None: ...

    def put_token(self, token: AccessToken) -> None:
        """Replace a token, and notify ``token:<id>``."""
        ...

    def mark_token_used(self, token_id: str, at: datetime) -> None:
        """Set ``seen_at`` of a token, if the token exists and its ``seen_at`` is not later."""
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

    def suppress(self, topic: str) -> int:
        """Withdraw this change's notifications of the topic. Return the number of calls of :meth:`notify`, or 1 for a
        topic of the store.
        """
        ...

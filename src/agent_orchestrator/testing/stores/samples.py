"""Sample objects for stores under test."""

from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import evolve

from agent_orchestrator.domain.ids import SortableIds
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Message,
    Request,
    Run,
    Session,
    Source,
)
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.queries import IdempotencyRecord
from agent_orchestrator.ports.store import Store

NOW = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
HARD_TEXT = 'a\0b ‘ü’ \u2028 😀 \r\n\t\x1b \x7f \ufeff "quoted" \\ \'; DROP TABLE runs; --'

ids = SortableIds()


def a_session(**fields: Any) -> Session:
    """Return a session with default fields, except those given."""
    session_id = fields.pop("id", None) or ids("ses")
    plain = Session(
        id=session_id,
        title=None,
        owner="local",
        provider=None,
        model=None,
        cwd="/",
        status="open",
        parent_session_id=None,
        parent_run_id=None,
        root_session_id=session_id,
        depth=0,
        metadata={},
        threads={},
        last_seq=0,
        created_at=NOW,
        updated_at=NOW,
    )
    return evolve(plain, **fields)


def a_message(session_id: str, **fields: Any) -> Message:
    """Return a message with default fields, except those given."""
    plain = Message(
        id=ids("msg"),
        session_id=session_id,
        role="user",
        source=Source(),
        text="hello",
        run_id=None,
        delivery="queued",
        created_at=NOW,
    )
    return evolve(plain, **fields)


def a_run(session_id: str, **fields: Any) -> Run:
    """Return a queued run with default fields, except those given."""
    plain = Run(
        id=ids("run"),
        session_id=session_id,
        message_id=None,
        parent_run_id=None,
        provider="demo",
        model=None,
        status=RunStatus.QUEUED,
        waiting_on=None,
        attempt=1,
        worker_id=None,
        thread_id=None,
        result=None,
        error=None,
        usage=None,
        exit_code=None,
        cancel_requested_at=None,
        cancel_reason=None,
        created_at=NOW,
        started_at=None,
        finished_at=None,
    )
    return evolve(plain, **fields)


def a_notice(subject: str, **fields: Any) -> Notice:
    """Return a queued notice with default fields, except those given."""
    plain = Notice(
        id=ids("ntc"),
        kind="request",
        target="desk",
        subject=subject,
        session_id="ses_1",
        run_id="run_1",
        request_id=subject,
        state="queued",
        created_at=NOW,
        updated_at=NOW,
        next_at=NOW,
    )
    return evolve(plain, **fields)


def a_subscription(principal: str, **fields: Any) -> PushSubscription:
    """Return a push subscription with default fields, except those given."""
    subscription_id = ids("psh")
    plain = PushSubscription(
        id=subscription_id,
        principal=principal,
        admin=False,
        token_id=None,
        name="phone",
        endpoint=f"https://push.example/{subscription_id}",
        p256dh="key",
        auth="secret",
        events=("request",),
        created_at=NOW,
        seen_at=NOW,
    )
    return evolve(plain, **fields)


def a_record(**fields: Any) -> IdempotencyRecord:
    """Return an idempotency record with default fields, except those given."""
    plain = IdempotencyRecord("local", "POST /sessions", "key", "print", "{}", NOW)
    return evolve(plain, **fields)


def drafts(*texts: str, run_id: str | None = None) -> list[Draft]:
    """Return an event for each text."""
    return [Draft("agent.message", {"text": text}, run_id, 1 if run_id else None) for text in texts]


async def put(store: Store, *things: Session | Message | Run) -> None:
    """Add objects in one transaction."""

    def change(transaction: Transaction) -> None:
        for thing in things:
            if isinstance(thing, Session):
                transaction.add_session(thing)
            elif isinstance(thing, Message):
                transaction.add_message(thing)
            else:
                transaction.add_run(thing)

    await store.transact(change)


def a_request(run: Run, **fields: Any) -> Request:
    """Return a request of a run, with default fields except those given."""
    return evolve(
        Request(
            id=ids("req"),
            session_id=run.session_id,
            run_id=run.id,
            attempt=1,
            root_session_id=run.session_id,
            parent_session_id=None,
            kind="approval_request",
            text="May I?",
            detail=None,
            options=None,
            status="pending",
            decision=None,
            answer=None,
            scope=None,
            decided_by=None,
            created_at=NOW,
            expires_at=NOW + timedelta(hours=1),
            resolved_at=None,
        ),
        **fields,
    )

"""The states of notices. Each function is part of a transaction. Receipts are logged in the session."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import evolve

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.notices import Notice, NoticeKind, NoticeState
from agent_orchestrator.engine.core import Core
from agent_orchestrator.ports.changes import Draft, Transaction
from agent_orchestrator.ports.channel import SendFailed

logger = logging.getLogger("agent_orchestrator.notices")

MAX_ATTEMPTS: Final = 8
"""Number of attempts after which a notice has failed."""

_MAX_ATTEMPTS_BY_KIND: Final[Mapping[NoticeKind, int]] = {
    "request": MAX_ATTEMPTS,
    "finished": MAX_ATTEMPTS,
    "failed": MAX_ATTEMPTS,
    "test": 1,  # somebody waits for the outcome
}

MAX_WITHDRAWALS: Final = 3
"""Maximum number of attempts to withdraw a notice."""

FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 1800.0
"""Bounds of the seconds between two attempts. Each pause is four times as long as the one before."""

MAX_ERROR: Final = 500
"""Maximum number of characters of an error."""


def can_withdraw(core: Core, notice: Notice) -> bool:
    """Return whether the channel of a notice can remove it from the device that shows it."""
    if notice.principal is not None:
        return core.config.push is not None
    target = core.config.targets.get(notice.target)
    return target is not None and target.channel.withdraws


def set_state(core: Core, tx: Transaction, notice: Notice, state: NoticeState, **more: Any) -> None:
    """Change the state of a notice. Without ``next_at`` it is not sent again."""
    changes = {"next_at": None, "claimed_by": None} | more
    tx.put_notice(evolve(notice, state=state, updated_at=core.now(), **changes))


def withdraw(core: Core, tx: Transaction, notice: Notice) -> None:
    """Withdraw a notice because its request was closed."""
    if notice.state == "queued":
        set_state(core, tx, notice, "gone", error=None)
    elif notice.state in ("sent", "shown") and can_withdraw(core, notice):
        set_state(core, tx, notice, "withdrawing", next_at=core.now(), attempts=0)


def postpone(tx: Transaction, queued: Notice, moment: datetime) -> None:
    """Send a queued notice later."""
    notice = tx.notice(queued.id)
    if notice is not None and notice.state == "queued":
        tx.put_notice(evolve(notice, next_at=moment, claimed_by=None))


def record_sent(core: Core, tx: Transaction, sent: Notice) -> None:
    """Record that a channel accepted a notice, or withdrew it.

    :param sent: the notice as it was when the attempt began.
    """
    notice = tx.notice(sent.id)
    if notice is None:
        return
    attempts = notice.attempts + 1
    if sent.state == "withdrawing":
        if notice.state == "withdrawing":
            set_state(core, tx, notice, "gone", attempts=attempts, error=None)
        return
    now = core.now()
    notice = evolve(notice, attempts=attempts, sent_at=now, error=None)
    if notice.state == "queued":
        set_state(core, tx, notice, "sent")
    elif notice.state == "gone" and can_withdraw(core, notice):
        # Its request was closed while it was sent.
        set_state(core, tx, notice, "withdrawing", next_at=now, attempts=0)
    else:
        tx.put_notice(notice)
    log_receipt(core, tx, notice, "sent")


def record_failure(core: Core, tx: Transaction, sent: Notice, failure: SendFailed) -> None:
    """Record a failed attempt. Schedule another, unless this was the last.

    :param sent: the notice as it was when the attempt began.
    """
    notice = tx.notice(sent.id)
    if notice is None or notice.state != sent.state:
        return
    attempts, error = notice.attempts + 1, str(failure)[:MAX_ERROR]
    notice = evolve(notice, attempts=attempts, error=error)
    is_withdrawal = notice.state == "withdrawing"
    retry_at = core.now() + timedelta(seconds=retry_s(attempts, failure.retry_after_s))
    is_last = (
        failure.is_final
        or attempts >= (MAX_WITHDRAWALS if is_withdrawal else _MAX_ATTEMPTS_BY_KIND[notice.kind])
        or (notice.deadline is not None and retry_at >= notice.deadline)
    )
    if not is_last:
        tx.put_notice(evolve(notice, next_at=retry_at, claimed_by=None))
        return
    set_state(core, tx, notice, "gone" if is_withdrawal else "failed")
    if not is_withdrawal:
        logger.warning(
            "notice %s was not sent to %s: %s",
            notice.id,
            notice.target,
            failure,
        )
        log_receipt(core, tx, notice, "failed")
        _try_next(core, tx, notice)


def record_shown(core: Core, tx: Transaction, notice: Notice, *, is_click: bool) -> Notice:
    """Record that a device has shown a notice, or that somebody has clicked on it. Return the notice.

    Drop the queued notices of the same principal's other devices, and those for fallback targets.
    """
    now = core.now()
    is_first = notice.shown_at is None
    clicked_at = notice.clicked_at or (now if is_click else None)
    shown = evolve(notice, shown_at=notice.shown_at or now, clicked_at=clicked_at, error=None)
    if notice.state in ("queued", "sent", "failed"):
        shown = evolve(shown, state="shown", next_at=None, claimed_by=None, updated_at=now)
    if shown != notice:
        tx.put_notice(shown)
    if not is_first:
        return shown
    log_receipt(core, tx, shown, "shown")
    for other in tx.notices_about(notice.subject):
        is_replaced = other.is_fallback or other.principal == notice.principal
        if other.id != notice.id and other.state == "queued" and is_replaced:
            set_state(core, tx, other, "gone", error=None)
    return shown


def _try_next(core: Core, tx: Transaction, failed: Notice) -> None:
    """Notify the next device of a principal now, because one has failed. If no device is left, notify the
    fallback targets.
    """
    if failed.principal is None:
        return
    queued = [one for one in tx.notices_about(failed.subject) if one.state == "queued"]
    later = [one for one in queued if one.principal == failed.principal and not one.attempts]
    if later:
        _send_soon(core, tx, min(later, key=lambda one: (one.next_at or core.now(), one.id)))
        return
    others = [one for one in tx.notices_about(failed.subject) if one.principal is not None]
    if any(one.state in ("queued", "sent", "shown") for one in others):
        return
    for notice in queued:
        if notice.is_fallback:
            _send_soon(core, tx, notice)


def _send_soon(core: Core, tx: Transaction, notice: Notice) -> None:
    """Make a notice due now, or at the end of quiet hours."""
    now = core.now()
    is_being_sent = notice.claimed_by is not None
    if notice.next_at is not None and notice.next_at > now and not is_being_sent:
        soon = core.config.notify.after_quiet_hours(now)
        tx.put_notice(evolve(notice, next_at=min(notice.next_at, soon)))


def retry_s(attempts: int, minimum_s: float | None = None) -> float:
    """Return the seconds until the next attempt."""
    pause = FIRST_RETRY_S * 4.0 ** (attempts - 1)
    return min(max(pause, minimum_s or 0), LONGEST_RETRY_S)


def log_receipt(core: Core, tx: Transaction, notice: Notice, state: NoticeState) -> None:
    """Log the receipt of a request's notice in the request's session."""
    if notice.kind != "request" or notice.session_id is None:
        return
    if tx.session(notice.session_id) is None:
        return
    data: Mapping[str, Any] = {
        "request_id": notice.request_id,
        "notice_id": notice.id,
        "target": notice.target,
        "state": state,
    }
    if state == "failed":
        data = {**data, "error": notice.error}
    draft = Draft(EventType.REQUEST_NOTIFIED, data, notice.run_id)
    tx.append(notice.session_id, [draft], core.now())

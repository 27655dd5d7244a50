"""The task that sends the notices of the outbox."""

import logging
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from agent_orchestrator.domain.errors import Unavailable
from agent_orchestrator.domain.notices import Notice, PushSubscription
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.notice_content import content_of
from agent_orchestrator.engine.notice_levels import level_of
from agent_orchestrator.engine.notice_states import postpone, record_failure, record_sent, set_state
from agent_orchestrator.engine.notifier import Waiter
from agent_orchestrator.engine.persistence import read_with_retry, transact_with_retry
from agent_orchestrator.engine.push_devices import after_quiet, holder_of, is_muted, may_be_notified
from agent_orchestrator.host import use_host
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.ports.queries import View

logger = logging.getLogger("agent_orchestrator.notices")

NOTICES_TOPIC: Final = "notices"

MAX_AT_ONCE: Final = 16
"""Maximum number of notices that are sent at once. Each target gets one at a time."""

LONGEST_PAUSE_S: Final = 60.0
"""Maximum seconds between two reads of the clock while a notice is due later: the clock may be set and the
machine may sleep."""

PROBLEM_PAUSE_S: Final = 60.0
"""Seconds until a target is used again after an unexpected error of this program."""

CLAIM_MARGIN_S: Final = 15.0
"""Seconds after the longest attempt until another engine of the store may send a notice, because the one
that claimed it has ended or hangs."""

RETRY_S: Final = 1.0
"""Seconds until the next read if the store is unavailable."""


@define
class _Deliveries:
    core: Core
    tasks: TaskGroup
    waiter: Waiter
    busy: set[str] = field(factory=set)
    """The targets to which a notice is being sent."""

    async def start_due(self) -> float | None:
        """Start sending the notices that are due.

        Return the seconds until the next one is due; None if there is none, or :data:`MAX_AT_ONCE` are being
        sent.
        """
        while len(self.busy) < MAX_AT_ONCE:
            now, busy = self.core.now(), frozenset(self.busy)
            due = await self.core.store.read(
                lambda view, now=now, busy=busy: view.next_notice(now, excluding=busy)  # type: ignore[misc]
            )
            if due is None:
                next_at = await self.core.store.read(
                    lambda view, busy=busy: view.next_notice_at(excluding=busy)  # type: ignore[misc]
                )
                return None if next_at is None else max((next_at - now).total_seconds(), 0.0)
            if self.core.store.lease is not None:
                until = now + timedelta(seconds=self._longest_s(due) + CLAIM_MARGIN_S)
                claim = partial(_claim, due, self.core.instance, until)
                if not await self.core.store.transact(claim):
                    continue  # another engine was faster, or it is not wanted any more
            self.busy.add(due.target)
            self.tasks.start_soon(self._send, due)
        return None

    def _longest_s(self, notice: Notice) -> float:
        """Return the maximum seconds of one attempt."""
        target, push = self.core.config.targets.get(notice.target), self.core.config.push
        if target is not None:
            return target.timeout_s
        return 0.0 if push is None else push.timeout_s

    async def _send(self, notice: Notice) -> None:
        try:
            await send(self.core, notice)
        except Exception:  # an error of notices must not stop runs
            logger.exception("notice %s cannot be sent or recorded", notice.id)
            await anyio.sleep(PROBLEM_PAUSE_S)
        finally:
            self.busy.discard(notice.target)
            self.waiter.notify()


async def deliver(core: Core) -> None:
    """Send notices when they are due, as long as the engine runs."""
    with core.notifier.subscribe(NOTICES_TOPIC) as waiter:
        async with anyio.create_task_group() as tasks:
            deliveries = _Deliveries(core, tasks, waiter)
            while True:
                waiter.clear()
                try:
                    delay = await deliveries.start_due()
                except Exception as error:
                    is_known = isinstance(error, Unavailable)
                    text = "notices cannot be sent now, trying again: %s"
                    logger.warning(text, error, exc_info=not is_known)
                    delay = RETRY_S
                with anyio.move_on_after(None if delay is None else min(delay, LONGEST_PAUSE_S)):
                    await waiter.wait()


def _claim(due: Notice, claimant: str, until: datetime, tx: Transaction) -> bool:
    return tx.claim_notice(due, claimant, until)


async def send(core: Core, notice: Notice) -> None:
    """Send one notice, or withdraw it, and record the outcome."""
    content, device = await read_with_retry(core, lambda view: _prepare(core, view, notice))
    if content is None:
        await transact_with_retry(core, lambda tx: _drop(core, tx, notice))
        return
    if device is not None and notice.kind != "test" and notice.state == "queued":
        now = core.now()
        if (later := after_quiet(core.config.notify, device, now)) > now:
            await transact_with_retry(core, lambda tx: postpone(tx, notice, later))
            return
    try:
        with use_host(core.config.host):
            await _attempt(core, notice, device, content)
    except SendFailed as failure:
        change = partial(_record_failure, core, notice, failure)
        await transact_with_retry(core, change)
    else:
        await transact_with_retry(core, lambda tx: record_sent(core, tx, notice))


def _prepare(
    core: Core, view: View, notice: Notice
) -> tuple[NoticeContent | None, PushSubscription | None]:
    """Return the content, or None if it is no longer wanted, and the device, or None if it is for a target."""
    content = content_of(core, view, notice)
    if content is None or _is_muted(view, notice):
        return None, None
    if notice.principal is None:
        return content, None
    device = view.push_subscription(notice.target)
    if device is None or not _may_get(core, view, device, notice):
        return None, None
    return content, device


def _is_muted(view: View, notice: Notice) -> bool:
    """Return whether a notice was not sent yet, and notices of its session were switched off meanwhile."""
    session = None if notice.session_id is None else view.session(notice.session_id)
    return notice.state == "queued" and session is not None and level_of(view, session) == "none"


def _may_get(core: Core, view: View, device: PushSubscription, notice: Notice) -> bool:
    """Return whether a device may still get a notice: its access may have been withdrawn meanwhile."""
    holder = holder_of(core, view, device)
    if holder is None:
        return False
    if notice.kind == "test" or notice.state == "withdrawing":
        return True
    session = None if notice.session_id is None else view.session(notice.session_id)
    return (
        session is not None
        and not is_muted(view, device, session)
        and may_be_notified(view, holder, session, notice.kind)
    )


async def _attempt(
    core: Core, notice: Notice, device: PushSubscription | None, content: NoticeContent
) -> None:
    """Send a notice once.

    :raises SendFailed: if that failed for any reason.
    """
    target, push = core.config.targets.get(notice.target), core.config.push
    if device is not None and push is not None:
        timeout_s, sending = push.timeout_s, partial(push.send, device, content)
    elif target is not None:
        timeout_s, sending = target.timeout_s, partial(target.channel.send, content)
    else:
        raise SendFailed("the settings no longer have this target", is_final=True)
    try:
        with anyio.fail_after(timeout_s):
            await sending()
    except TimeoutError:
        raise SendFailed(f"no answer within {timeout_s:g} s") from None
    except SendFailed:
        raise
    except Exception as error:
        logger.exception("notice %s cannot be sent to %s", notice.id, notice.target)
        raise SendFailed(f"internal error: {type(error).__name__}") from error


def _record_failure(core: Core, sent: Notice, failure: SendFailed, tx: Transaction) -> None:
    record_failure(core, tx, sent, failure)
    if failure.is_gone and sent.principal is not None:
        tx.remove_push_subscription(sent.target)


def _drop(core: Core, tx: Transaction, sent: Notice) -> None:
    """Record that a notice is no longer wanted. Remove its device if the device's token has ended."""
    notice = tx.notice(sent.id)
    if notice is not None and notice.state in ("queued", "withdrawing"):
        set_state(core, tx, notice, "gone")
    device = None if sent.principal is None else tx.push_subscription(sent.target)
    if device is not None and holder_of(core, tx, device) is None:
        tx.remove_push_subscription(device.id)

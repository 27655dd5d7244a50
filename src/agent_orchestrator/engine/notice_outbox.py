"""The outbox of notices, filled by the events of the log."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from attrs import evolve, frozen

from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Request, Session
from agent_orchestrator.domain.notices import Notice, NoticeKind, Occasion, PushSubscription
from agent_orchestrator.engine import notice_states
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.notice_levels import is_wanted, level_of
from agent_orchestrator.engine.push_devices import after_quiet, devices_to_notify
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

NOTICEABLE: Final = frozenset(
    {
        EventType.REQUEST_CREATED,
        EventType.REQUEST_UPDATED,
        EventType.REQUEST_EXTENDED,
        EventType.REQUEST_RESOLVED,
        EventType.RUN_COMPLETED,
        EventType.RUN_FAILED,
    }
)
"""The types of events that make or change notices."""


@frozen
class Recipient:
    """A target that is notified of a subject.

    :param after_s: additional seconds before it is notified, in which other devices may show the notice.
    :param device: the device; None for a target of the settings.
    :param is_fallback: whether it is notified only if no device shows the notice.
    :param quiet: whether a target of the settings respects their quiet hours.
    """

    target: str
    after_s: float = 0.0
    device: PushSubscription | None = None
    is_fallback: bool = False
    quiet: bool = True

    def after_quiet(self, options: NotifyOptions, moment: datetime) -> datetime:
        """Return the moment, or the end of the quiet hours that it is in."""
        if self.device is not None:
            return after_quiet(options, self.device, moment)
        return options.after_quiet_hours(moment) if self.quiet else moment


def recipients(core: Core, view: View, session: Session, occasion: Occasion) -> Iterator[Recipient]:
    """Yield the devices and targets that are notified.

    The devices of a principal are notified one after another, until one shows the notice. The fallback
    targets come after all devices.
    """
    unseen_s = core.config.notify.unseen_s
    level = level_of(view, session)
    chains = devices_to_notify(core, view, session, level, occasion)
    for chain in chains:
        for place, device in enumerate(chain):
            yield Recipient(device.id, place * unseen_s, device)
    now, options = core.now(), core.config.notify
    # Devices in their quiet hours come last in each chain. The targets do not wait for them.
    awake = [sum(after_quiet(options, one, now) == now for one in chain) for chain in chains]
    longest = max(awake, default=0)
    for name, target in core.config.targets.items():
        if is_wanted(level, target.events, occasion):
            waits = bool(chains) and target.fallback
            after_s = longest * unseen_s if waits else 0.0
            yield Recipient(name, after_s, is_fallback=waits, quiet=target.quiet)


def apply_event(core: Core, tx: Transaction, event: Event) -> None:
    """Add and change the notices of an event. Idempotent."""
    if event.event_type in (EventType.RUN_COMPLETED, EventType.RUN_FAILED):
        _add_run_notices(core, tx, event)
        return
    request = tx.request(str(event.data["id"]))
    if request is None or request.session_id != event.session_id:
        return  # a copy for an ancestor
    if event.event_type == EventType.REQUEST_RESOLVED:
        for notice in tx.notices_about(request.id):
            notice_states.withdraw(core, tx, notice)
    elif event.event_type == EventType.REQUEST_EXTENDED:
        for notice in tx.notices_about(request.id):
            if notice.deadline != request.expires_at:
                tx.put_notice(evolve(notice, deadline=request.expires_at))
    else:
        add_request_notices(core, tx, request)


def add_request_notices(core: Core, tx: Transaction, request: Request) -> None:
    """Add the notices of a request that a human may answer now."""
    session = tx.session(request.session_id)
    if not request.is_open or request.audience != "human" or session is None:
        return
    since = request.human_at or request.created_at
    notice = _notice(core, "request", session, request.id, request.run_id, since)
    notice = evolve(notice, request_id=request.id, deadline=request.expires_at)
    _add(core, tx, notice, since, recipients(core, tx, session, "request"))


def _add_run_notices(core: Core, tx: Transaction, event: Event) -> None:
    session = tx.session(event.session_id)
    run = None if event.run_id is None else tx.run(event.run_id)
    if session is None or run is None or run.kind != "message":
        return
    if session.parent_session_id is not None:
        return  # its parent gets the result
    occasion: Occasion = "failed" if event.event_type == EventType.RUN_FAILED else "finished"
    notice = _notice(core, occasion, session, run.id, run.id, event.created_at)
    _add(core, tx, notice, event.created_at, recipients(core, tx, session, occasion))


def _notice(
    core: Core, kind: NoticeKind, session: Session, subject: str, run_id: str, since: datetime
) -> Notice:
    return Notice(
        id="",
        kind=kind,
        target="",
        subject=subject,
        session_id=session.id,
        run_id=run_id,
        request_id=None,
        state="queued",
        created_at=since,
        updated_at=core.now(),
    )


def _add(
    core: Core, tx: Transaction, notice: Notice, since: datetime, recipients: Iterator[Recipient]
) -> None:
    """Add a notice for each recipient that has none with the same subject.

    :param since: when the subject began to need attention.
    """
    options = core.config.notify
    notified = {other.target for other in tx.notices_about(notice.subject)}
    for recipient in recipients:
        if recipient.target in notified:
            continue
        next_at = max(since + timedelta(seconds=options.dwell_s), core.now())
        # At the end of quiet hours too, one device after another.
        next_at = recipient.after_quiet(options, next_at) + timedelta(seconds=recipient.after_s)
        next_at = recipient.after_quiet(options, next_at)
        device = recipient.device
        tx.add_notice(
            evolve(
                notice,
                id=core.config.ids("ntc"),
                target=recipient.target,
                principal=None if device is None else device.principal,
                is_fallback=recipient.is_fallback,
                next_at=next_at,
            )
        )

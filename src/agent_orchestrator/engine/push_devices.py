"""The browsers that are notified: whose they are, and in which order they are tried."""

from collections.abc import Iterator
from datetime import datetime

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import Forbidden, NotFound
from agent_orchestrator.domain.model import NoticeLevel, Session
from agent_orchestrator.domain.notices import (
    DEFAULT_QUIET,
    NEVER_QUIET,
    Occasion,
    PushSubscription,
)
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.notice_levels import is_wanted
from agent_orchestrator.notice_settings import NotifyOptions, after_quiet_hours
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import SessionQueries, View


def holder_of(core: Core, view: View, subscription: PushSubscription) -> Principal | None:
    """Return the principal of a subscription; None if its token has ended."""
    if subscription.token_id is None:
        return Principal(subscription.principal, admin=subscription.admin)
    token = view.token(subscription.token_id)
    if token is None or token.revoked_at is not None:
        return None
    if token.expires_at is not None and token.expires_at <= core.now():
        return None
    return token.holder()


def may_be_notified(view: View, holder: Principal, session: Session, occasion: Occasion) -> bool:
    """Return whether a principal may learn of an event of a session.

    Of requests, only those who may answer them are notified.
    """
    is_request = occasion == "request"
    if not holder.admin and ("approve" if is_request else "read") not in holder.scopes:
        return False
    try:
        session_for(view, holder, Action.RESOLVE if is_request else Action.READ, session.id)
    except (NotFound, Forbidden):
        return False
    return True


def every_subscription(view: View, principal: str | None = None) -> Iterator[PushSubscription]:
    """Yield all subscriptions, or those of a principal, the oldest first."""
    after = None
    while page := view.push_subscriptions(principal=principal, after=after, limit=MAX_READ_ROWS):
        yield from page
        after = page[-1].id


def forget_devices_of(view: Transaction, token: AccessToken) -> None:
    """Remove the push subscriptions of a token that was revoked."""
    for subscription in list(every_subscription(view, principal=token.principal)):
        if subscription.token_id == token.id:
            view.remove_push_subscription(subscription.id)


def after_quiet(options: NotifyOptions, device: PushSubscription, moment: datetime) -> datetime:
    """Return the moment, or the end of a device's quiet hours that it is in."""
    if device.quiet_hours == DEFAULT_QUIET:
        return options.after_quiet_hours(moment)
    if device.quiet_hours == NEVER_QUIET:
        return moment
    return after_quiet_hours(device.quiet_hours, device.time_zone or options.time_zone, moment)


def is_muted(view: SessionQueries, device: PushSubscription, session: Session) -> bool:
    """Return whether a device is sent nothing of a session."""
    if device.push == "off":
        return True
    current: Session | None = session if device.muted else None
    while current is not None:
        if current.id in device.muted:
            return True
        parent_id = current.parent_session_id
        current = None if parent_id is None else view.session(parent_id)
    return False


def devices_to_notify(
    core: Core, view: View, session: Session, level: NoticeLevel, occasion: Occasion
) -> list[list[PushSubscription]]:
    """Return the devices that are notified, for each principal: the one used last comes first. Devices in
    their quiet hours come after the others.

    :param level: what people are notified of the session.
    """
    if core.config.push is None:
        return []
    found: dict[str, list[PushSubscription]] = {}
    for subscription in every_subscription(view):
        holder = holder_of(core, view, subscription)
        if (
            holder is not None
            and is_wanted(level, subscription.events, occasion)
            and not is_muted(view, subscription, session)
            and may_be_notified(view, holder, session, occasion)
        ):
            found.setdefault(holder.id, []).append(subscription)
    now = core.now()

    def order(one: PushSubscription) -> tuple[bool, datetime, str]:
        return after_quiet(core.config.notify, one, now) == now, one.seen_at, one.id

    return [sorted(chain, key=order, reverse=True) for chain in found.values()]

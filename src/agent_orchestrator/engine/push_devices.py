"""The browsers that are notified: whose they are, and in which order they are tried."""

from collections.abc import Iterator

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import Forbidden, NotFound
from agent_orchestrator.domain.model import NoticeLevel, Session
from agent_orchestrator.domain.notices import Occasion, PushSubscription
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.notice_levels import is_wanted
from agent_orchestrator.ports.queries import View


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


def may_be_told(view: View, holder: Principal, session: Session, occasion: Occasion) -> bool:
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


def devices_to_tell(
    core: Core, view: View, session: Session, level: NoticeLevel, occasion: Occasion
) -> list[list[PushSubscription]]:
    """Return the devices that are notified, for each principal: the one used last comes first.

    :param level: what people are notified of the session.
    """
    if core.config.push is None:
        return []
    found: dict[str, list[PushSubscription]] = {}
    for subscription in every_subscription(view):
        holder = holder_of(core, view, subscription)
        if holder is not None and is_wanted(level, subscription.events, occasion):
            found.setdefault(holder.id, [])
            if may_be_told(view, holder, session, occasion):
                found[holder.id].append(subscription)
    chains = [chain for chain in found.values() if chain]
    for chain in chains:
        chain.sort(key=lambda one: (one.seen_at, one.id), reverse=True)
    return chains

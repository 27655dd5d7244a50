"""The calls for push subscriptions."""

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import Conflict, InvalidRequest, NotFound
from agent_orchestrator.domain.notices import OCCASIONS, Occasion, PushDevice, PushSubscription
from agent_orchestrator.engine.access import device_of, forbid_runs, require_active, session_for
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.notice_states import record_shown
from agent_orchestrator.engine.notices import notice_for
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.notice_settings import is_time_zone
from agent_orchestrator.operations.notices import NoticeReply
from agent_orchestrator.operations.push import (
    GetPushKey,
    ListPush,
    PushKey,
    PushPage,
    PushReply,
    ReportNotice,
    SubscribePush,
    UnsubscribePush,
    UpdatePush,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.channel import PushService
from agent_orchestrator.ports.queries import View

MAX_SUBSCRIPTIONS: Final = 20
"""Maximum number of push subscriptions of a principal."""


async def subscribe(core: Core, caller: Principal, command: SubscribePush) -> Change[PushReply]:
    forbid_runs(caller)
    problems = _service(core).problems(command.endpoint, command.p256dh, command.auth)
    events = _occasions(command.events, problems)
    if problems:
        raise InvalidRequest.of(problems)

    def change(tx: Transaction) -> PushReply:
        require_active(tx, caller)
        now = core.now()
        former = tx.push_subscription_of(command.endpoint)
        device = device_of(tx, caller)
        name = command.name or (_host(command.endpoint) if device is None else device.name)
        subscription = PushSubscription(
            id=former.id if former else core.config.ids("psh"),
            principal=caller.id,
            admin=caller.admin,
            token_id=caller.token_id,
            name=name,
            endpoint=command.endpoint,
            p256dh=command.p256dh,
            auth=command.auth,
            events=events,
            created_at=former.created_at if former else now,
            seen_at=now,
        )
        if former is not None and former.principal == caller.id:
            subscription = evolve(
                subscription,
                quiet_hours=former.quiet_hours,
                time_zone=former.time_zone,
                muted=former.muted,
            )
        if former is None or former.principal != caller.id:
            own = tx.push_subscriptions(principal=caller.id, limit=MAX_SUBSCRIPTIONS)
            if len(own) >= MAX_SUBSCRIPTIONS:
                raise Conflict(
                    f"a principal can have at most {MAX_SUBSCRIPTIONS} push subscriptions",
                    {"limit": "push_subscriptions", "most": MAX_SUBSCRIPTIONS},
                )
        if former is None:
            tx.add_push_subscription(subscription)
        else:
            tx.put_push_subscription(subscription)
        return PushReply(_shown(subscription))

    return change


def _occasions(given: Iterable[str], problems: dict[str, str]) -> tuple[Occasion, ...]:
    """Return occasions in their usual order. Add a problem if there are none, or unknown ones."""
    names = set(given)
    occasions = tuple(occasion for occasion in OCCASIONS if occasion in names)
    if not occasions or len(occasions) < len(names):
        problems["events"] = f"must be some of {', '.join(OCCASIONS)}"
    return occasions


async def update(core: Core, caller: Principal, command: UpdatePush) -> Change[PushReply]:
    forbid_runs(caller)
    problems: dict[str, str] = {}
    changes: dict[str, Any] = {
        name: value
        for name in ("push", "quiet_hours", "time_zone")
        if (value := getattr(command, name)) is not None
    }
    if command.events is not None:
        changes["events"] = _occasions(command.events, problems)
    if command.time_zone is not None and not is_time_zone(command.time_zone):
        problems["time_zone"] = "is not a time zone that the daemon knows"
    if problems:
        raise InvalidRequest.of(problems)
    if command.muted is not None:
        changes["muted"] = tuple(dict.fromkeys(command.muted))

    def change(tx: Transaction) -> PushReply:
        found = _own(tx, caller, command.subscription_id)
        for session_id in changes.get("muted", ()):
            session_for(tx, caller, Action.READ, session_id)
        changed = evolve(found, **changes)
        if changed != found:
            tx.put_push_subscription(changed)
        return PushReply(_shown(changed))

    return change


def _own(view: View, caller: Principal, subscription_id: str) -> PushSubscription:
    """Return a push subscription that the caller may change.

    :raises NotFound: if it may not, or there is none.
    """
    require_active(view, caller)
    found = view.push_subscription(subscription_id)
    if found is None or not (caller.admin or found.principal == caller.id):
        raise NotFound(
            f"no push subscription {subscription_id}", {"subscription_id": subscription_id}
        )
    return found


def _service(core: Core) -> PushService:
    if core.config.push is None:
        raise Conflict("this engine does not send notices to browsers")
    return core.config.push


def _host(endpoint: str) -> str:
    return urlsplit(endpoint).hostname or "?"


def _shown(subscription: PushSubscription) -> PushDevice:
    return PushDevice(
        id=subscription.id,
        name=subscription.name,
        principal=subscription.principal,
        service=_host(subscription.endpoint),
        events=subscription.events,
        created_at=subscription.created_at,
        seen_at=subscription.seen_at,
        token_id=subscription.token_id,
        push=subscription.push,
        quiet_hours=subscription.quiet_hours,
        time_zone=subscription.time_zone,
        muted=subscription.muted,
    )


async def list_(core: Core, caller: Principal, command: ListPush) -> PushPage:
    forbid_runs(caller)
    principal = None if caller.admin else caller.id

    def query(view: View) -> PushPage:
        require_active(view, caller)

        def fetch(after: str | None, limit: int) -> list[PushSubscription]:
            return view.push_subscriptions(
                principal=principal, order=command.order, after=after, limit=limit, size=PAGE_SIZE
            )

        def matches(one: PushSubscription) -> bool:
            return has_words(command.q or "", (one.id, one.name, one.principal))

        found, next_cursor = page(
            fetch, command.cursor, command.limit, matches=matches if command.q else None
        )
        return PushPage(tuple(map(_shown, found)), next_cursor)

    return await core.store.read(query)


async def unsubscribe(core: Core, caller: Principal, command: UnsubscribePush) -> Change[PushReply]:
    forbid_runs(caller)

    def change(tx: Transaction) -> PushReply:
        found = _own(tx, caller, command.subscription_id)
        tx.remove_push_subscription(found.id)
        return PushReply(_shown(found))

    return change


async def key(core: Core, caller: Principal, command: GetPushKey) -> PushKey:
    forbid_runs(caller)
    return PushKey(await _service(core).public_key())


async def report(core: Core, caller: Principal, command: ReportNotice) -> Change[NoticeReply]:
    forbid_runs(caller)

    def change(tx: Transaction) -> NoticeReply:
        notice = notice_for(tx, caller, command.notice_id)
        if notice.principal is None:
            raise Conflict(f"notice {notice.id} is for no device", {"notice_id": notice.id})
        if (device := tx.push_subscription(notice.target)) is not None:
            tx.put_push_subscription(evolve(device, seen_at=core.now()))
        shown = record_shown(core, tx, notice, is_click=command.state == "clicked")
        return NoticeReply(shown)

    return change

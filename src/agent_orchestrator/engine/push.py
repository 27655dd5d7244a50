"""The calls for push subscriptions."""

from typing import Final
from urllib.parse import urlsplit

from attrs import evolve

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, InvalidRequest, NotFound
from agent_orchestrator.domain.notices import OCCASIONS, PushDevice, PushSubscription
from agent_orchestrator.engine.access import forbid_runs, require_active
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.notice_states import record_shown
from agent_orchestrator.engine.notices import notice_for
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
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
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.channel import PushService
from agent_orchestrator.ports.queries import View

MAX_SUBSCRIPTIONS: Final = 20
"""Maximum number of push subscriptions of a principal."""


async def subscribe(core: Core, caller: Principal, command: SubscribePush) -> Change[PushReply]:
    forbid_runs(caller)
    problems = _service(core).problems(command.endpoint, command.p256dh, command.auth)
    events = tuple(occasion for occasion in OCCASIONS if occasion in command.events)
    if not events or len(events) < len(set(command.events)):
        problems["events"] = f"must be some of {', '.join(OCCASIONS)}"
    if problems:
        raise InvalidRequest.of(problems)

    def change(tx: Transaction) -> PushReply:
        require_active(tx, caller)
        now = core.now()
        former = tx.push_subscription_of(command.endpoint)
        subscription = PushSubscription(
            id=former.id if former else core.config.ids("psh"),
            principal=caller.id,
            admin=caller.admin,
            token_id=caller.token_id,
            name=command.name or _host(command.endpoint),
            endpoint=command.endpoint,
            p256dh=command.p256dh,
            auth=command.auth,
            events=events,
            created_at=former.created_at if former else now,
            seen_at=now,
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
        require_active(tx, caller)
        found = tx.push_subscription(command.subscription_id)
        if found is None or not (caller.admin or found.principal == caller.id):
            raise NotFound(
                f"no push subscription {command.subscription_id}",
                {"subscription_id": command.subscription_id},
            )
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

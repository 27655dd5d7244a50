"""The calls for notices."""

from datetime import datetime

import anyio
from attrs import evolve

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, InvalidRequest, NotFound
from agent_orchestrator.domain.notices import Notice
from agent_orchestrator.engine.access import (
    access_topics,
    forbid_runs,
    require_active,
    require_admin,
)
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.engine.push_devices import every_subscription
from agent_orchestrator.operations.notices import (
    GetNotice,
    ListNotices,
    NoticePage,
    NoticeReply,
    NoticesReply,
    RetryNotice,
    TestNotice,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View


async def list_(core: Core, caller: Principal, command: ListNotices) -> NoticePage:
    forbid_runs(caller)

    def query(view: View) -> NoticePage:
        require_active(view, caller)

        def fetch(after: str | None, limit: int) -> list[Notice]:
            return view.notices(
                principal=None if caller.admin else caller.id,
                state=command.state,
                order=command.order,
                after=after,
                limit=limit,
                size=PAGE_SIZE,
            )

        def matches(notice: Notice) -> bool:
            texts = (notice.id, notice.target, notice.subject, notice.session_id, notice.error)
            return has_words(command.q or "", texts)

        return NoticePage(
            *page(fetch, command.cursor, command.limit, matches=matches if command.q else None)
        )

    return await core.store.read(query)


async def get(core: Core, caller: Principal, command: GetNotice) -> NoticeReply:
    def query(view: View) -> Notice:
        return notice_for(view, caller, command.notice_id)

    forbid_runs(caller)
    with core.notifier.subscribe(f"notice:{command.notice_id}", *access_topics(caller)) as waiter:
        notice = await core.store.read(query)
        with anyio.move_on_after(command.wait_s):
            while command.wait_s and notice.state == (command.known_state or "queued"):
                await waiter.wait()
                waiter.clear()
                notice = await core.store.read(query)
    return NoticeReply(notice)


def notice_for(view: View, caller: Principal, notice_id: str) -> Notice:
    """Return a notice that the caller may see.

    :raises NotFound: if it may not, or there is none.
    """
    require_active(view, caller)
    notice = view.notice(notice_id)
    if notice is None or not (caller.admin or notice.principal == caller.id):
        raise NotFound(f"no notice {notice_id}", {"notice_id": notice_id})
    return notice


async def test(core: Core, caller: Principal, command: TestNotice) -> Change[NoticesReply]:
    forbid_runs(caller)

    def change(tx: Transaction) -> NoticesReply:
        require_active(tx, caller)
        names = tuple(core.config.targets) if caller.admin else ()
        owners: dict[str, str | None] = dict.fromkeys(names)
        owners |= {one.id: one.principal for one in every_subscription(tx, principal=caller.id)}
        if command.target is not None:
            if command.target not in owners:
                known = f"there are {', '.join(owners)}" if owners else "there is none"
                raise InvalidRequest.of({"target": f"is not a target; {known}"})
            owners = {command.target: owners[command.target]}
        if not owners:
            raise Conflict(
                "no target of notices is configured, and no device has subscribed: see [notify]"
            )
        notices = tuple(
            _test_notice(core, name, owner, core.now()) for name, owner in owners.items()
        )
        for notice in notices:
            tx.add_notice(notice)
        return NoticesReply(notices)

    return change


def _test_notice(core: Core, target: str, principal: str | None, now: datetime) -> Notice:
    notice_id = core.config.ids("ntc")
    return Notice(
        id=notice_id,
        kind="test",
        target=target,
        subject=notice_id,
        session_id=None,
        run_id=None,
        request_id=None,
        state="queued",
        created_at=now,
        updated_at=now,
        principal=principal,
        next_at=now,
    )


async def retry(core: Core, caller: Principal, command: RetryNotice) -> Change[NoticeReply]:
    def change(tx: Transaction) -> NoticeReply:
        require_admin(tx, caller)
        notice = notice_for(tx, caller, command.notice_id)
        if notice.state != "failed":
            raise Conflict(
                f"notice {notice.id} has not failed: it is {notice.state}",
                {"notice_id": notice.id, "state": notice.state},
            )
        now = core.now()
        again = evolve(notice, state="queued", attempts=0, next_at=now, updated_at=now)
        tx.put_notice(again)
        return NoticeReply(again)

    return change

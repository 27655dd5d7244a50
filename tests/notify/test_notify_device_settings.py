"""What a browser is notified of, and when; and several engines that send from one outbox."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
from notices import NOON, Recorder, World, target, until, world
from push_service import Browser
from receiver import Receiver

from agent_orchestrator import Client
from agent_orchestrator.domain.errors import InvalidRequest, NotFound
from agent_orchestrator.domain.notices import PushDevice
from agent_orchestrator.engine import notice_delivery
from agent_orchestrator.operations.push import MAX_MUTED
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("without_pause")]


async def subscribed(client: Client, service: Receiver, name: str) -> tuple[Browser, PushDevice]:
    browser = Browser(f"{service.url}/{name}")
    return browser, await client.subscribe_push(**browser.fields, name=name)


async def test_browser_that_is_switched_off_is_sent_only_tests(
    store: Store, service: Receiver
) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        phone, device = await subscribed(here.client, service, "phone")
        waiting = await here.ask()
        await here.until_states("queued")
        off = await here.client.update_push(device.id, push="off")
        assert (off.push, off.events, off.id) == ("off", ("request",), device.id)
        here.pass_time(5)
        await here.until_states("gone", subject=waiting.id)  # was queued before
        ignored = await here.ask()
        [test] = await here.client.test_notice()
        assert (await here.client.get_notice(test.id, wait_s=60)).state == "sent"
        await here.client.update_push(device.id, push="on")
        heard = await here.ask()
        await here.until_states("queued", subject=heard.id)
        here.pass_time(5)
        await here.until_states("sent", subject=heard.id)
        assert await here.states(ignored.id) == []
        assert [phone.message(one)["type"] for one in phone.received(service)] == [
            "notice.test",
            "notice.request",
        ]


async def test_session_is_switched_off_on_one_browser(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        phone, device = await subscribed(here.client, service, "phone")
        desk, _ = await subscribed(here.client, service, "desk")
        loud = await here.client.create_session(provider="manual")
        session = await here.client.create_session(provider="manual")
        parent = await here.client.create_run(session.id)
        await here.client.transition_run(parent.id, "running")
        child = await here.client.spawn("x", run_id=parent.id, provider="manual")
        assert child.run is not None
        await here.client.transition_run(child.run.id, "running")
        muted = await here.client.update_push(device.id, muted=[session.id, session.id])
        assert muted.muted == (session.id,)
        other = await here.client.create_run(loud.id)
        await here.client.transition_run(other.id, "running")
        for run in (parent, child.run, other):
            # A session that is quiet on one device is not on another.
            run_now = await here.client.get_run(run.id)
            request = await here.ask_from(run_now)
            expected = 2 if run is other else 1
            if request.audience == "parent":
                here.pass_time(120)
            await until(lambda request=request, n=expected: _has(here, request.id, n))  # type: ignore[misc]
        here.pass_time(35)
        await until(lambda: _are_sent(service, desk, 3))
        await until(lambda: _are_sent(service, phone, 1))  # perhaps after the desk


async def _has(here: World, subject: str, count: int) -> bool:
    return len(await here.notices(subject)) == count


async def _are_sent(service: Receiver, browser: Browser, count: int) -> bool:
    return len(browser.received(service)) == count


async def test_browser_in_its_quiet_hours_comes_last_and_waits(
    store: Store, service: Receiver
) -> None:
    topic = target(Recorder(), quiet=False)
    async with world(store, {"topic": topic}, push_services=(service.url,)) as here:
        desk, _ = await subscribed(here.client, service, "desk")
        here.clock.now += timedelta(hours=1)
        phone, device = await subscribed(here.client, service, "phone")  # used last
        # 13:00 in UTC is 22:00 in Tokyo.
        await here.client.update_push(device.id, quiet_hours="22:00-07:00", time_zone="Asia/Tokyo")
        request = await here.ask(expires_in_s=86_400)
        queued = await here.until_states(*["queued"] * 3)
        ends = {one.target: one.next_at for one in queued}
        assert ends[device.id] == NOON + timedelta(hours=10, seconds=30)
        assert ends["topic"] == here.clock.now + timedelta(seconds=35)  # after the desk alone
        here.pass_time(5)
        await until(lambda: _are_sent(service, desk, 1))
        assert phone.received(service) == []
        here.pass_time(9 * 3600 + 25)
        await until(lambda: _are_sent(service, phone, 1))
        await here.until_states(*["sent"] * 3, subject=request.id)


async def test_quiet_hours_that_begin_meanwhile_postpone_a_notice(
    store: Store, service: Receiver
) -> None:
    async with world(
        store, {}, push_services=(service.url,), quiet_hours="11:00-14:00", time_zone="UTC"
    ) as here:
        phone, device = await subscribed(here.client, service, "phone")
        # This device is never quiet, whatever the settings say.
        await here.client.update_push(device.id, quiet_hours="none")
        request = await here.ask(expires_in_s=86_400)
        [notice] = await here.until_states("queued")
        assert notice.next_at == NOON + timedelta(seconds=5)
        await here.client.update_push(device.id, quiet_hours="default")
        here.pass_time(5)
        await until(lambda: _is_due_at(here, request.id, 2 * 3600))
        assert phone.received(service) == []
        here.pass_time(2 * 3600 - 5)
        await here.until_states("sent")


async def _is_due_at(here: World, subject: str, seconds: float) -> bool:
    [notice] = await here.notices(subject)
    return notice.next_at == NOON + timedelta(seconds=seconds)


async def test_devices_do_not_ring_together_when_quiet_hours_end(
    store: Store, service: Receiver
) -> None:
    quiet = {"quiet_hours": "11:00-14:00", "time_zone": "UTC"}
    async with world(store, {"t": Recorder()}, push_services=(service.url,), **quiet) as here:
        for name in ("one", "two"):
            await subscribed(here.client, service, name)
        await here.ask(expires_in_s=86_400)
        queued = await here.until_states(*["queued"] * 3)
        times = [one.next_at for one in queued]
        end = NOON + timedelta(hours=2)
        assert times == [end, end + timedelta(seconds=30), end]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("push", "perhaps"),
        ("quiet_hours", "at night"),
        ("quiet_hours", "22:00-25:00"),
        ("time_zone", "Mars/Olympus"),
        ("time_zone", "../../etc/passwd"),
        ("events", ()),
        ("events", ("lunch",)),
        ("muted", ["ses_1"] * (MAX_MUTED + 1)),
    ],
)
async def test_bad_setting_is_refused_by_field(service: Receiver, field: str, value: Any) -> None:
    async with MemoryStore() as store, world(store, {}, push_services=(service.url,)) as here:
        _, device = await subscribed(here.client, service, "phone")
        with pytest.raises(InvalidRequest) as caught:
            await here.client.update_push(device.id, **{field: value})
        assert list(caught.value.details["fields"]) == [field]
        assert (await here.client.list_push()).subscriptions == (device,)


async def test_callers_change_only_their_own(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        ann, _ = await here.acting_as("ann", scopes=("read",))
        bob, _ = await here.acting_as("bob")
        _, device = await subscribed(ann, service, "phone")
        secret = await here.client.create_session(provider="manual")
        for call in (
            bob.update_push(device.id, push="off"),
            ann.update_push("psh_none", push="off"),
            ann.update_push(device.id, muted=[secret.id]),  # who asks does not learn of it
        ):
            with pytest.raises(NotFound):
                await call
        changed = await here.client.update_push(device.id, events=("failed", "request"))
        assert (changed.principal, changed.events) == ("ann", ("request", "failed"))


async def test_subscribing_again_keeps_the_settings_and_switches_on(
    store: Store, service: Receiver
) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        browser, device = await subscribed(here.client, service, "phone")
        session = await here.client.create_session(provider="manual")
        await here.client.update_push(
            device.id, push="off", quiet_hours="01:00-02:00", time_zone="UTC", muted=[session.id]
        )
        again = await here.client.subscribe_push(**browser.fields)
        assert (again.push, again.quiet_hours, again.time_zone, again.muted) == (
            "on",
            "01:00-02:00",
            "UTC",
            (session.id,),
        )
        ann, _ = await here.acting_as("ann")
        moved = await ann.subscribe_push(**browser.fields)  # another person uses the browser now
        assert (moved.quiet_hours, moved.muted) == ("default", ())


async def test_revoked_token_ends_its_subscriptions_at_once(
    store: Store, service: Receiver
) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        ann, token_id = await here.acting_as("ann", scopes=("admin",))
        also_ann, _ = await here.acting_as("ann", scopes=("admin",))
        await subscribed(ann, service, "phone")
        _, kept = await subscribed(also_ann, service, "desk")
        request = await here.ask()
        await here.until_states("queued", "queued")
        await here.client.revoke_token(token_id)
        assert (await here.client.list_push()).subscriptions == (kept,)
        here.pass_time(35)
        await until(lambda: _are_over(here, request.id))
        assert [one.path for one in service.requests] == ["/desk"]


async def _are_over(here: World, subject: str) -> bool:
    return sorted(await here.states(subject)) == ["gone", "sent"]


async def test_caller_waits_for_the_next_state_of_a_test(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        await subscribed(here.client, service, "phone")
        [test] = await here.client.test_notice()
        sent = await here.client.get_notice(test.id, wait_s=60)
        assert sent.state == "sent"
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:

                async def show() -> None:
                    await here.client.report_notice(test.id, "shown")

                tasks.start_soon(show)
                shown = await here.client.get_notice(test.id, wait_s=60, known_state="sent")
        assert shown.state == "shown"


# --- several engines -----------------------------------------------------------------------------


async def test_several_daemons_on_postgresql_send_each_notice_once(
    database: Callable[[], str],
) -> None:
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()
    async with PostgresStore(url) as one, PostgresStore(url) as two:
        await _send_from_two_engines(one, two)


async def _send_from_two_engines(one: Store, two: Store) -> None:
    """Both engines see that the notices are due in the same moment, and sending takes a while."""

    async def slowly(_: object) -> None:
        await anyio.sleep(0.02)

    desk = Recorder(then=slowly)
    targets = {f"t{number}": desk for number in range(8)}
    async with world(one, targets) as here, world(two, targets, clock=here.clock) as there:
        requests = [await here.ask() for _ in range(4)]
        await here.until_states(*["queued"] * 32)
        here.clock.now += timedelta(seconds=5)
        for side in (here, there):
            side.pass_time(0)
        await here.until_states(*["sent"] * 32)
        claimants = {one.claimed_by for one in await here.notices()}
        assert claimants == {None}
        for request in requests:
            assert desk.actions.count(("show", request.id)) == 8
            assert len(await here.receipts(request)) == 8


async def test_claim_of_a_daemon_that_ended_expires(database: Callable[[], str]) -> None:
    from agent_orchestrator.stores.postgres import PostgresStore

    url = database()
    stuck = anyio.Event()

    async def hang(_: object) -> None:
        stuck.set()
        await anyio.sleep_forever()

    dead, desk = Recorder(then=hang), Recorder()
    async with PostgresStore(url) as store, world(store, {"desk": dead}) as here:
        request = await here.ask()
        await here.until_states("queued")
        here.pass_time(5)
        with anyio.fail_after(60):
            await stuck.wait()
        [claimed] = await here.notices()
        assert claimed.claimed_by == here.engine.core.instance
        clock = here.clock
    async with PostgresStore(url) as store, world(store, {"desk": desk}, clock=clock) as there:
        there.pass_time(60)
        assert desk.given == []
        # The engine has the database's time, and sees at each heartbeat that this clock is ahead of it.
        with anyio.fail_after(60):
            while await there.states() != ["sent"]:
                there.pass_time(60 + notice_delivery.CLAIM_MARGIN_S)
                await anyio.sleep(0.05)
        assert desk.actions == [("show", request.id)]

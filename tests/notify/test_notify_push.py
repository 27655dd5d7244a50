"""Notices to browsers: subscriptions, the order of devices, receipts, and a push service that decrypts."""

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from notices import NOON, Recorder, World, target, until, world
from push_service import Browser, claims, padded
from receiver import Receiver, status

from agent_orchestrator import Client
from agent_orchestrator.domain.access import Grant, Principal
from agent_orchestrator.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from agent_orchestrator.domain.model import Request
from agent_orchestrator.domain.notices import PushSubscription
from agent_orchestrator.engine import push
from agent_orchestrator.notice_settings import NotifyOptions
from agent_orchestrator.notifiers.webpush import KNOWN_HOSTS, WebPush, is_known
from agent_orchestrator.ports.channel import NoticeContent, SendFailed
from agent_orchestrator.ports.store import Store
from agent_orchestrator.stores.memory import MemoryStore

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("without_pause")]

CONTENT = NoticeContent(
    notice_id="ntc_1",
    action="show",
    kind="request",
    subject="req_1",
    title="Approval needed",
    link="/r/req_1",
    created_at=NOON,
    at=NOON,
)


def subscription_of(browser: Browser) -> PushSubscription:
    return PushSubscription(
        "psh_1",
        "ann",
        admin=False,
        token_id=None,
        name="phone",
        **browser.fields,
        events=("request",),
        created_at=NOON,
        seen_at=NOON,
    )


def types(service: Receiver, browser: Browser) -> list[str]:
    return [browser.message(one)["type"] for one in browser.received(service)]


async def subscribed(client: Client, service: Receiver, name: str, **fields: Any) -> Browser:
    browser = Browser(f"{service.url}/{name}")
    await client.subscribe_push(**browser.fields, name=name, **fields)
    return browser


async def asked(here: World, owner: Client) -> Request:
    """Ask people from a session of this client."""
    session = await owner.create_session(provider="manual", title="fix the build")
    run = await owner.create_run(session.id)
    await owner.transition_run(run.id, "running")
    return await World(here.engine, owner, here.clock).ask_from(run)


async def test_browser_gets_a_signed_message_that_only_it_can_read(
    store: Store, service: Receiver
) -> None:
    async with world(
        store, {}, push_services=(service.url,), push_contact="mailto:ann@example.org"
    ) as here:
        phone = await subscribed(here.client, service, "phone")
        request = await asked(here, here.client)
        [notice] = await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        [message] = phone.received(service)
        assert message.headers["ttl"] == "3595"
        assert message.headers["topic"] == request.id
        assert message.headers["urgency"] == "high"
        said = claims(message.headers, await here.client.get_push_key())
        assert said["aud"] == service.url
        assert said["sub"] == "mailto:ann@example.org"
        assert 0 < said["exp"] - here.clock.now.timestamp() <= 86_400
        data = phone.message(message)
        assert data["type"] == "notice.request"
        assert data["data"]["notice_id"] == notice.id
        assert data["data"]["title"] == "Approval needed: fix the build"
        assert data["data"]["link"] == f"/r/{request.id}"
        assert "text" not in data["data"]
        device = (await here.client.list_push()).subscriptions[0]
        assert await here.receipts(request) == [(device.id, "sent")]

        await here.client.resolve_request(request.id, "deny")
        await here.until_states("gone")
        withdrawal = phone.received(service)[1]
        assert withdrawal.headers["topic"] == request.id
        assert phone.message(withdrawal)["type"] == "notice.withdrawn"


async def test_longest_text_fits_into_a_message(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,), include_text=True) as here:
        phone = await subscribed(here.client, service, "phone")
        session = await here.client.create_session(provider="manual", title="😀" * 200)
        run = await here.client.create_run(session.id)
        await here.client.transition_run(run.id, "running")
        await here.client.reply_parent(run.id, '"😀\\' * 9000, request_kind="input_request")
        await here.until_states("queued")
        here.pass_time(5)
        await here.until_states("sent")
        assert phone.message(phone.received(service)[0])["data"]["text"].startswith('"😀\\')


async def test_devices_are_tried_one_after_another_then_the_targets(
    store: Store, service: Receiver
) -> None:
    topic, audit = Recorder(), target(Recorder(), fallback=False)
    async with world(store, {"audit": audit, "topic": topic}, push_services=(service.url,)) as here:
        old = await subscribed(here.client, service, "old")
        here.clock.now += timedelta(hours=1)
        new = await subscribed(here.client, service, "new")
        request = await asked(here, here.client)
        await here.until_states(*["queued"] * 4)
        here.pass_time(5)
        await here.until_states("sent", "queued", "sent", "queued")
        assert types(service, new) == ["notice.request"]
        here.pass_time(29.9)
        here.pass_time(0.1)
        await here.until_states("sent", "sent", "sent", "queued")
        assert types(service, old) == ["notice.request"]
        here.pass_time(30)
        await here.until_states("sent", "sent", "sent", "sent")
        assert topic.actions == [("show", request.id)]


async def test_shown_notice_ends_the_search_for_people(store: Store, service: Receiver) -> None:
    topic = Recorder()
    async with world(store, {"topic": topic}, push_services=(service.url,)) as here:
        old = await subscribed(here.client, service, "old")
        here.clock.now += timedelta(hours=1)
        new = await subscribed(here.client, service, "new")
        request = await asked(here, here.client)
        await here.until_states(*["queued"] * 3)
        here.pass_time(5)
        [first, *_] = await here.until_states("sent", "queued", "queued")
        notice_id = new.message(new.received(service)[0])["data"]["notice_id"]
        assert notice_id == first.id
        here.pass_time(7)
        for state in ("shown", "shown", "clicked", "clicked"):
            shown = await here.client.report_notice(notice_id, state)
        assert (shown.state, shown.clicked_at) == ("shown", here.clock.now)
        await here.until_states("shown", "gone", "gone")
        here.pass_time(3000)
        assert old.received(service) == []
        assert topic.given == []
        assert await here.receipts(request) == [(first.target, "sent"), (first.target, "shown")]
        [least, most] = (await here.client.list_push()).subscriptions
        assert (most.name, most.seen_at) == ("new", shown.shown_at)
        assert least.seen_at < most.seen_at


@pytest.mark.parametrize("code", [404, 410])
async def test_gone_browser_is_dropped_and_the_next_is_tried_at_once(
    store: Store, service: Receiver, code: int
) -> None:
    topic = Recorder()
    async with world(store, {"topic": topic}, push_services=(service.url,)) as here:
        await subscribed(here.client, service, "old")
        here.clock.now += timedelta(hours=1)
        await subscribed(here.client, service, "new")
        request = await asked(here, here.client)
        await here.until_states(*["queued"] * 3)
        service.answer = status(code)
        here.pass_time(5)
        await here.until_states("failed", "failed", "sent")  # without further time
        assert topic.actions == [("show", request.id)]
        assert (await here.client.list_push()).subscriptions == ()
        receipts = await here.receipts(request)
        assert [state for _, state in receipts] == ["failed", "failed", "sent"]


async def test_push_service_that_is_down_is_tried_again(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        await subscribed(here.client, service, "phone")
        await asked(here, here.client)
        await here.until_states("queued")
        service.answer = status(503)
        here.pass_time(5)
        await until(lambda: _tried(here))
        service.answer = status(201)
        here.pass_time(5)
        await here.until_states("sent")
        assert len((await here.client.list_push()).subscriptions) == 1


async def _tried(here: World) -> bool:
    return [notice.attempts for notice in await here.notices()] == [1]


async def test_only_those_who_may_answer_are_told(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        ann, _ = await here.acting_as("ann")
        names = {
            "reads": ("bob", ("read",)),
            "owns": ("ann", ("read", "approve")),
            "writes": ("carol", ("read", "approve")),
            "cannot approve": ("dan", ("read", "write")),
            "only reads": ("ron", ("read", "approve")),
        }
        browsers = {}
        for number, (name, (principal, scopes)) in enumerate(names.items()):
            client, _ = await here.acting_as(f"t{number}", principal=principal, scopes=scopes)
            browsers[name] = await subscribed(
                client, service, f"{number}", events=("request", "finished")
            )
        session = await ann.create_session(provider="manual")
        grants = [Grant("carol", "writer"), Grant("dan", "owner"), Grant("ron", "reader")]
        await ann.set_access(session.id, grants)
        run = await ann.create_run(session.id)
        await ann.transition_run(run.id, "running")
        request = await World(here.engine, ann, here.clock).ask_from(run)
        await here.until_states("queued", "queued", subject=request.id)
        here.pass_time(5)
        await here.until_states("sent", "sent", subject=request.id)
        told = {name for name, browser in browsers.items() if browser.received(service)}
        assert told == {"owns", "writes"}

        await ann.resolve_request(request.id, "deny")
        await here.until_states("gone", "gone", subject=request.id)
        await ann.transition_run(run.id, "completed", result={"text": "done"})
        await here.until_states(*["queued"] * 4, subject=run.id)
        here.pass_time(5)
        await here.until_states(*["sent"] * 4, subject=run.id)
        told = {
            name
            for name, browser in browsers.items()
            if "notice.finished" in types(service, browser)
        }
        assert told == set(names) - {"reads"}


@pytest.mark.parametrize("ending", ["revoked", "expired", "grant"])
async def test_device_whose_access_has_ended_is_not_told(
    store: Store, service: Receiver, ending: str
) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        lasts = {"expires_in_s": 4} if ending == "expired" else {}
        bob, token_id = await here.acting_as("bob", **lasts)
        await subscribed(bob, service, "phone")
        session = await here.client.create_session(provider="manual")
        await here.client.set_access(session.id, [Grant("bob", "writer")])
        run = await here.client.create_run(session.id)
        await here.client.transition_run(run.id, "running")
        await here.ask_from(run)
        await here.until_states("queued")
        if ending == "revoked":
            await here.client.revoke_token(token_id)
        if ending == "grant":
            await here.client.set_access(session.id, [])
        here.pass_time(5)
        await here.until_states("gone")
        assert service.requests == []
        left = (await here.client.list_push()).subscriptions
        assert len(left) == (1 if ending == "grant" else 0)


async def test_callers_see_and_end_only_their_own(store: Store, service: Receiver) -> None:
    async with world(store, {"desk": Recorder()}, push_services=(service.url,)) as here:
        ann, _ = await here.acting_as("ann", scopes=("read",))
        bob, _ = await here.acting_as("bob")
        phone = await subscribed(ann, service, "phone")
        [device] = (await ann.list_push()).subscriptions
        assert (await bob.list_push()).subscriptions == ()
        assert (await here.client.list_push()).subscriptions == (device,)
        assert "127.0.0.1" in device.service
        assert phone.endpoint not in repr(device)
        assert phone.fields["auth"] not in repr(device)
        with pytest.raises(NotFound):
            await bob.unsubscribe_push(device.id)
        with pytest.raises(InvalidRequest):
            await bob.test_notice(device.id)
        with pytest.raises(InvalidRequest):
            await ann.test_notice("desk")  # a target of the settings
        [test] = await ann.test_notice()
        assert (await ann.get_notice(test.id, wait_s=60)).state == "sent"
        assert types(service, phone) == ["notice.test"]
        for call in (bob.get_notice(test.id), bob.report_notice(test.id, "shown")):
            with pytest.raises(NotFound):
                await call
        assert (await bob.list_notices()).notices == ()
        assert [one.id for one in (await ann.list_notices()).notices] == [test.id]
        [desk] = await here.client.test_notice("desk")
        with pytest.raises(Conflict):
            await here.client.report_notice(desk.id, "shown")
        assert await ann.unsubscribe_push(device.id) == device
        with pytest.raises(NotFound):
            await ann.unsubscribe_push(device.id)
        run = Client(here.engine.acting_as(Principal.of_run("run_1", 1, "ses_1")))
        for call in (run.get_push_key(), run.list_push(), run.test_notice(), run.list_notices()):
            with pytest.raises(Forbidden):
                await call


async def test_repeated_subscription_replaces_the_keys_and_is_bounded(
    store: Store, service: Receiver
) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        ann, _ = await here.acting_as("ann")
        first = await subscribed(ann, service, "phone")
        [before] = (await ann.list_push()).subscriptions
        renewed = evolve(first, auth=b"x" * 16)
        after = await ann.subscribe_push(**renewed.fields, events=("failed",))
        assert (after.id, after.events) == (before.id, ("failed",))
        await ann.test_notice()
        await here.until_states("sent")
        assert types(service, renewed) == ["notice.test"]
        for number in range(push.MAX_SUBSCRIPTIONS - 1):
            await subscribed(ann, service, f"n{number}")
        with pytest.raises(Conflict):
            await subscribed(ann, service, "one-too-many")
        bob, _ = await here.acting_as("bob")
        moved = await bob.subscribe_push(**renewed.fields)  # the browser's user has changed
        assert (moved.id, moved.principal) == (before.id, "bob")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "http://fcm.googleapis.com/fcm/send/x"),
        ("endpoint", "https://127.0.0.1/x"),
        ("endpoint", "https://metadata.internal/latest"),
        ("p256dh", "AAAA"),
        ("p256dh", "*"),
        ("auth", "AAAA"),
        ("auth", "not base64"),
        ("events", ("lunch",)),
        ("events", ()),
    ],
)
async def test_bad_subscription_is_refused_by_field(field: str, value: Any) -> None:
    async with MemoryStore() as store, world(store, {}) as here:
        browser = Browser("https://fcm.googleapis.com/fcm/send/x")
        with pytest.raises(InvalidRequest) as caught:
            await here.client.subscribe_push(**{**browser.fields, field: value})
        assert caught.value.details["fields"].keys() == {field}
        assert (await here.client.list_push()).subscriptions == ()


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com/fcm/send/abc:def",
        "https://updates.push.services.mozilla.com/wpush/v2/abc",
        "https://web.push.apple.com/abc",
        "https://wns2-par02p.notify.windows.com/w/?token=abc%3d",
        "https://fcm.googleapis.com:443/x",
        "https://push.example:8443/x",
        "http://127.0.0.1:9/x",
    ],
)
def test_known_push_services_are_accepted(endpoint: str) -> None:
    assert is_known(endpoint, ("https://push.example:8443", "http://127.0.0.1:9"))


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com.evil.example/x",
        "https://evilfcm.googleapis.com/x",
        "https://push.apple.com.evil.example/",
        "https://.push.apple.com@evil.example/",
        "https://fcm.googleapis.com@127.0.0.1/x",
        "https://127.0.0.1#.push.apple.com",
        "https://127.0.0.1\\.push.apple.com/",
        "https://127.0.0.1/.push.apple.com",
        "https://fcm.googleapis.com:8443/x",
        "https://fcm.googleapis.com:443@127.0.0.1/x",
        "https://[::1]/x",
        "https://push.example/x",
        "https://push.example:8443@127.0.0.1/",
        "http://127.0.0.1:99/x",
        "https://xn--fcm.googleapis.com/x",
        "https://fcm.googleapis.com\n.evil.example/",
        "https://fcm。googleapis.com/",
        "file:///etc/passwd",
        "//fcm.googleapis.com/x",
        "https://fcm.googleapis.com/" + "x" * 2_000,
        "",
    ],
)
def test_other_endpoints_are_refused(endpoint: str) -> None:
    assert not is_known(endpoint, ("https://push.example:8443", "http://127.0.0.1:9"))
    assert KNOWN_HOSTS


async def test_endpoint_is_checked_again_when_it_is_used(store: Store, service: Receiver) -> None:
    """The settings may allow less than when the browser subscribed."""
    async with world(store, {}, push_services=(service.url,)) as here:
        await subscribed(here.client, service, "phone")
    async with world(store, {}) as here:
        await here.client.test_notice()
        [notice] = await here.until_states("failed")
        assert "do not allow" in str(notice.error)
        assert service.requests == []


async def test_first_subscription_begins_the_outbox(store: Store, service: Receiver) -> None:
    async with world(store, {}, push_services=(service.url,)) as here:
        await here.ask()
        before = await asked(here, here.client)
        await here.client.resolve_request(before.id, "deny")
        await subscribed(here.client, service, "phone")
        await here.until_states("queued")  # of the request that is still open
        await asked(here, here.client)
        await here.until_states("queued", "queued")


async def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "data.db.push-key"

    def service() -> WebPush:
        return WebPush(options=NotifyOptions(), key_file=file)

    assert not file.exists()
    first = service()
    keys: list[str] = []

    async def ask() -> None:
        keys.append(await first.public_key())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(ask)
    assert len(set(keys)) == 1
    assert len(padded(keys[0])) == 65
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await service().public_key() == keys[0]

    file.chmod(0o644)
    with pytest.raises(Unavailable, match="only you can read"):
        await service().public_key()
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="only you can read"):
        await service().public_key()
    file.unlink()
    file.write_text("no key")
    file.chmod(0o600)
    with pytest.raises(Unavailable, match="does not contain a key"):
        await service().public_key()
    file.unlink()
    assert await WebPush(options=NotifyOptions(), key_file=None).public_key() != keys[0]
    assert not file.exists()
    deep = WebPush(options=NotifyOptions(), key_file=tmp_path / "made" / "key")
    await deep.public_key()
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    for place in ("file/key", "x" * 300):
        lost = WebPush(options=NotifyOptions(), key_file=tmp_path / place)
        with pytest.raises(Unavailable, match="cannot be written"):
            await lost.public_key()


async def test_apple_gets_the_operators_address(service: Receiver) -> None:
    browser = Browser(f"{service.url}/x")
    for options, contact in (
        ({}, None),
        ({"link_base": "http://desk"}, None),
        ({"link_base": "https://desk.example"}, "https://desk.example"),
        ({"link_base": "https://desk.example", "push_contact": "mailto:a@b"}, "mailto:a@b"),
    ):
        push_options = NotifyOptions(push_services=(service.url,), **options)
        async with WebPush(options=push_options, key_file=None) as sender:
            await sender.send(subscription_of(browser), CONTENT)
            said = claims(service.requests[-1].headers, await sender.public_key())
        assert said.get("sub") == contact


@pytest.mark.parametrize(
    ("deadline_s", "ttl"), [(None, 86_400), (90.5, 90), (-5, 60), (1e9, 2_419_200)]
)
async def test_message_lives_as_long_as_its_request(
    service: Receiver, deadline_s: float | None, ttl: int
) -> None:
    deadline = None if deadline_s is None else NOON + timedelta(seconds=deadline_s)
    options = NotifyOptions(push_services=(service.url,))
    async with WebPush(options=options, key_file=None) as sender:
        browser = Browser(f"{service.url}/x")
        await sender.send(subscription_of(browser), evolve(CONTENT, deadline=deadline))
    assert service.requests[0].headers["ttl"] == str(ttl)


async def test_push_service_that_forbids_is_not_asked_again(service: Receiver) -> None:
    service.answer = status(403)
    options = NotifyOptions(push_services=(service.url,))
    async with WebPush(options=options, key_file=None) as sender:
        with pytest.raises(SendFailed, match="answered 403") as caught:
            await sender.send(subscription_of(Browser(f"{service.url}/secret")), CONTENT)
    assert caught.value.is_final
    assert not caught.value.is_gone
    assert "secret" not in str(caught.value)

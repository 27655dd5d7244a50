"""Notices of the page, from the agent's question to its receipts: a push service of the test, and the real worker."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field
from daemons import Daemon, daemon_at
from playwright.sync_api import CDPSession, Page, Route, expect
from push_service import Browser
from receiver import Receiver, receiving, status
from visits import Visit, first_held, until

WHOLE_BROWSER = True

SUBSCRIBE: Final = """
PushManager.prototype.subscribe = async () => ({ toJSON: () => (FIELDS), unsubscribe: async () => true });
"""
"""The browser's own push service is a server of its maker. This one's keys are the test's."""

ASK: Final = ["ask", {"text": "May I?", "kind": "approval_request"}]

SHOWN: Final = """navigator.serviceWorker.ready.then((one) => one.getNotifications())
    .then((all) => all.map((one) => [one.title, one.body, one.tag]))"""


@define
class Phone:
    """A device that is notified: its page, and what the push service has for it."""

    daemon: Daemon
    service: Receiver
    browser: Browser
    page: Page
    cdp: CDPSession
    registration: str
    read: int = field(default=0)

    def next_message(self) -> dict[str, Any]:
        """Return the next message that the push service has for the browser, decrypted."""
        self.daemon.until(lambda: len(self.service.requests) > self.read)
        self.read += 1
        return self.browser.message(self.service.requests[self.read - 1])

    def deliver(self, message: dict[str, Any]) -> None:
        """Give a message to the service worker, as the browser does."""
        self.cdp.send(
            "ServiceWorker.deliverPushMessage",
            {
                "origin": f"{self.daemon.url}/",
                "registrationId": self.registration,
                "data": json.dumps(message),
            },
        )

    def shows(self, *expected: list[str]) -> None:
        until(
            self.page,
            f"(expected) => {SHOWN}.then((all) => JSON.stringify(all) === expected)",
            json.dumps(list(expected), separators=(",", ":")),
        )

    def receipts(self, request: dict[str, Any]) -> list[str]:
        return [
            event["data"]["state"]
            for event in self.daemon.events(request["session_id"])
            if event["event_type"] == "request.notified"
        ]

    def ask(self, title: str) -> dict[str, Any]:
        return self.daemon.question(self.daemon.begin([ASK, ["end", "done"]], title=title))


@pytest.fixture
def service() -> Iterator[Receiver]:
    with receiving() as running:
        running.answer = status(201)
        yield running


@contextmanager
def phone_at(directory: Path, visit: Visit, service: Receiver) -> Iterator[Phone]:
    """Let a phone in, and have its page subscribe."""
    notify = f'[notify]\ndwell_s = 0.0\npush_services = ["{service.url}"]\n'
    with daemon_at(directory, configuration=notify) as daemon:
        admin = daemon.post("/tokens", name="ann", scopes=["admin"])["secret"]
        daemon.client.headers["Authorization"] = f"Bearer {admin}"
        code = daemon.post("/devices", name="Ann's phone")["code"]
        browser = Browser(f"{service.url}/phone")
        keys = {"p256dh": browser.fields["p256dh"], "auth": browser.fields["auth"]}
        context = visit.device()
        context.grant_permissions(["notifications"], origin=daemon.url)
        fields = json.dumps({"endpoint": browser.endpoint, "keys": keys})
        context.add_init_script(SUBSCRIBE.replace("FIELDS", fields))
        page = context.new_page()
        visit.pages.append(page)
        page.goto(f"{daemon.url}/#device={code}")
        expect(page.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
        page.goto(f"{daemon.url}/#/devices")
        expect(page.locator(".admitted.device")).to_be_visible()  # the list moves the button
        page.get_by_role("button", name="Notify this browser").click()
        expect(page.locator(".browser")).to_contain_text("Ann's phone")
        expect(page.locator(".browser")).to_contain_text("this one")
        cdp = context.new_cdp_session(page)
        found: list[str] = []
        cdp.on(
            "ServiceWorker.workerRegistrationUpdated",
            lambda event: found.extend(one["registrationId"] for one in event["registrations"]),
        )
        cdp.send("ServiceWorker.enable")
        while not found:
            page.wait_for_timeout(20)
        yield Phone(daemon, service, browser, page, cdp, found[-1])


def test_request_reaches_the_phone_and_its_receipts_the_log(
    tmp_path: Path, visit: Visit, service: Receiver
) -> None:
    with phone_at(tmp_path, visit, service) as phone:
        phone.page.goto(f"{phone.daemon.url}/#/status")
        request = phone.ask("Disk is <b>full</b>")
        message = phone.next_message()
        phone.daemon.until(lambda: phone.receipts(request) == ["sent"])
        phone.deliver(message)
        title = "Approval needed: Disk is <b>full</b>"
        phone.shows([title, "Disk is <b>full</b>", request["id"]])
        phone.daemon.until(lambda: phone.receipts(request) == ["sent", "shown"])
        # A tap is reported, and leads to the request alone.
        [worker] = phone.page.context.service_workers
        worker.evaluate(
            """async () => {
              const [notification] = await registration.getNotifications();
              dispatchEvent(new NotificationEvent("notificationclick", { notification }));
            }"""
        )
        notice = message["data"]["notice_id"]
        phone.daemon.until(
            lambda: phone.daemon.get(f"/notices/{notice}")["notice"]["clicked_at"] is not None
        )
        phone.shows()  # else the end of the first one could take the next one with it: their tag is the same
        phone.deliver(message)  # a push service may deliver it twice
        phone.shows([title, "Disk is <b>full</b>", request["id"]])
        # An answer elsewhere takes the notice away.
        phone.daemon.post(f"/requests/{request['id']}/resolve", decision="approve")
        withdrawal = phone.next_message()
        assert withdrawal["type"] == "notice.withdrawn"
        phone.deliver(withdrawal)
        phone.shows()
        assert phone.receipts(request) == ["sent", "shown"]


def test_no_notice_of_what_the_user_looks_at(
    tmp_path: Path, visit: Visit, service: Receiver
) -> None:
    with phone_at(tmp_path, visit, service) as phone:
        page, url = phone.page, phone.daemon.url
        page.bring_to_front()
        other = phone.ask("Other")
        phone.next_message()
        request = phone.ask("Seen")
        message = phone.next_message()
        for path, screen, is_seen in (
            (f"r/{request['id']}", "request", True),
            (f"s/{request['session_id']}", "session", True),
            ("inbox", "inbox", True),
            # Looking at another request is not looking at this one.
            (f"r/{other['id']}", "request", False),
            (f"s/{other['session_id']}", "session", False),
            ("status", "status", False),
        ):
            page.goto(f"{url}/#/{path}")
            expect(page.locator(f"[data-screen={screen}]")).to_be_visible()
            phone.deliver(message)
            if is_seen:
                # The device reports it as shown: the page shows it.
                phone.daemon.until(lambda: phone.receipts(request) == ["sent", "shown"])
                page.wait_for_timeout(300)
                assert page.evaluate(SHOWN) == [], path
            else:
                title = "Approval needed: Seen"
                phone.shows([title, "Seen", request["id"]])
                page.evaluate(
                    "navigator.serviceWorker.ready.then((one) => one.getNotifications()).then((all) => all.forEach((one) => one.close()))"
                )
                phone.shows()
        # A page without a connection does not show what is new.
        page.goto(f"{url}/#/inbox")
        page.context.set_offline(True)
        expect(page.locator(".offline")).to_be_visible()
        phone.deliver(message)
        phone.shows(["Approval needed: Seen", "Seen", request["id"]])


def test_browser_is_set_and_tested(tmp_path: Path, visit: Visit, service: Receiver) -> None:
    with phone_at(tmp_path, visit, service) as phone:
        page, row = phone.page, phone.page.locator(".browser")

        def subscription() -> dict[str, Any]:
            [found] = phone.daemon.get("/push/subscriptions")["subscriptions"]
            return dict(found)

        def until_set(**values: Any) -> None:
            phone.daemon.until(lambda: values.items() <= subscription().items())

        row.get_by_role("button", name="Send a test").click()
        expect(row.get_by_role("status")).to_contain_text("sent, not shown yet")
        phone.deliver(phone.next_message())
        expect(row.get_by_role("status")).to_contain_text("shown at")
        row.get_by_label("Also when work has finished or failed").click()
        until_set(events=["request", "finished", "failed"])
        row.get_by_label("Quiet hours").select_option("own")
        until_set(quiet_hours="22:00-07:00")
        assert subscription()["time_zone"]
        row.get_by_label("To", exact=True).fill("06:30")
        row.get_by_label("To", exact=True).blur()
        until_set(quiet_hours="22:00-06:30")
        row.get_by_label("Quiet hours").select_option("none")
        until_set(quiet_hours="none")
        row.get_by_label("Notify it").click()
        until_set(push="off")
        row.get_by_label("Notify it").click()
        until_set(push="on")
        # A session is switched off on this browser, and for everybody.
        session = phone.daemon.begin([["end", "done"]], title="Noisy")
        phone.daemon.wait_idle(session)
        page.goto(f"{phone.daemon.url}/#/s/{session}/details")
        # What is read late is above the switch.
        expect(page.locator(".details section", has_text="Runs").first).to_contain_text("done")
        expect(page.locator(".details")).not_to_contain_text("Reading…")
        page.get_by_label("On this browser").click()
        until_set(muted=[session])
        page.get_by_label("people are notified").select_option("none")
        phone.daemon.until(
            lambda: phone.daemon.get(f"/sessions/{session}")["session"]["notices"] == "none"
        )
        page.goto(f"{phone.daemon.url}/#/devices")
        expect(row).to_contain_text("Quiet: Noisy")
        row.get_by_role("button", name="Notify again").click()
        until_set(muted=[])
        row.get_by_role("button", name="Remove").click()
        page.wait_for_timeout(600)
        row.get_by_role("button", name="Really remove?").click()
        expect(row).to_have_count(0)
        expect(page.get_by_role("button", name="Notify this browser")).to_be_visible()


def test_list_of_browsers_moves_no_button(tmp_path: Path, visit: Visit, service: Receiver) -> None:
    with phone_at(tmp_path, visit, service) as phone:
        code = phone.daemon.post("/devices", name="Ann's desk")["code"]
        context = visit.device()
        context.grant_permissions(["notifications"], origin=phone.daemon.url)
        page = context.new_page()
        visit.pages.append(page)
        page.goto(f"{phone.daemon.url}/#device={code}")
        expect(page.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route(re.compile(r"/push/subscriptions"), hold)
        page.goto(f"{phone.daemon.url}/#/devices")
        expect(page.locator(".admitted.device")).to_have_count(2)
        button = page.get_by_role("button", name="Notify this browser")
        before = button.bounding_box()
        first_held(page, held)
        page.unroute_all()  # lets all go on
        expect(page.locator(".browser")).to_contain_text("Ann's phone")
        assert button.bounding_box() == before


def test_page_says_what_notices_need(daemon: Daemon, visit: Visit) -> None:
    context = visit.device()
    context.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    page = context.new_page()
    visit.pages.append(page)
    page.goto(f"{daemon.url}/#/devices")
    advice = page.locator("section", has=page.get_by_role("heading", name="Notices", exact=True))
    expect(advice).to_contain_text("Notices need HTTPS")
    expect(advice).to_contain_text("tailscale serve --bg 8765")
    expect(advice).to_contain_text("--allowed-origin https://NAME.TAILNET.ts.net")
    iphone = visit.device(
        user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Safari"
    )
    iphone.add_init_script("delete window.PushManager")
    page = iphone.new_page()
    visit.pages.append(page)
    page.goto(f"{daemon.url}/#/devices")
    expect(page.get_by_text("Add to Home Screen").first).to_be_visible()
    expect(page.get_by_role("button", name="Notify this browser")).to_have_count(0)

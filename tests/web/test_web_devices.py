"""Who is let in: devices, share links, tokens; and the page below a path."""

import json
from pathlib import Path

from daemons import Daemon, daemon_at
from playwright.sync_api import expect
from visits import Visit, until


def test_device_is_let_in_by_another_and_sent_away(daemon: Daemon, visit: Visit) -> None:
    desk = visit.open(f"{daemon.url}/#/devices", "desk")
    desk.get_by_role("button", name="Let another device in").click()
    link = desk.locator(".invitation pre").inner_text()
    assert link.startswith(f"{daemon.url}/#device=")
    # From now on nobody is let in without a token, and this browser is a device itself.
    assert daemon.client.get("/sessions").status_code == 401
    expect(desk.locator(".device")).to_contain_text("this one")
    phone = visit.open(link)
    expect(phone.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    expect(phone).to_have_url(f"{daemon.url}/#/inbox")
    # The cookie alone is nothing, and neither is the header.
    [cookie] = phone.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    stolen = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    assert daemon.client.get("/sessions", headers=stolen).status_code == 401
    header = {"Agentd-Device": phone.evaluate("localStorage['agentd.device']")}
    assert daemon.client.get("/sessions", headers=header).status_code == 401
    # An invitation is used once.
    second = visit.open(link)
    expect(second.locator("[data-screen=sign-in]")).to_contain_text(
        "the code is wrong, used or expired"
    )
    # Both devices stay let in.
    for page in (desk, phone):
        page.reload()
    expect(phone.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    expect(desk.locator(".device")).to_have_count(2)
    other = desk.locator(".device", has_not_text="this one")
    other.get_by_role("button", name="Revoke").click()
    desk.wait_for_timeout(600)
    other.get_by_role("button", name="Really?").click()
    expect(desk.locator(".device")).to_have_count(1)
    expect(phone.locator("[data-screen=sign-in]")).to_be_visible()


def test_code_is_typed_in(daemon: Daemon, visit: Visit) -> None:
    admin = daemon.post("/tokens", name="boss", scopes=["admin"])["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {admin}"
    code = daemon.post("/devices", name="my phone")["code"]
    page = visit.open(f"{daemon.url}/")
    page.get_by_label("Code").fill("WRONGONE")
    page.get_by_role("button", name="Let this browser in").click()
    expect(page.get_by_role("alert")).to_contain_text("the code is wrong")
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Let this browser in").click()
    expect(page.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    page.goto(f"{daemon.url}/#/devices")
    expect(page.locator(".device")).to_contain_text("my phone")
    page.get_by_role("button", name="Forget everything here").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Really forget everything here?").click()
    expect(page.locator("[data-screen=sign-in]")).to_be_visible()
    until(page, "localStorage.length === 0 && sessionStorage.length === 0")
    listed = daemon.client.get("/devices", headers={"Authorization": f"Bearer {admin}"}).json()
    assert [one["revoked_at"] is not None for one in listed["devices"]] == [True]


def test_share_link_shows_one_session_to_read(daemon: Daemon, visit: Visit) -> None:
    session = daemon.begin(
        [
            ["emit", "agent.message", {"text": "For your eyes"}],
            ["ask", {"text": "May I?", "kind": "approval_request"}],
            ["end", ""],
        ],
        title="Shared",
    )
    request = daemon.question(session)["id"]
    secret = daemon.begin([["end", "x"]], title="Not shared")
    daemon.wait_idle(secret)
    desk = visit.open(f"{daemon.url}/#/s/{session}", "desk")
    desk.get_by_role("button", name="Share").click()
    desk.get_by_role("button", name="Link for a day").click()
    link = desk.locator(".share pre").inner_text()
    reader = visit.open(link)
    expect(reader.locator(".story")).to_contain_text("For your eyes")
    assert link.partition("=")[2] not in reader.url
    expect(reader.get_by_role("textbox", name="Message")).to_have_count(0)
    expect(reader.get_by_text("You read this session by a link.")).to_be_visible()
    expect(reader.get_by_role("button", name="Approve")).to_have_count(0)
    reader.goto(f"{daemon.url}/#/r/{request}")
    expect(reader.locator("article").first).to_contain_text("May I?")
    expect(reader.get_by_role("button", name="Approve")).to_have_count(0)
    reader.goto(f"{daemon.url}/#/sessions")
    expect(reader.locator("[data-screen=sessions] .row")).to_have_count(1)


def test_page_works_below_a_path(tmp_path: Path, visit: Visit) -> None:
    with daemon_at(tmp_path, "--base-path", "/my/agents") as daemon:
        session = daemon.begin(
            [["ask", {"text": "Below?", "kind": "approval_request"}], ["end", "Done below"]],
            title="Below",
        )
        request = daemon.question(session)["id"]
        page = visit.open(f"{daemon.url}/my/agents")
        expect(page).to_have_url(f"{daemon.url}/my/agents/")
        expect(page.locator(".card.request")).to_contain_text("Below?")
        page.goto(f"{daemon.url}/my/agents/r/{request}")
        expect(page).to_have_url(f"{daemon.url}/my/agents/#/r/{request}")
        page.get_by_role("button", name="Approve", exact=True).click()
        expect(page.get_by_text("Approved by local, here")).to_be_visible()
        page.goto(f"{daemon.url}/my/agents/#/s/{session}")
        expect(page.locator(".story")).to_contain_text("Done below")
        scope = page.evaluate("navigator.serviceWorker.ready.then((one) => one.scope)")
        assert scope == f"{daemon.url}/my/agents/"
        until(page, "caches.keys().then((names) => names.length === 1)")
        page.context.set_offline(True)
        page.goto(f"{daemon.url}/my/agents/#/inbox")
        page.reload()
        expect(page.locator("[data-screen=inbox]")).to_be_visible()


def test_notice_is_shown_reported_and_withdrawn(daemon: Daemon, visit: Visit) -> None:
    code = daemon.post("/devices", name="phone")["code"]
    context = visit.device()
    context.grant_permissions(["notifications"], origin=daemon.url)
    page = context.new_page()
    visit.pages.append(page)
    page.goto(f"{daemon.url}/#device={code}")
    expect(page.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    page.evaluate("navigator.serviceWorker.ready")
    # What subscribing leaves for the worker, without the push service of the browser's maker.
    page.evaluate(
        """async () => {
          const { credentials } = await import("./web/app/api.js");
          const cache = await caches.open("credentials-of-agentd");
          await cache.put("credentials", new Response(JSON.stringify(credentials())));
        }"""
    )
    page.goto(f"{daemon.url}/#/status")
    browser = context.new_cdp_session(page)
    found: list[str] = []
    browser.on(
        "ServiceWorker.workerRegistrationUpdated",
        lambda event: found.extend(one["registrationId"] for one in event["registrations"]),
    )
    browser.send("ServiceWorker.enable")
    until(page, "true")
    while not found:
        page.wait_for_timeout(20)

    def push(kind: str, **data: str) -> None:
        message = json.dumps({"type": f"notice.{kind}", "data": data})
        browser.send(
            "ServiceWorker.deliverPushMessage",
            {"origin": f"{daemon.url}/", "registrationId": found[-1], "data": message},
        )

    shown = "navigator.serviceWorker.ready.then((one) => one.getNotifications()).then((all) => all.map((one) => [one.title, one.body, one.tag]))"
    request = {"notice_id": "ntc_1", "request_id": "req_1", "session_id": "ses_1"}
    push("request", title="An agent asks <b>you</b>", session_title="Disk is full", **request)
    until(page, f"{shown}.then((all) => all.length === 1)")
    assert page.evaluate(shown) == [["An agent asks <b>you</b>", "Disk is full", "req_1"]]
    # The report has the device's credentials: the daemon knows the device, and not this notice.
    daemon.until(lambda: statuses(daemon) == [404])
    push("withdrawn", **request)
    until(page, f"{shown}.then((all) => all.length === 0)")


def statuses(daemon: Daemon) -> list[int]:
    """Return how the daemon answered the reports of notices."""
    return [line["status"] for line in daemon.process.log() if line.get("path") == "/push/receipts"]

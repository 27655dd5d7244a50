"""Who is let in: devices, share links, tokens; and the page below a path."""

import re
import time
from pathlib import Path

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import Route, expect
from scanning import scanned
from visits import PATIENCE_S, Visit, pressed_while_held, until


def test_device_is_let_in_by_another_and_sent_away(daemon: Daemon, visit: Visit) -> None:
    desk = visit.open(f"{daemon.url}/#/devices", "desk")
    desk.get_by_role("button", name="Let another device in").click()
    link = desk.locator(".invitation pre").inner_text()
    assert link.startswith(f"{daemon.url}/#device=")
    assert scanned(desk.get_by_role("img", name="QR code of the link")) == link
    expect(desk.locator(".invitation")).to_contain_text("Other machines cannot open this address.")
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
    # What it does is said above the button, and when it was seen last.
    expect(desk.locator("[data-screen=devices]")).to_contain_text(
        "A device that you revoke is signed out at once"
    )
    expect(other).to_contain_text("Last seen")
    other.get_by_role("button", name="Revoke").click()
    desk.wait_for_timeout(600)
    other.get_by_role("button", name="Really revoke?").click()
    expect(desk.locator(".device")).to_have_count(1)
    expect(phone.locator("[data-screen=sign-in]")).to_contain_text("Its access has been revoked")
    # It keeps nothing of what it saw.
    assert phone.evaluate("localStorage['agentd.snapshot'] ?? null") is None


PLACES = """() => [...document.querySelectorAll("[data-screen=devices] h2")].map((one) => one.getBoundingClientRect().top)"""


@pytest.mark.parametrize("size", ["phone", "desk"])
def test_lists_of_devices_move_nothing_when_they_are_there(
    daemon: Daemon, visit: Visit, size: str
) -> None:
    page = visit.open(f"{daemon.url}/#/devices", size)
    page.get_by_role("button", name="Let another device in").click()
    expect(page.locator(".device")).to_contain_text("this one")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(r"/(devices|push/subscriptions)\?"), hold)
    page.reload()
    expect(page.locator("[data-screen=devices]")).to_contain_text("Reading…")
    before = page.evaluate(PLACES)
    deadline = time.monotonic() + PATIENCE_S
    while not held:
        assert time.monotonic() < deadline, "nothing is read"
        page.wait_for_timeout(20)
    page.unroute_all()  # lets all go on
    expect(page.locator(".device")).to_contain_text("this one")
    expect(page.get_by_text("Reading…")).to_have_count(0)
    assert page.evaluate(PLACES) == pytest.approx(before, abs=1)


def test_first_device_is_let_in_although_the_list_comes_while_the_button_is_pressed(
    daemon: Daemon, visit: Visit
) -> None:
    page = visit.open(f"{daemon.url}/")
    with pressed_while_held(page, r"/devices\?", f"{daemon.url}/#/devices") as press:
        press(page.get_by_role("button", name="Let another device in"))
        expect(page.locator("[data-screen=devices]")).to_contain_text("None yet.")
    expect(page.locator(".invitation")).to_be_visible()


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
    desk = visit.open(f"{daemon.url}/#/s/{session}", "desk", "dark")
    desk.get_by_role("button", name="Share").click()
    desk.get_by_role("button", name="Link for a day").click()
    link = desk.locator(".share pre").inner_text()
    assert scanned(desk.get_by_role("img", name="QR code of the link")) == link
    # The first token ends the trust in the machine: the browser that shares became a device before.
    assert daemon.client.get("/sessions").status_code == 401
    desk.reload()
    expect(desk.locator(".story")).to_contain_text("For your eyes")
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
    desk.get_by_role("button", name="Share").click()
    revoke = desk.locator(".share .line").get_by_role("button")
    revoke.click()
    desk.wait_for_timeout(600)
    revoke.click()
    expect(reader.locator("[data-screen=sign-in]")).to_contain_text("This link has expired")
    # Who was a reader can become more.
    invited = desk.evaluate(
        """async () => {
          const { change } = await import("./web/app/api.js");
          return (await change("POST", "devices", {})).code;
        }"""
    )
    reader.goto(f"{daemon.url}/#device={invited}")
    reader.goto(f"{daemon.url}/#/s/{session}")
    expect(reader.get_by_role("textbox", name="Message")).to_be_visible()


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
        page.get_by_role("button", name="Approve once", exact=True).click()
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

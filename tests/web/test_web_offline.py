"""The page without a network, after the device slept, and after the daemon was restarted: it equals the log."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import Page, expect
from test_web_races import open_at, open_in
from visits import PATIENCE_S, Visit, settled, until

import agentd


def shown(page: Page) -> list[str]:
    """Return the texts of the story, messages and answers."""
    return page.evaluate(
        "[...document.querySelectorAll('.story .bubble, .story .agent')].map((one) => one.innerText.trim())"
    )


def said(daemon: Daemon, session: str) -> list[str]:
    """Return the same from the log."""
    kinds = {"message.created", "agent.message"}
    return [
        event["data"]["text"] for event in daemon.events(session) if event["event_type"] in kinds
    ]


def expect_log(page: Page, daemon: Daemon, session: str) -> None:
    texts = said(daemon, session)
    deadline = time.monotonic() + PATIENCE_S
    while (found := shown(page)) != texts:
        assert time.monotonic() < deadline, (found, texts)
        page.wait_for_timeout(20)


def test_page_equals_the_log_after_losses_of_the_network(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([], text="Begin")
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect_log(page, shared, session)
    for number in range(10):
        page.context.set_offline(True)
        if number == 0:
            expect(page.locator(".offline")).to_contain_text("Offline")
        shared.post(f"/sessions/{session}/messages", text=f"while away {number}")
        shared.wait_idle(session)
        page.context.set_offline(False)
        if number % 2:
            # A phone that wakes: the page becomes visible, and its connection may be dead.
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        shared.post(f"/sessions/{session}/messages", text=f"back {number}")
        shared.wait_idle(session)
        expect_log(page, shared, session)


def test_page_equals_the_log_after_the_browser_froze_it(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([], text="Begin")
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect_log(page, shared, session)
    browser = page.context.new_cdp_session(page)
    for number in range(5):
        browser.send("Page.setWebLifecycleState", {"state": "frozen"})
        for part in range(3):
            shared.post(f"/sessions/{session}/messages", text=f"frozen {number}.{part}")
            shared.wait_idle(session)
        browser.send("Page.setWebLifecycleState", {"state": "active"})
        expect_log(page, shared, session)


WRONG_CLOCK = """
const Right = Date;
window.Date = class extends Right {
  constructor(...parts) { parts.length ? super(...parts) : super(Right.now() + OFFSET); }
  static now() { return Right.now() + OFFSET; }
};
"""


@pytest.mark.parametrize("hours", [-5, 5])
def test_clock_that_is_wrong_changes_nothing(shared: Daemon, visit: Visit, hours: int) -> None:
    ask = {"text": "By the clock?", "kind": "approval_request", "expires_in_s": 840}
    session = shared.begin([["ask", ask], ["end", "ok"]], title=f"clock {hours} hours")
    request = shared.question(session)["id"]
    context = visit.device()
    context.add_init_script(WRONG_CLOCK.replace("OFFSET", str(hours * 3_600_000)))
    page = context.new_page()
    visit.pages.append(page)
    page.goto(f"{shared.url}/#/inbox")
    card = page.locator(f".card[data-request={request}]")
    expect(card.locator(".left")).to_contain_text("13 min left")
    page.goto(f"{shared.url}/#/sessions")
    row = page.locator("[data-screen=sessions] .row", has_text=f"clock {hours} hours")
    expect(row.locator("time")).to_contain_text(re.compile(r"^(now|\d\d? s ago)$"))
    page.context.set_offline(True)
    expect(page.locator(".offline")).to_contain_text("as of just now")
    page.context.set_offline(False)
    expect(page.locator(".offline")).to_have_count(0)
    page.goto(f"{shared.url}/#/inbox")
    card.get_by_role("button", name="Deny", exact=True).click()
    expect(page.get_by_label("Just decided")).to_contain_text("By the clock?")


def test_two_tabs_of_a_browser_send_an_answer_once(daemon: Daemon, visit: Visit) -> None:
    session = daemon.begin([], text="Begin")
    daemon.wait_idle(session)
    first = visit.open(f"{daemon.url}/#/s/{session}")
    expect(first.locator(".story")).to_contain_text("You said: Begin")
    second = first.context.new_page()
    visit.pages.append(second)
    second.goto(f"{daemon.url}/#/s/{session}")
    expect(second.locator(".story")).to_contain_text("You said: Begin")
    first.context.set_offline(True)
    first.get_by_role("textbox", name="Message").fill("From one of two")
    first.get_by_role("button", name="Start").click()
    expect(second.locator(".pending")).to_contain_text("From one of two")
    first.context.set_offline(False)
    for page in (first, second):
        expect(page.locator(".story")).to_contain_text("You said: From one of two")
        expect(page.locator(".pending")).to_have_count(0)
    assert said(daemon, session).count("From one of two") == 1


def test_button_of_the_browser_leads_back(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([["end", "Done."]], title="There and back")
    shared.wait_idle(session)
    page = settled(visit.open(f"{shared.url}/#/sessions"))
    page.get_by_text("There and back").click()
    page.get_by_role("link", name="Details").click()
    expect(page.locator("[data-screen=details]")).to_be_visible()
    page.go_back()
    expect(page.locator("[data-screen=session]")).to_be_visible()
    page.go_back()
    expect(page.locator("[data-screen=sessions]")).to_be_visible()
    page.go_forward()
    expect(page.locator("[data-screen=session]")).to_contain_text("Done.")


HOLD = """
window.held = [];
window.isHolding = true;
const send = window.fetch;
window.fetch = async (...call) => {
  const answer = await send(...call);
  if (window.isHolding && /sessions\\/.*\\/events/.test(call[0])) await new Promise((go) => window.held.push(go));
  return answer;
};
"""
"""Hold answers with events of a session until they are let go."""

HAS_SEQ = """([id, last]) => import("./web/app/state.js").then(({ sessions }) => sessions.value.get(id).last_seq === last)"""


def test_events_that_come_while_the_log_is_read_are_not_left_out(
    shared: Daemon, visit: Visit
) -> None:
    """The log is read at its opening and after a loss; the stream has more before the answer is there."""
    session = shared.begin([], text="Begin")
    shared.wait_idle(session)
    context = visit.device()
    context.add_init_script(HOLD)
    page = context.new_page()
    visit.pages.append(page)
    page.goto(f"{shared.url}/#/s/{session}")

    def expect_all_after(text: str) -> None:
        until(page, "window.held.length > 0")
        shared.post(f"/sessions/{session}/messages", text=text)
        shared.wait_idle(session)
        last = shared.get(f"/sessions/{session}")["session"]["last_seq"]
        until(page, HAS_SEQ, [session, last])
        page.evaluate("window.isHolding = false; window.held.splice(0).forEach((go) => go())")
        expect_log(page, shared, session)

    expect_all_after("while it opens")
    page.context.set_offline(True)
    expect(page.locator(".offline")).to_be_visible()
    page.evaluate("window.isHolding = true")
    page.context.set_offline(False)
    expect_all_after("while it is filled")


def test_page_opens_without_a_network_and_sends_once(daemon: Daemon, visit: Visit) -> None:
    session = daemon.begin([], text="Begin", title="Kept")
    daemon.wait_idle(session)
    page = visit.open(f"{daemon.url}/#/sessions")
    expect(page.locator("[data-screen=sessions]")).to_contain_text("Kept")
    page.evaluate("navigator.serviceWorker.ready")
    until(page, "caches.keys().then((names) => names.length === 1)")
    # What the page knows is kept when it is hidden or closed.
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    page.context.set_offline(True)
    page.goto(f"{daemon.url}/r/req_none")
    expect(page).to_have_url(f"{daemon.url}/#/r/req_none")
    page.goto(f"{daemon.url}/#/sessions")
    expect(page.locator("[data-screen=sessions]")).to_contain_text("Kept")
    expect(page.locator(".offline")).to_contain_text("Offline")
    page.goto(f"{daemon.url}/#/s/{session}")
    page.get_by_role("textbox", name="Message").fill("Written on a train")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".pending")).to_contain_text("Written on a train")
    page.reload()
    expect(page.locator(".composer")).to_contain_text("Waits for the network; it is sent once.")
    page.context.set_offline(False)
    expect(page.locator(".story")).to_contain_text("You said: Written on a train")
    expect(page.locator(".pending")).to_have_count(0)
    assert said(daemon, session).count("Written on a train") == 1


def later_version(directory: Path) -> Path:
    """Return a folder with an agentd whose page has another style sheet."""
    shutil.copytree(Path(agentd.__file__).parent, directory / "agentd")
    with (directory / "agentd/web/static/app.css").open("a") as styles:
        styles.write("\n.later { color: red; }\n")
    return directory


def test_page_follows_a_daemon_that_is_killed_and_a_later_one(tmp_path: Path, visit: Visit) -> None:
    with daemon_at(tmp_path) as daemon:
        port = daemon.url.rpartition(":")[2]
        session = daemon.begin([], text="Before")
        daemon.wait_idle(session)
        asking = daemon.begin(
            [["ask", {"text": "May I?", "kind": "approval_request"}], ["end", "ok"]], title="Asking"
        )
        request = daemon.question(asking)["id"]
        page = visit.open(f"{daemon.url}/#/s/{session}")
        expect_log(page, daemon, session)
        inbox = visit.open(f"{daemon.url}/")
        until(inbox, "navigator.serviceWorker.controller !== null")
        [kept] = inbox.evaluate("caches.keys()")
        expect(inbox.locator(f".card[data-request={request}]")).to_be_visible()
        daemon.process.signal(signal.SIGKILL)
        daemon.process.wait()
        expect(page.locator(".offline")).to_contain_text("No connection to the daemon")
        page.get_by_role("textbox", name="Message").fill("Meanwhile")
        page.get_by_role("button", name="Start").click()
    with daemon_at(tmp_path, "--port", port, packages=later_version(tmp_path / "later")) as daemon:
        expect(page.locator(".story")).to_contain_text("You said: Meanwhile")
        daemon.wait_idle(session)
        expect_log(page, daemon, session)
        expect(page.locator(".offline")).to_have_count(0)
        expect(inbox.locator(".offline")).to_have_count(0)
        # The agent that asked was lost, and its run continues, fails or asks again: the inbox is the daemon's.
        daemon.until(
            lambda: daemon.get(f"/runs?session_id={asking}")["runs"][0]["status"] != "running"
        )
        daemon.until(lambda: open_in(inbox) == open_at(daemon))
        # The page of the later daemon is there already, and used when the user is ready.
        expect(inbox.get_by_text("There is a new version of this page.")).to_be_visible()
        until(
            inbox,
            "kept => caches.keys().then((names) => names.length === 1 && names[0] !== kept)",
            kept,
        )
        inbox.get_by_role("button", name="Reload").click()
        expect(inbox.locator("[data-screen=inbox]")).to_be_visible()
        expect(inbox.get_by_text("There is a new version of this page.")).to_have_count(0)
        assert ".later" in inbox.evaluate("fetch('web/app.css').then((answer) => answer.text())")

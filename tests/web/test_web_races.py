"""Many clients and many requests at once: each request is decided once, and everyone sees by whom."""

import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from daemons import PATIENCE_S, Daemon, daemon_at
from playwright.sync_api import Page, expect
from scenes import command
from visits import Visit, until

RACES = 50
CLIENTS = ("ann", "bob", "cat")
OPEN = 20

FIND_ALL = """({ label, fromTheEnd }) => {
  window.found = [...document.querySelectorAll(".card.request .actions button")].filter((one) => one.innerText === label);
  if (fromTheEnd) window.found.reverse();
  return window.found.length;
}"""
"""Find the buttons of all cards; return how many there are. It may take long, so no button is pressed meanwhile."""

PRESS_ALL = (
    "(at) => void setTimeout(() => window.found.forEach((one) => one.click()), at - Date.now())"
)
"""Press what was found, at a moment."""

NOTES = """async ([expected, seconds]) => {
  const found = {};
  const end = performance.now() + 1000 * seconds;
  for (const [id, words] of Object.entries(expected)) {
    location.hash = `#/r/${id}`;
    for (;;) {
      const note = document.querySelector(`[data-screen=request] .closed-request[data-request=${id}] strong`);
      found[id] = note?.innerText;
      if (found[id] === words || performance.now() > end) break;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  return found;
}"""
"""Open each request alone; return what the page says of its decision. An event may have come before the answer to
the page's own press, so what is expected may be there a little later."""


def ask(daemon: Daemon, count: int) -> dict[str, str]:
    """Begin sessions that ask different things; return their ids by those of their requests."""
    here = str(daemon.directory)
    sessions = [
        daemon.begin(
            [["ask", command(f"Run: make {number}", f"make {number}", here)], ["end", "Done."]],
            title=f"session {number}",
            cwd=here,
        )
        for number in range(count)
    ]
    return {daemon.question(session)["id"]: session for session in sessions}


def signed_in(daemon: Daemon, visit: Visit, secret: str) -> Page:
    page = visit.open("about:blank")
    page.context.add_init_script(f"sessionStorage.setItem('agentd.token', '{secret}')")
    page.goto(f"{daemon.url}/")
    return page


@pytest.mark.timeout(300)
def test_three_clients_race_for_fifty_requests(daemon: Daemon, visit: Visit) -> None:
    secrets = {}
    for name in CLIENTS:
        secrets[name] = daemon.post("/tokens", name=name, scopes=["admin"])["secret"]
        daemon.client.headers["Authorization"] = f"Bearer {secrets[name]}"
    asked = ask(daemon, RACES)
    pages = {name: signed_in(daemon, visit, secrets[name]) for name in CLIENTS}
    for page in pages.values():
        expect(page.locator(".card.request")).to_have_count(RACES)
        # A screen on which all of them were seen: before that, none can be approved.
        page.set_viewport_size({"width": 390, "height": 600 * RACES})
        expect(page.get_by_role("button", name="Approve once", exact=True)).to_have_count(RACES)
        expect(page.locator(".card.request [aria-disabled=true]")).to_have_count(0)
    for page, label in zip(pages.values(), ("Approve once", "Deny", "Approve once"), strict=True):
        # Not all in the same order: one page may be a little faster with all of them.
        assert page.evaluate(FIND_ALL, {"label": label, "fromTheEnd": label == "Deny"}) == RACES
    moment = pages["ann"].evaluate("Date.now()") + 2000
    for page in pages.values():
        page.evaluate(PRESS_ALL, moment)
    for page in pages.values():
        expect(page.locator(".card.request")).to_have_count(0)
    resolved = {request: daemon.get(f"/requests/{request}")["request"] for request in asked}
    for request, session in asked.items():
        kinds = [event["event_type"] for event in daemon.events(session)]
        assert kinds.count("request.resolved") == 1, request
        assert resolved[request]["status"] in ("approved", "denied")
    winners = Counter(one["decided_by"] for one in resolved.values())
    for name, page in pages.items():
        expected = {
            request: f"{one['status'].capitalize()} by {one['decided_by']}"
            + (", here" if name == one["decided_by"] else "")
            for request, one in resolved.items()
        }
        assert page.evaluate(NOTES, [expected, PATIENCE_S]) == expected, name
    assert sum(winners.values()) == RACES
    assert len(winners) > 1, "nobody raced"


def test_page_is_the_daemons_after_kill_9_with_20_requests_open(
    tmp_path: Path, visit: Visit
) -> None:
    with daemon_at(tmp_path) as daemon:
        port = daemon.url.rpartition(":")[2]
        asked = ask(daemon, OPEN)
        page = visit.open(f"{daemon.url}/")
        expect(page.locator(".card.request")).to_have_count(OPEN)
        daemon.process.signal(signal.SIGKILL)
        daemon.process.wait()
        expect(page.locator(".offline")).to_contain_text("No connection to the daemon")
        for request in list(asked)[: OPEN // 2]:
            card = page.locator(f".card[data-request={request}]")
            card.get_by_role("button", name="Deny", exact=True).click()
            expect(card.locator(".sending")).to_be_visible()
        expect(page.locator(".offline")).to_contain_text(f"{OPEN // 2} changes will be sent")
    with daemon_at(tmp_path, "--port", port) as daemon:
        expect(page.locator(".offline")).to_have_count(0)
        until(page, "localStorage['agentd.outbox'] === '[]'")
        print(Counter(daemon.get(f"/requests/{one}")["request"]["status"] for one in asked))
        # Every answer was taken once or was too late.
        for request, session in asked.items():
            daemon.until(partial(is_resolved_once_or_open, daemon, session, request))
        # What is open in the daemon is open in the page, and nothing else.
        daemon.until(lambda: open_in(page) == open_at(daemon))
        expect(page.locator(".sending, .failed-note")).to_have_count(0)


def is_resolved_once_or_open(daemon: Daemon, session: str, request: str) -> bool:
    """The daemon may still be closing the requests of agents that it has lost."""
    one = daemon.get(f"/requests/{request}")["request"]
    kinds = [event["event_type"] for event in daemon.events(session)]
    return kinds.count("request.resolved") == (one["status"] != "pending")


def open_in(page: Page) -> set[str]:
    """Return the requests that the inbox shows."""
    cards = "[...document.querySelectorAll('.card.request')].map((one) => one.dataset.request)"
    return set(page.evaluate(cards))


def open_at(daemon: Daemon) -> set[str]:
    return {one["id"] for one in daemon.get("/requests", order="deadline")["requests"]}

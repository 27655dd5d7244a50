"""The page's pace on a phone of the middle class: a slower processor and a mobile network, by the browser's own emulation.

``./bin/test tests/web/test_web_pace.py -s`` prints the figures that docs/web.md has.
"""

import os
from typing import Any

import pytest
from daemons import Daemon
from pace import allowed, allowed_work
from playwright.sync_api import Page, expect
from scenes import ANSWER, command, plan, tool
from traces import tasks_of
from visits import Visit, until

WHOLE_BROWSER = True

SLOWER: int = 4
"""How many times slower than here a phone of the middle class is."""

STREAM_SECONDS = int(os.environ.get("STREAM_SECONDS", "60"))
"""How long text streams in."""

WATCH = """
window.measured = { shifts: 0, largest: 0 };
for (const [type, note] of [
  ["layout-shift", (one) => { if (!one.hadRecentInput) window.measured.shifts += one.value; }],
  ["largest-contentful-paint", (one) => { window.measured.largest = one.startTime; }],
]) new PerformanceObserver((list) => list.getEntries().forEach(note)).observe({ type, buffered: true });
"""

FIGURES = """() => {
  const { shifts, largest } = window.measured;
  const first = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  const entries = ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type));
  const files = entries.filter((one) => one.entryType === "navigation" || one.name.includes("/web/"));
  return {
    "first paint, s": first / 1000,
    "largest paint, s": largest / 1000,
    "usable, s": (performance.getEntriesByName("usable")[0]?.startTime ?? largest) / 1000,
    "layout shift": shifts,
    "kB of files": files.reduce((sum, one) => sum + one.transferSize, 0) / 1000,
  };
}"""

BOUNDS = {
    "first paint, s": 1.5,
    "largest paint, s": 1.5,
    "usable, s": 1.5,
    "blocking, s": 0.2,
    "layout shift": 0.05,
    "kB of files": 116,
}
"""What a visit takes at most. Lighthouse calls 1.8, 2.5, -, 0.2 and 0.1 good."""


def as_phone(page: Page) -> None:
    browser = page.context.new_cdp_session(page)
    browser.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    browser.send("Network.enable")
    network = {
        "offline": False,
        "latency": 60,
        "downloadThroughput": 9e6 / 8,
        "uploadThroughput": 3e6 / 8,
    }
    browser.send("Network.emulateNetworkConditions", network)


def is_within(figures: dict[str, float]) -> bool:
    """Return whether all are within their bounds; those in seconds are stretched on a busy machine."""
    return all(
        figures[name] <= (allowed(bound) if name.endswith(", s") else bound)
        for name, bound in BOUNDS.items()
    )


def printed(name: str, figures: dict[str, float]) -> None:
    print(f"\n| {name} | " + " | ".join(f"{figures[one]:.2f}" for one in BOUNDS) + " |")


@pytest.mark.parametrize("screen", ["inbox", "inbox again", "story"])
def test_visit_is_quick(shared: Daemon, visit: Visit, screen: str) -> None:
    here = str(shared.directory)
    asking = shared.begin(
        [["ask", command("May I?", "make docs", here)], ["end", ""]], title="Docs", cwd=here
    )
    shared.question(asking)
    told = shared.begin(
        [plan(1), *(step for n in range(40) for step in tool(f"t{n}", f"pytest -q {n}", "1 passed\n" * 20)), ["emit", "agent.message", {"text": ANSWER}], ["end", ANSWER]],
        title="Told",
    )  # fmt: skip
    shared.wait_idle(told)
    is_story = screen == "story"
    address = f"{shared.url}/#/s/{told}" if is_story else f"{shared.url}/"
    found: list[dict[str, float]] = []
    # The best of three: other load on the machine makes it longer, too.
    while not found or (not is_within(found[-1]) and len(found) < 3):
        context = visit.device()
        context.add_init_script(WATCH)
        page = context.new_page()
        if screen == "inbox again":
            page.goto(address)
            expect(page.locator(".card.request").first).to_be_visible()
            until(page, "navigator.serviceWorker.controller !== null")
            page.goto("about:blank")
        as_phone(page)
        with tasks_of(page) as tasks:
            page.goto(address)
            last = ".story .end" if is_story else ".card.request"
            expect(page.locator(last).first).to_be_visible()
            # What is drawn last is reported with the next frames.
            page.wait_for_timeout(500)
        found.append({**page.evaluate(FIGURES), "blocking, s": tasks.blocking / 1000})
        context.close()
        visit.contexts.pop()
    printed(screen, found[-1])
    assert is_within(found[-1]), found


FRAMES = """() => {
  window.frames = { gaps: [], last: performance.now(), isOn: true };
  const frame = (at) => {
    window.frames.gaps.push(at - window.frames.last);
    window.frames.last = at;
    if (window.frames.isOn) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}"""


def smoothness(page: Page) -> dict[str, Any]:
    """Return how regularly frames came since ``FRAMES``."""
    found: dict[str, Any] = page.evaluate(
        """() => {
          window.frames.isOn = false;
          const gaps = window.frames.gaps.slice(2).sort((a, b) => a - b);
          const sum = gaps.reduce((all, one) => all + one, 0);
          const at = (share) => gaps[Math.floor(gaps.length * share)];
          return {
            frames_a_second: (1000 * gaps.length) / sum, late: gaps.filter((one) => one > 34).length / gaps.length,
            gap_99: at(0.99), longest_gap: gaps.at(-1), seconds: sum / 1000,
          };
        }"""
    )
    return found


@pytest.mark.timeout(STREAM_SECONDS * 3 + 120)
def test_text_that_streams_in_leaves_time_for_the_user(shared: Daemon, visit: Visit) -> None:
    go = shared.directory / "pace"
    count = STREAM_SECONDS * 50
    session = shared.begin([["file", str(go)], ["deltas", count, 0.02], ["end", ""]])
    context = visit.device()
    context.add_init_script(WATCH)
    page = context.new_page()
    visit.pages.append(page)
    page.goto(f"{shared.url}/#/s/{session}")
    expect(page.locator(".mine .receipt")).to_contain_text("delivered")
    as_phone(page)
    with tasks_of(page) as tasks:
        page.evaluate(FRAMES)
        go.touch()
        expect(page.locator(".agent")).to_contain_text(
            f"word{count - 1}", timeout=STREAM_SECONDS * 2000 + 60_000
        )
        until(page, "document.querySelector('.typing') === null")
        found = smoothness(page)
    print(
        f"\nstreaming {found}, longest {tasks.longest:.0f} ms, busy {tasks.total / found['seconds'] / 10:.0f} %"
    )
    assert found["seconds"] > STREAM_SECONDS * 0.9
    assert tasks.longest < allowed_work(100)
    # Half of the processor is left: frames are late only where other programs take it.
    assert tasks.total / 1000 < found["seconds"] / 2
    assert found["frames_a_second"] > 55 / allowed(1.0)


LOG = int(os.environ.get("LOG_EVENTS", "100000"))

OPEN = """(last) => new Promise((resolve) => {
  const began = performance.now();
  const look = () => document.querySelector(".story")?.textContent.includes(last)
    ? requestAnimationFrame(() => resolve(performance.now() - began)) : requestAnimationFrame(look);
  look();
})"""

SCROLL = """(text) => new Promise((resolve) => {
  const box = document.querySelector(".story");
  let left = 60 * 120;
  const up = () => {
    box.scrollTop -= 400;
    if (box.textContent.includes(text) || !left--) resolve(left);
    else requestAnimationFrame(up);
  };
  up();
})"""
"""Scroll up, as a thumb that never stops, until a text is shown."""


@pytest.mark.timeout(400)
def test_log_of_100_000_events_is_smooth(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([["many", LOG], ["end", "The end"]], text="The beginning")
    shared.wait_idle(session, 200)
    context = visit.device()
    context.add_init_script(WATCH)
    page = context.new_page()
    visit.pages.append(page)
    took: list[float] = []
    # The best of three: other load on the machine makes it longer, too.
    while not took or (took[-1] >= 1000 and len(took) < 3):
        page.goto(f"{shared.url}/#/sessions")
        page.reload()
        expect(page.locator("[data-screen=sessions] .row").first).to_be_visible()
        page.evaluate("id => (location.hash = `#/s/${id}`)", session)
        took.append(page.evaluate(OPEN, f"message {LOG - 1}"))
    opened = min(took)
    assert opened < allowed(1.0) * 1000, took
    with tasks_of(page) as tasks:
        page.evaluate(FRAMES)
        assert page.evaluate(SCROLL, f"message {LOG - 6000}") > 0
        found = smoothness(page)
    print(f"\nopened in {opened:.0f} ms, scrolled {found}, longest {tasks.longest:.0f} ms")
    assert page.evaluate("document.querySelectorAll('.entry').length") <= 360
    assert tasks.longest < allowed_work(100)

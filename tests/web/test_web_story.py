"""Sessions and their stories: what an agent does is shown as it happens, and messages reach it."""

import re
from pathlib import Path

from daemons import Daemon, daemon_at
from pace import allowed
from playwright.sync_api import Page, Route, expect
from scenes import ANSWER, PATCH, plan, tool
from visits import Phone, Visit, first_held, settled, until


def story(page: Page):
    return page.locator("[data-screen=session]")


def test_story_has_all_that_the_agent_did(shared: Daemon, phone: Phone) -> None:
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
    page = phone.at(f"/s/{session}")
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


def test_request_is_shown_decided_though_the_answer_was_there_before_its_event(
    shared: Daemon, visit: Visit
) -> None:
    session = shared.begin([["ask", {"text": "May I?", "kind": "approval_request"}], ["end", "ok"]])
    request = shared.question(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    expect(story(page).locator(".card.request")).to_be_visible()
    # The answer takes the request out of the inbox; the story waits for the event.
    page.evaluate(
        """async () => {
          const { requests } = await import("./web/app/state.js");
          requests.value = new Map();
        }"""
    )
    expect(story(page)).to_contain_text("asks May I?")
    page.evaluate(
        """async ([id, request]) => {
          const { logOf } = await import("./web/app/logs.js");
          const log = logOf(id);
          const event = { event_type: "request.resolved", session_id: id, run_id: request.run_id, attempt: 1 };
          log.append([{ ...event, seq: log.last + 1, created_at: request.created_at, data: request }]);
        }""",
        [session, {**request, "status": "denied", "decided_by": "somebody"}],
    )
    expect(story(page).locator(".closed-request")).to_contain_text("Denied by somebody")


def test_text_streams_in(shared: Daemon, phone: Phone) -> None:
    go, end = shared.directory / "stream", shared.directory / "end-of-stream"
    session = shared.begin([["file", str(go)], ["deltas", 300, 0.005, str(end)], ["end", ""]])
    page = phone.at(f"/s/{session}")
    expect(story(page).locator(".mine .receipt")).to_contain_text("delivered")
    go.touch()
    expect(story(page).locator(".agent")).to_contain_text("word299")
    expect(story(page).locator(".typing")).to_be_visible()
    end.touch()
    expect(story(page).locator(".typing")).to_have_count(0)
    expect(story(page).locator(".agent")).to_contain_text("word299")
    bottom = "(box => box.scrollHeight - box.scrollTop - box.clientHeight)(document.querySelector('.story'))"
    until(page, f"{bottom} < 4")
    assert page.evaluate("document.querySelector('.story').scrollTop > 0")


def test_composer_says_what_a_message_does(shared: Daemon, phone: Phone) -> None:
    page = phone.at("/new")
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
    steered = story(page).locator(".mine", has_text="Look at the tests too").locator(".receipt")
    expect(steered).to_contain_text("delivered")
    page.get_by_role("button", name="Queue").click()
    page.get_by_role("textbox", name="Message").fill("Then write the notes")
    page.locator(".composer button[type=submit]", has_text="Queue").click()
    expect(story(page).locator(".mine .receipt").last).to_contain_text("queued")
    go.touch()
    # The queued message begins a run, which plays the script again.
    expect(story(page).locator(".mine .receipt").last).to_contain_text("delivered")
    expect(steered).to_contain_text("done")
    # Interrupting has the same receipts, and so has each after a new visit.
    page.get_by_role("textbox", name="Message").fill("Stop that, and sum up")
    page.get_by_role("button", name="Interrupt").click()
    page.locator(".composer button[type=submit]", has_text="Interrupt").click()
    interrupting = story(page).locator(".mine", has_text="and sum up").locator(".receipt")
    expect(interrupting).to_contain_text("delivered")
    stopped = story(page).locator(".mine", has_text="write the notes").locator(".receipt")
    expect(stopped).to_contain_text("canceled")
    page.reload()
    expect(steered).to_contain_text("done")
    expect(interrupting).to_contain_text("delivered")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Stop it?").click()
    expect(story(page).locator(".mine .receipt").last).to_contain_text("canceled")


def test_receipt_of_a_message_that_the_agent_does_not_take(shared: Daemon, phone: Phone) -> None:
    """It says "queued" until the agent has it, also if that takes another run."""
    go = shared.directory / "untaken"
    session = shared.begin([["steerable", str(go)], ["end", "Finished"]])
    page = phone.at(f"/s/{session}")
    page.get_by_role("textbox", name="Message").fill("Never read")
    expect(page.get_by_role("button", name="Steer", pressed=True)).to_be_visible()
    page.locator(".composer button[type=submit]", has_text="Steer").click()
    receipt = story(page).locator(".mine", has_text="Never read").locator(".receipt")
    expect(receipt).to_contain_text("queued")
    messages = shared.get(f"/sessions/{session}/messages")["messages"]
    assert [(one["is_steering"], one["delivery"]) for one in messages] == [
        (False, "delivered"),
        (True, "queued"),
    ]
    go.touch()
    expect(receipt).to_contain_text("done")  # its own run plays the script again


def test_session_is_renamed_closed_and_opened_again(shared: Daemon, phone: Phone) -> None:
    session = shared.begin([["end", "Done."]], title="Old name")
    page = phone.at(f"/s/{session}/details")
    # What is refused is said below the buttons, so that they stay under the finger.
    before = page.get_by_role("button", name="Rename").bounding_box()
    page.get_by_role("button", name="Change the directory").click()
    page.get_by_label("Absolute path").fill("/there/is/no/such/directory")
    page.get_by_role("button", name="Change", exact=True).click()
    refused = page.get_by_role("alert")
    expect(refused).to_contain_text("/there/is/no/such/directory")
    assert page.get_by_role("button", name="Rename").bounding_box() == before
    refused.get_by_role("button", name="Dismiss").click()
    expect(refused).to_have_count(0)
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


def test_details_are_those_of_the_session_that_is_open(shared: Daemon, visit: Visit) -> None:
    """A wide window shows the details beside the story: none of the session before, also while they are read."""
    first = shared.begin([["end", "One."]], title="One run")
    second = shared.begin([["fail", "provider_error", "Broken."]], title="Two failed")
    for session in (first, second):
        shared.wait_idle(session)
    page = visit.open("about:blank", "desk")
    page.context.add_init_script(
        """
        const send = window.fetch;
        window.fetch = async (...call) => {
          if (window.isHolding && /runs[?]/.test(call[0])) await new Promise(() => {});
          return send(...call);
        };"""
    )
    page.goto(f"{shared.url}/#/s/{first}")
    runs = page.locator(".side-pane section", has=page.get_by_role("heading", name="Runs"))
    expect(runs).to_contain_text("done")
    page.evaluate("id => { window.isHolding = true; location.hash = `#/s/${id}`; }", second)
    expect(page.locator(".main-pane h1")).to_have_text("Two failed")
    expect(runs).to_contain_text("Reading…")
    expect(runs).not_to_contain_text("done")
    expect(runs).not_to_contain_text("None yet")


def test_session_gets_a_helper_and_another_directory(shared: Daemon, phone: Phone) -> None:
    session = shared.begin([["end", "Done."]], title="Above all")
    shared.wait_idle(session)
    page = phone.at(f"/s/{session}/details")
    page.get_by_role("button", name="Change the directory").click()
    page.get_by_label("Absolute path").fill(str(shared.directory))
    page.get_by_role("button", name="Change", exact=True).click()
    expect(page.locator("dl")).to_contain_text(str(shared.directory))
    shared.until(
        lambda: shared.get(f"/sessions/{session}")["session"]["cwd"] == str(shared.directory)
    )
    page.get_by_role("button", name="Start a helper").click()
    page.get_by_label("Its task").fill("Look around")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(story(page)).to_contain_text("You said: Look around")
    expect(page.locator(".bar .sub")).to_contain_text("Above all")


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
    expect(story(page).locator(".since ~ .entry", has_text="Second").first).to_be_visible()
    # Another device of the same token knows it too.
    wait_seen(shared, session)
    other = visit.open(f"{shared.url}/#/s/{session}", "tablet")
    expect(story(other)).to_contain_text("Second")
    expect(other.locator(".since")).to_have_count(0)


def test_failed_run_is_explained_and_sent_again(shared: Daemon, phone: Phone) -> None:
    session = shared.begin(
        [["fail", "rate_limited", "Too many requests."]], text="Try this", title="Limits"
    )
    shared.wait_idle(session)
    page = phone.at(f"/s/{session}")
    expect(story(page).locator(".failed-note")).to_contain_text("Too many requests.")
    story(page).get_by_role("link", name="why?").click()
    expect(page.locator("[data-screen=run]")).to_contain_text("rate_limited")
    expect(page.locator("[data-screen=run]")).to_contain_text("Attempts")
    expect(page.locator("[data-screen=run] .quoted")).to_have_text("Try this")
    took = re.compile(r"Took(less than 1 s|\d)")
    expect(page.locator("[data-screen=run] dl")).to_contain_text(took)
    page.get_by_role("button", name="Send its message again").click()
    expect(story(page).locator(".mine")).to_have_count(2)
    assert [one["text"] for one in shared.get(f"/sessions/{session}/messages")["messages"]] == [
        "Try this",
        "Try this",
    ]


def test_run_leads_to_what_there_is(shared: Daemon, visit: Visit) -> None:
    """A run without output on standard error does not lead there; a long message is folded."""
    text = "Write it all down. " * 40
    failed = shared.begin([["fail", "provider_error", "Overloaded."]], text=text)
    shared.wait_idle(failed)
    asking = shared.begin([["ask", {"text": "Now?", "kind": "approval_request"}], ["end", ""]])
    request = shared.question(asking)
    run = shared.get("/runs", session_id=failed)["runs"][0]["id"]
    page = visit.open(f"{shared.url}/#/run/{run}")
    screen = page.locator("[data-screen=run]")
    expect(screen).to_contain_text("sending the message again may help")
    expect(screen).not_to_contain_text("standard error")
    expect(screen).not_to_contain_text("stderr")
    quoted = screen.locator(".quoted")
    expect(quoted.locator("details")).not_to_have_attribute("open", "")
    quoted.locator("summary").click()
    expect(quoted.locator("details > .markdown")).to_have_text(text.strip())
    page.goto(f"{shared.url}/#/run/{request['run_id']}")
    expect(screen.locator("dl")).to_contain_text("At work for")
    screen.get_by_role("link", name="Open the request").click()
    expect(page.locator("[data-screen=request] .card")).to_contain_text("Now?")


def test_buttons_of_a_session_stay_where_they_are(shared: Daemon, visit: Visit) -> None:
    session = shared.begin(
        [
            plan(1),
            ["emit", "file.changed", {"tool_id": "t2", "status": "completed", "changes": [{"path": "a.py", "kind": "update", "diff": PATCH}]}],
            ["end", "Done."],
        ],
        title="Moves nothing",
    )  # fmt: skip
    shared.wait_idle(session)
    page = visit.open("about:blank")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(r"/(runs\?|sessions/[^/]+/(diff|events))"), hold)
    page.goto(f"{shared.url}/#/s/{session}/details")
    button = page.get_by_role("button", name="Rename")
    expect(button).to_be_visible()
    until(page, "document.querySelector('.details dl') !== null")
    before = button.bounding_box()
    first_held(page, held)
    page.unroute_all()  # lets all go on
    expect(page.locator(".details .diff")).to_be_visible()
    expect(page.locator(".details section", has_text="Runs").first).to_contain_text("done")
    assert button.bounding_box() == before


def test_story_waits_for_no_list_and_the_worker_for_all(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([["emit", "agent.message", {"text": "Early."}], ["end", "Early."]])
    shared.wait_idle(session)
    page = visit.open("about:blank")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(re.compile(r"/(sessions\?|requests\?|daemon/status|stream\?)"), hold)
    page.goto(f"{shared.url}/#/s/{session}")
    expect(story(page)).to_contain_text("Early.")
    assert held
    # The worker reads all files again.
    page.wait_for_timeout(1200)
    assert (
        page.evaluate("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0
    )
    page.unroute_all()  # lets all go on
    until(page, "navigator.serviceWorker.controller !== null")
    # What came between the reading and the stream is there, too.
    shared.post(f"/sessions/{session}/messages", text="Once more")
    expect(story(page).locator(".mine")).to_have_count(2)


ODD = ("תיקון הבאג בכניסה למערכת", "👩‍👩‍👧‍👦🚀 ship it", "x" * 200, "a\u202egnp.exe", None)


def test_odd_titles_fit_and_stay_in_their_place(shared: Daemon, phone: Phone) -> None:
    ids = [shared.begin([["end", ""]], **({"title": title} if title else {})) for title in ODD]
    for session in ids:
        shared.wait_idle(session)
    page = phone.at("/sessions")
    for session in ids:
        row = page.locator(f"[data-screen=sessions] a[href$='s/{session}']")
        expect(row.locator(".unread")).to_be_visible()
        # In one moment: the rows move when others have news.
        left, top = row.evaluate(
            """(row) => {
              const places = [".unread", ".row-title", "time"].map((part) => row.querySelector(part).getBoundingClientRect());
              return [places.map(({ x }) => x), places.map(({ y }) => y)];
            }"""
        )
        assert left == sorted(left)
        # The mark is on the first line of the title.
        assert top[0] < top[1] + 24
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_desk_shows_details_only_beside_what_has_some(shared: Daemon, visit: Visit) -> None:
    asking = shared.begin([["ask", {"text": "Beside?", "kind": "approval_request"}], ["end", ""]])
    request = shared.question(asking)["id"]
    page = visit.open(f"{shared.url}/#/inbox", "desk")
    expect(page.locator(".card.request").first).to_be_visible()
    expect(page.locator(".side-pane")).to_have_count(0)
    page.goto(f"{shared.url}/#/r/{request}")
    expect(page.locator(".side-pane dl")).to_contain_text(asking)
    page.goto(f"{shared.url}/#/new")
    expect(page.locator(".side-pane")).to_have_count(0)


SHELL = """
[providers.shell]
runner = "command"
prompt = "argument"
argv = ["sh", "-c", "echo that is odd >&2; sleep 300 & wait", "{prompt}"]
"""


def test_run_of_a_program_shows_how_it_was_started_and_its_processes(
    tmp_path: Path, visit: Visit
) -> None:
    with daemon_at(tmp_path, configuration=SHELL) as daemon:
        begun = daemon.post("/sessions", text="two words", provider="shell")
        run = begun["run"]["id"]

        def has_begun() -> bool:
            tree = daemon.get(f"/runs/{run}/diagnose")["diagnostics"]["process_tree"]
            return "sleep 300" in [one["command"] for one in tree]  # a shell forks before it is one

        daemon.until(has_begun)
        page = visit.open(f"{daemon.url}/#/run/{run}")
        screen = page.locator("[data-screen=run]")
        expect(screen).to_contain_text("How it was started")
        expect(screen).to_contain_text("sh -c 'echo that is odd >&2; sleep 300 & wait' '{prompt}'")
        listed = screen.locator("section", has_text="Processes").inner_text()
        assert re.search(r"^ +\d+  sleep 300$", listed, re.MULTILINE), listed
        daemon.post(f"/runs/{run}/cancel")
        expect(screen).to_contain_text("What it said on standard error")
        expect(screen).to_contain_text("that is odd")


def test_sessions_are_searched_and_helpers_unfolded(shared: Daemon, visit: Visit) -> None:
    above = shared.begin([["end", "I delegate."]], title="Zebra above")
    shared.wait_idle(above)
    helper = shared.post(f"/sessions/{above}/spawn", task="help", title="Zebra helper")
    shared.wait_idle(helper["session"]["id"])
    page = settled(visit.open(f"{shared.url}/#/sessions"))  # the search stays in the page
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
    assert min(took) < allowed(1.0) * 1000, took
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

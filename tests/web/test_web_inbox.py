"""The inbox: requests appear, are answered, and go away on every device."""

import json
import time
from functools import partial

from daemons import Daemon
from playwright.sync_api import Locator, Page, expect
from scenes import command
from visits import DOUBLE_TAP, Phone, Visit, settled


def asking(daemon: Daemon, line: str, **more: object) -> tuple[str, str]:
    """Begin a session whose agent wants to run a command; return the ids of session and request."""
    script = [
        ["ask", {**command(f"Run: {line}", line, str(daemon.directory)), **more}],
        ["end", "Done."],
    ]
    session = daemon.begin(script, title=f"session for {line[:60]}", cwd=str(daemon.directory))
    return session, daemon.question(session)["id"]


def card(page: Page, request: str) -> Locator:
    return page.locator(f".card[data-request={request}]")


def test_request_is_approved_once(shared: Daemon, phone: Phone) -> None:
    page = phone.at("/inbox")
    _, request = asking(shared, "make docs")
    asked = card(page, request)
    expect(asked).to_contain_text("make docs")
    expect(asked).to_contain_text("session for make docs")
    expect(asked).to_contain_text("13 min left")
    asked.evaluate("(card) => card.scrollIntoView()")
    asked.get_by_role("button", name="Approve once", exact=True).click()
    expect(asked).to_have_count(0)
    resolved = shared.get(f"/requests/{request}")["request"]
    assert (resolved["status"], resolved["option"], resolved["scope"]) == (
        "approved",
        "once",
        "once",
    )
    expect(page.get_by_label("Just decided")).to_contain_text("Approved by local, here")


def test_own_decision_stays_the_own_though_an_older_list_comes_after_it(
    shared: Daemon, visit: Visit
) -> None:
    _, request = asking(shared, "make twice")
    page = settled(visit.open(f"{shared.url}/#/r/{request}"))
    card(page, request).get_by_role("button", name="Approve once", exact=True).click()
    expect(page.get_by_text("Approved by local, here")).to_be_visible()
    page.evaluate(
        """async (request) => {
          const { requests } = await import("./web/app/state.js");
          const { noteDecision } = await import("./web/app/decisions.js");
          requests.value = new Map([[request.id, { ...request, status: "pending" }]]);
          noteDecision(request);
        }""",
        shared.get(f"/requests/{request}")["request"],
    )
    page.wait_for_timeout(100)
    expect(page.get_by_text("Approved by local, here")).to_be_visible()


def test_request_is_approved_for_the_session(shared: Daemon, phone: Phone) -> None:
    _, request = asking(shared, "make lint")
    page = phone.at(f"/r/{request}")
    card(page, request).get_by_role("button", name="More options").click()
    expect(card(page, request)).to_contain_text("Allows: commands like this one")
    page.wait_for_timeout(600)  # a double tap on the options chooses none
    card(page, request).get_by_role("button", name="Approve for this session").click()
    expect(card(page, request)).to_have_count(0)
    assert shared.get(f"/requests/{request}")["request"]["option"] == "session"


def test_request_is_denied_with_words(shared: Daemon, phone: Phone) -> None:
    _, request = asking(shared, "make deploy")
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    asked.get_by_role("button", name="More options").click()
    asked.get_by_role("button", name="Deny with words…").click()
    asked.get_by_label("Deny, and say to the agent").fill("Not on a Friday")
    asked.get_by_role("button", name="Deny with these words").click()
    expect(page.get_by_text("Denied by local, here")).to_be_visible()
    resolved = shared.get(f"/requests/{request}")["request"]
    assert (resolved["status"], resolved["answer"]) == ("denied", "Not on a Friday")


def test_lines_of_a_command_break_between_words_only(shared: Daemon, visit: Visit) -> None:
    long = "x" * 300
    command = f"rm /srv/{'a' * 12} && du -sh /srv -{long}\n  echo two"
    _, request = asking(shared, command)
    page = visit.open(f"{shared.url}/#/r/{request}")
    block = card(page, request).get_by_role("group", name="Command")
    assert block.inner_text() == command
    for width in range(320, 500, 20):
        page.set_viewport_size({"width": width, "height": 844})
        heights = block.evaluate(
            "(pre) => [...pre.children].map((one) => [one.textContent, one.getClientRects().length, one.offsetHeight])"
        )
        line = min(height for _, _, height in heights)
        broken = [word for word, _, height in heights if height > 1.5 * line]
        assert broken == [f"-{long}"], width
        assert block.evaluate("(pre) => pre.scrollWidth <= pre.clientWidth"), width


def test_dangerous_command_is_asked_twice(shared: Daemon, phone: Phone) -> None:
    _, request = asking(shared, "sudo rm -rf /var/cache")
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    expect(asked).to_contain_text("It deletes files for good.")
    expect(asked).to_contain_text("It runs as root, or as another user.")
    # A double tap is one answer to one question.
    expect(asked.get_by_role("button", name="Approve once…")).to_be_enabled()
    asked.get_by_role("button", name="Approve once…").evaluate(DOUBLE_TAP)
    expect(asked.get_by_role("button", name="Yes, approve once")).to_be_visible()
    expect(asked.get_by_role("alert")).to_have_text(
        "It deletes files for good and runs as root, or as another user. Approve it?"
    )
    assert shared.get(f"/requests/{request}")["request"]["status"] == "pending"
    page.wait_for_timeout(600)
    asked.get_by_role("button", name="Yes, approve once").click()
    expect(page.get_by_text("Approved by local, here")).to_be_visible()
    assert shared.get(f"/requests/{request}")["request"]["status"] == "approved"


def test_questions_are_answered_in_fields(shared: Daemon, phone: Phone) -> None:
    questions = [
        {
            "id": "a",
            "text": "Which branch?",
            "choices": [
                {"label": "main", "description": None},
                {"label": "next", "description": None},
            ],
            "multiple": False,
            "free_text": True,
        },
        {
            "id": "b",
            "text": "Which tests?",
            "choices": [
                {"label": "fast", "description": None},
                {"label": "slow", "description": None},
            ],
            "multiple": True,
            "free_text": False,
        },
        {"id": "c", "text": "A name?", "choices": [], "multiple": False, "free_text": True},
    ]
    ask = {
        "text": "Three things",
        "kind": "input_request",
        "detail": {"type": "question", "questions": questions},
    }
    session = shared.begin([["ask", ask], ["end", "Done."]])
    request = shared.question(session)["id"]
    page = phone.at(f"/r/{request}")
    asked = card(page, request)
    send = asked.get_by_role("button", name="Send", exact=True)
    expect(send).to_be_disabled()
    asked.get_by_label("next").check()
    asked.get_by_label("fast").check()
    asked.get_by_label("slow").check()
    asked.get_by_label("Answer").fill("Zoë")
    send.click()
    expect(page.get_by_text("Answered by local, here")).to_be_visible()
    answer = shared.get(f"/requests/{request}")["request"]["answer"]
    assert json.loads(answer) == {"a": "next", "b": "fast, slow", "c": "Zoë"}


def test_time_is_extended(shared: Daemon, phone: Phone) -> None:
    _, request = asking(shared, "make slowly", expires_in_s=50)
    page = phone.at(f"/r/{request}")
    expect(card(page, request).locator(".left.soon")).to_be_visible()
    card(page, request).get_by_role("button", name="More options").click()
    card(page, request).get_by_role("button", name="Give it an hour").click()
    expect(card(page, request).locator(".left")).to_contain_text("59 min left")


def test_identical_requests_are_one_card(daemon: Daemon, visit: Visit) -> None:
    requests = []
    for number in range(3):
        script = [["ask", command("Run: npm ci", "npm ci", "/srv")], ["end", "Done."]]
        session = daemon.begin(script, title=f"same {number}")
        requests.append(daemon.question(session)["id"])
    page = settled(visit.open(f"{daemon.url}/"))
    expect(page.locator(".card.request")).to_have_count(1)
    expect(page.locator(".card.request")).to_contain_text("same 2")
    page.get_by_role("button", name="Approve all 3 once…").click()
    expect(page.get_by_role("alert")).to_contain_text("Approve all 3?")
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Yes, approve all 3 once").click()
    expect(page.locator(".card.request")).to_have_count(0)
    expect(page.get_by_text("Nothing waits for you")).to_be_visible()
    assert {daemon.get(f"/requests/{one}")["request"]["status"] for one in requests} == {"approved"}


def press_together(buttons: list[Locator]) -> None:
    """Press buttons of several pages in the same moment. None is looked for after one was pressed."""
    for button in buttons:
        expect(button).to_be_enabled()
    found = [button.element_handle() for button in buttons]
    moment = time.time() * 1000 + 1000
    for button in found:
        button.evaluate("(one, at) => setTimeout(() => one.click(), at - Date.now())", moment)


def is_one_here(pages: list[Page], request: str) -> bool:
    notes = [page.locator(f".closed-request[data-request={request}]") for page in pages]
    return sum(", here" in note.inner_text() for note in notes) == 1


def test_two_devices_race_and_the_loser_sees_who(daemon: Daemon, visit: Visit) -> None:
    admin = daemon.post("/tokens", name="boss", scopes=["admin"])["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {admin}"
    token = daemon.post("/tokens", name="ann")["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {token}"
    pages = []
    for secret in (token, admin):
        page = visit.open(f"{daemon.url}/")
        page.get_by_text("Use a token instead").click()
        page.get_by_label("Token").fill(secret)
        page.get_by_role("button", name="Open", exact=True).click()
        expect(page.get_by_text("Nothing waits for you")).to_be_visible()
        pages.append(settled(page))
    for number in range(4):
        _, request = asking(daemon, f"make it-{number}")
        cards = [card(page, request) for page in pages]
        for one in cards:
            expect(one).to_be_visible()
        press_together(
            [
                one.get_by_role("button", name=name, exact=True)
                for one, name in zip(cards, ("Approve once", "Deny"), strict=True)
            ]
        )
        for one in cards:
            expect(one).to_have_count(0)
        resolved = daemon.get(f"/requests/{request}")["request"]
        word = {"approved": "Approved", "denied": "Denied"}[resolved["status"]]
        for page in pages:
            notes = page.locator(f".closed-request[data-request={request}]")
            expect(notes).to_contain_text(f"{word} by {resolved['decided_by']}")
        # The event may be there before the answer to the page's own press.
        daemon.until(partial(is_one_here, pages, request))


def test_only_the_device_that_answered_says_here(daemon: Daemon, visit: Visit) -> None:
    """Two devices of one person give the same answer in the same moment."""
    admin = daemon.post("/tokens", name="boss", scopes=["admin"])["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {admin}"
    pages = {}
    for name in ("desk", "phone"):
        code = daemon.post("/devices", name=f"Ann's {name}")["code"]
        page = visit.open(f"{daemon.url}/#device={code}")
        expect(page.get_by_text("Nothing waits for you")).to_be_visible()
        pages[settled(page)] = f"Ann's {name}"
    for number in range(4):
        _, request = asking(daemon, f"make it-{number}")
        for page in pages:
            expect(card(page, request)).to_be_visible()
        press_together(
            [
                card(page, request).get_by_role("button", name="Approve once", exact=True)
                for page in pages
            ]
        )
        for page in pages:
            expect(card(page, request)).to_have_count(0)
        decided_on = daemon.get(f"/requests/{request}")["request"]["decided_on"]
        for page, name in pages.items():
            note = page.locator(f".closed-request[data-request={request}]")
            where = ", here" if name == decided_on else f" on {decided_on}"
            expect(note).to_contain_text(f"Approved by boss{where}")
        # The same after a new visit, when the page does not remember what it sent.
        if number == 3:
            for page, name in pages.items():
                page.goto(f"{daemon.url}/#/r/{request}")
                page.reload()
                where = ", here" if name == decided_on else f" on {decided_on}"
                expect(page.locator(".closed-request")).to_contain_text(f"Approved by boss{where}")


def test_answers_given_without_a_network_are_sent_once(daemon: Daemon, visit: Visit) -> None:
    session, request = asking(daemon, "make offline")
    pages = [settled(visit.open(f"{daemon.url}/")) for _ in range(2)]
    for page in pages:
        expect(card(page, request)).to_be_visible()
        page.context.set_offline(True)
        expect(page.locator(".offline")).to_be_visible()  # it moves the card
    card(pages[0], request).get_by_role("button", name="Approve once", exact=True).click()
    card(pages[1], request).get_by_role("button", name="Deny", exact=True).click()
    for page in pages:
        expect(card(page, request)).to_contain_text("Your answer waits for the network.")
    assert daemon.get(f"/requests/{request}")["request"]["status"] == "pending"
    pages[0].context.set_offline(False)
    expect(card(pages[0], request)).to_have_count(0)
    pages[1].context.set_offline(False)
    expect(card(pages[1], request)).to_have_count(0)
    expect(pages[1].locator(f".closed-request[data-request={request}]")).to_contain_text(
        "Approved by local"
    )
    assert daemon.get(f"/requests/{request}")["request"]["status"] == "approved"
    resolved = [
        event for event in daemon.events(session) if event["event_type"] == "request.resolved"
    ]
    assert len(resolved) == 1


def test_decision_elsewhere_takes_the_card_away_within_a_second(
    shared: Daemon, phone: Phone
) -> None:
    page = phone.at("/inbox")
    delays: list[float] = []
    while not delays or delays[-1] >= 1:  # a busy machine may be slow, but not each time
        assert len(delays) < 5, delays
        _, request = asking(shared, f"make elsewhere {len(delays)}")
        expect(card(page, request)).to_be_visible()
        began = time.monotonic()
        shared.post(f"/requests/{request}/resolve", decision="deny")
        expect(card(page, request)).to_have_count(0)
        delays.append(time.monotonic() - began)
        closed = page.locator(f".closed-request[data-request={request}]")
        expect(closed).to_contain_text("Denied by local")
    toast = page.locator(".toast", has_text="make elsewhere")
    expect(toast.last).to_contain_text("Denied by local")


def test_buttons_stay_in_view_under_a_long_command(shared: Daemon, phone: Phone) -> None:
    line = "\n".join(f"echo line {number}" for number in range(55))
    _, request = asking(shared, line)
    page = phone.at(f"/r/{request}")
    expect(
        card(page, request).get_by_role("button", name="Read on ↓", exact=True)
    ).to_be_in_viewport()
    expect(card(page, request).get_by_role("button", name="Deny", exact=True)).to_be_in_viewport()
    boxes = [
        card(page, request).get_by_role("button", name=name, exact=True).bounding_box()
        for name in ("Deny", "Read on ↓")
    ]
    assert boxes[0]
    assert boxes[1]
    assert boxes[1]["x"] - (boxes[0]["x"] + boxes[0]["width"]) > 60, "a thumb's width apart"


def test_buttons_stay_in_view_above_a_keyboard_on_the_screen(shared: Daemon, visit: Visit) -> None:
    """The keyboard takes half of the screen: the button that sends is above it, and the tabs make room."""
    questions = [{"id": str(n), "text": f"Question {n}?", "choices": [], "multiple": False, "free_text": True} for n in range(6)]  # fmt: skip
    ask = {"text": "Six", "kind": "input_request", "detail": {"type": "question", "questions": questions}}  # fmt: skip
    session = shared.begin([["ask", ask], ["end", ""]])
    request = shared.question(session)["id"]
    page = visit.open(f"{shared.url}/#/r/{request}", has_touch=True, is_mobile=True)
    asked = card(page, request)
    expect(asked).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 430})
    asked.get_by_label("Answer").nth(3).fill("x")
    expect(asked.get_by_role("button", name="Send", exact=True)).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("navigation", name="Main")).not_to_be_visible()
    asked.get_by_role("button", name="More options").click()
    asked.get_by_role("button", name="Don't answer, and say why…").click()
    asked.get_by_label("Don't answer, and say to the agent").fill("No")
    deny = asked.get_by_role("button", name="Don't answer, say this")
    expect(deny).to_be_in_viewport(ratio=1)
    for box in (deny.bounding_box(), asked.get_by_label("Don't answer, and say").bounding_box()):
        assert box
        assert page.evaluate(
            "({ x, y, width, height }) => document.elementFromPoint(x + width / 2, y + height / 2).closest('button, textarea') !== null",
            box,
        )
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    deny.click()
    expect(page.get_by_text("Declined by local, here")).to_be_visible()


def test_empty_inbox_says_what_runs(daemon: Daemon, visit: Visit) -> None:
    script = [
        ["emit", "agent.message", {"text": "I read the code."}],
        ["file", str(daemon.directory / "go")],
        ["end", ""],
    ]
    daemon.begin(script, title="Reading")
    page = visit.open(f"{daemon.url}/")
    expect(page.get_by_text("Nothing waits for you")).to_be_visible()
    expect(page.locator("[data-screen=inbox]")).to_contain_text("1 session at work:")
    expect(page.locator("[data-screen=inbox]")).to_contain_text("Reading")
    (daemon.directory / "go").touch()
    expect(page.locator("[data-screen=inbox]")).to_contain_text("No agent is at work.")


def test_deep_link_opens_one_request(shared: Daemon, visit: Visit) -> None:
    _, request = asking(shared, "make linked")
    page = visit.open(f"{shared.url}/r/{request}")
    expect(page).to_have_url(f"{shared.url}/#/r/{request}")
    expect(page.locator(".card.request")).to_have_count(1)
    expect(card(page, request)).to_contain_text("make linked")

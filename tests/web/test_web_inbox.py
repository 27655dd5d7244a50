"""The inbox: requests appear, are answered, and go away on every device."""

import json
import time

from daemons import Daemon
from playwright.sync_api import Locator, Page, expect
from scenes import command
from visits import Visit


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


def test_request_is_approved_once(shared: Daemon, visit: Visit) -> None:
    page = visit.open(f"{shared.url}/")
    _, request = asking(shared, "make docs")
    asked = card(page, request)
    expect(asked).to_contain_text("make docs")
    expect(asked).to_contain_text("session for make docs")
    expect(asked).to_contain_text("13 min left")
    asked.get_by_role("button", name="Approve", exact=True).click()
    expect(asked).to_have_count(0)
    resolved = shared.get(f"/requests/{request}")["request"]
    assert (resolved["status"], resolved["option"], resolved["scope"]) == (
        "approved",
        "once",
        "once",
    )
    expect(page.get_by_label("Just decided")).to_contain_text("Approved by local, here")


def test_request_is_approved_for_the_session(shared: Daemon, visit: Visit) -> None:
    _, request = asking(shared, "make lint")
    page = visit.open(f"{shared.url}/")
    card(page, request).get_by_role("button", name="More").click()
    expect(card(page, request)).to_contain_text("Allows: commands like this one")
    card(page, request).get_by_role("button", name="Approve for this session").click()
    expect(card(page, request)).to_have_count(0)
    assert shared.get(f"/requests/{request}")["request"]["option"] == "session"


def test_request_is_denied_with_words(shared: Daemon, visit: Visit) -> None:
    _, request = asking(shared, "make deploy")
    page = visit.open(f"{shared.url}/#/r/{request}")
    asked = card(page, request)
    asked.get_by_role("button", name="More").click()
    asked.get_by_role("button", name="Deny with words…").click()
    asked.get_by_label("Deny, and say to the agent").fill("Not on a Friday")
    asked.get_by_role("button", name="Deny with these words").click()
    expect(page.get_by_text("Denied by local, here")).to_be_visible()
    resolved = shared.get(f"/requests/{request}")["request"]
    assert (resolved["status"], resolved["answer"]) == ("denied", "Not on a Friday")


def test_dangerous_command_is_asked_twice(shared: Daemon, visit: Visit) -> None:
    _, request = asking(shared, "sudo rm -rf /var/cache")
    page = visit.open(f"{shared.url}/#/r/{request}")
    asked = card(page, request)
    expect(asked).to_contain_text("It deletes files without asking.")
    expect(asked).to_contain_text("It runs as another user.")
    # A double tap is one answer to one question.
    asked.get_by_role("button", name="Approve…").dblclick()
    expect(asked.get_by_role("button", name="Really approve?")).to_be_visible()
    assert shared.get(f"/requests/{request}")["request"]["status"] == "pending"
    page.wait_for_timeout(600)
    asked.get_by_role("button", name="Really approve?").click()
    expect(page.get_by_text("Approved by local, here")).to_be_visible()
    assert shared.get(f"/requests/{request}")["request"]["status"] == "approved"


def test_questions_are_answered_in_fields(shared: Daemon, visit: Visit) -> None:
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
    page = visit.open(f"{shared.url}/#/r/{request}")
    asked = card(page, request)
    send = asked.get_by_role("button", name="Send 3 answers")
    expect(send).to_be_disabled()
    asked.get_by_label("next").check()
    asked.get_by_label("fast").check()
    asked.get_by_label("slow").check()
    asked.get_by_label("Answer").fill("Zoë")
    send.click()
    expect(page.get_by_text("Answered by local, here")).to_be_visible()
    answer = shared.get(f"/requests/{request}")["request"]["answer"]
    assert json.loads(answer) == {"a": "next", "b": "fast, slow", "c": "Zoë"}


def test_time_is_extended(shared: Daemon, visit: Visit) -> None:
    _, request = asking(shared, "make slowly", expires_in_s=50)
    page = visit.open(f"{shared.url}/#/r/{request}")
    expect(card(page, request).locator(".left.soon")).to_be_visible()
    card(page, request).get_by_role("button", name="More").click()
    card(page, request).get_by_role("button", name="Give it an hour").click()
    expect(card(page, request).locator(".left")).to_contain_text("59 min left")


def test_identical_requests_are_one_card(daemon: Daemon, visit: Visit) -> None:
    requests = []
    for number in range(3):
        script = [["ask", command("Run: npm ci", "npm ci", "/srv")], ["end", "Done."]]
        session = daemon.begin(script, title=f"same {number}")
        requests.append(daemon.question(session)["id"])
    page = visit.open(f"{daemon.url}/")
    expect(page.locator(".card.request")).to_have_count(1)
    expect(page.locator(".card.request")).to_contain_text("same 2")
    page.get_by_role("button", name="Approve all…").click()
    page.wait_for_timeout(600)
    page.get_by_role("button", name="Really approve all 3?").click()
    expect(page.locator(".card.request")).to_have_count(0)
    expect(page.get_by_text("Nothing waits for you")).to_be_visible()
    assert {daemon.get(f"/requests/{one}")["request"]["status"] for one in requests} == {"approved"}


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
        pages.append(page)
    for number in range(4):
        _, request = asking(daemon, f"make it-{number}")
        cards = [card(page, request) for page in pages]
        for one in cards:
            expect(one).to_be_visible()
        # Both press in the same moment.
        moment = time.time() * 1000 + 300
        for one, name in zip(cards, ("Approve", "Deny"), strict=True):
            button = one.get_by_role("button", name=name, exact=True)
            button.evaluate(
                "(button, at) => setTimeout(() => button.click(), at - Date.now())", moment
            )
        for one in cards:
            expect(one).to_have_count(0)
        resolved = daemon.get(f"/requests/{request}")["request"]
        word = {"approved": "Approved", "denied": "Denied"}[resolved["status"]]
        for page in pages:
            notes = page.locator(f".closed-request[data-request={request}]")
            expect(notes).to_contain_text(f"{word} by {resolved['decided_by']}")
        owns = [
            page.locator(f".closed-request[data-request={request}]").inner_text() for page in pages
        ]
        assert sum(", here" in text for text in owns) == 1, owns


def test_answers_given_without_a_network_are_sent_once(daemon: Daemon, visit: Visit) -> None:
    session, request = asking(daemon, "make offline")
    pages = [visit.open(f"{daemon.url}/") for _ in range(2)]
    for page in pages:
        expect(card(page, request)).to_be_visible()
        page.context.set_offline(True)
    card(pages[0], request).get_by_role("button", name="Approve", exact=True).click()
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
    shared: Daemon, visit: Visit
) -> None:
    page = visit.open(f"{shared.url}/")
    _, request = asking(shared, "make elsewhere")
    expect(card(page, request)).to_be_visible()
    began = time.monotonic()
    shared.post(f"/requests/{request}/resolve", decision="deny")
    expect(card(page, request)).to_have_count(0, timeout=1000)
    assert time.monotonic() - began < 2
    expect(page.locator(f".closed-request[data-request={request}]")).to_contain_text(
        "Denied by local"
    )
    expect(page.locator(".toast")).to_contain_text("Denied by local")


def test_buttons_stay_in_view_under_a_long_command(shared: Daemon, visit: Visit) -> None:
    line = "\n".join(f"echo line {number}" for number in range(55))
    _, request = asking(shared, line)
    page = visit.open(f"{shared.url}/#/r/{request}")
    expect(
        card(page, request).get_by_role("button", name="Approve", exact=True)
    ).to_be_in_viewport()
    expect(card(page, request).get_by_role("button", name="Deny", exact=True)).to_be_in_viewport()
    boxes = [
        card(page, request).get_by_role("button", name=name, exact=True).bounding_box()
        for name in ("Deny", "Approve")
    ]
    assert boxes[0]
    assert boxes[1]
    assert boxes[1]["x"] - (boxes[0]["x"] + boxes[0]["width"]) > 60, "a thumb's width apart"


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

"""The form for a new session: it says where the agent will work, and with which rights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import Page, expect
from visits import Visit, pressed_while_held

CAREFUL = """
[providers.careful]
runner = "claude"
command = "claude-that-is-not-there"
sandbox = "read-only"
approval_policy = "untrusted"
model = "opus"
approvals = "ask-human"
"""


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose default provider has a sandbox, and no program."""
    with daemon_at(
        tmp_path_factory.mktemp("careful"), configuration=CAREFUL, default="careful"
    ) as daemon:
        yield daemon


def test_first_visit_says_what_will_be_here(careful: Daemon, visit: Visit) -> None:
    page = visit.open(f"{careful.url}/")
    screen = page.locator("[data-screen=inbox]")
    expect(screen).to_contain_text("What your agents ask you appears here")
    screen.get_by_role("link", name="Start an agent").click()
    expect(page.locator("[data-screen=new]")).to_be_visible()
    page.go_back()
    screen.get_by_role("link", name="Let a phone in").click()
    expect(page.locator("[data-screen=devices]")).to_be_visible()


def settings(page: Page):
    return page.locator("[data-screen=new] details.rights")


def test_form_shows_the_daemons_directory_and_those_used_before(
    shared: Daemon, visit: Visit, tmp_path: Path
) -> None:
    own = shared.get("/daemon/status")["cwd"]
    other = tmp_path / "shop"
    other.mkdir()
    shared.wait_idle(shared.begin([["end", ""]], cwd=str(other)))
    page = visit.open(f"{shared.url}/#/new")
    directory = page.get_by_label("Directory", exact=True)
    expect(directory).to_have_value(own)
    offered = page.get_by_role("group", name="Directories used before")
    offered.get_by_role("button", name="shop").click()
    expect(directory).to_have_value(str(other))
    # The daemon's own is offered instead, and is back when the field is emptied.
    expect(offered.get_by_role("button", name="shop")).to_have_count(0)
    directory.fill("")
    directory.blur()
    expect(directory).to_have_value(own)
    offered.get_by_role("button", name="shop").click()
    page.get_by_label("What should the agent do?").fill("Count the\nwindows")
    page.get_by_label("What should the agent do?").press("Control+Enter")
    # A session that is given no title gets the first words of its task.
    expect(page.get_by_role("heading", level=1)).to_have_text("Count the windows")
    found = shared.get("/sessions", order="newest", limit=1)["sessions"][0]
    assert (found["cwd"], found["title"]) == (str(other), "Count the windows")


def test_form_says_what_holds_by_default_and_what_was_chosen(careful: Daemon, visit: Visit) -> None:
    page = visit.open(f"{careful.url}/#/new")
    line = settings(page).locator("summary")
    expect(line).to_contain_text("Reads only · asks before most commands · you decide · model opus")
    expect(page.locator("[data-screen=new] .failed-note")).to_contain_text("careful is not ready.")
    line.click()
    expect(page.get_by_role("combobox", name="Sandbox")).to_contain_text("Default: reads only")
    page.get_by_role("combobox", name="Sandbox").select_option(label="Full access to the machine")
    expect(line).to_contain_text("Has full access to the machine · asks before most commands")
    expect(page.locator(".composer p.warn")).to_have_count(0)
    page.get_by_role("combobox", name="The agent asks").select_option(label="Never")
    expect(page.locator(".composer p.warn")).to_contain_text(
        "may change anything on the machine without asking"
    )
    page.get_by_label("Model").fill("sonnet")
    expect(line).to_contain_text("never asks · model sonnet")
    # The provider's setting is stricter than "all are allowed".
    page.get_by_role("combobox", name="The agent asks").select_option(label="Before most commands")
    page.get_by_role("combobox", name="Who decides what it asks").select_option(
        label="Nobody: all are allowed"
    )
    expect(line).to_contain_text("you decide")
    page.get_by_role("combobox", name="Provider").select_option("codex")
    expect(line).to_contain_text("sets its own limits")
    expect(line).to_contain_text("all requests are allowed")
    expect(page.locator(".composer p.warn")).to_contain_text("Nobody looks at")


def test_start_stays_under_the_finger_when_the_daemon_tells_of_itself(
    visit: Visit, tmp_path: Path
) -> None:
    # Other tests count on it that the shared one has no session.
    with daemon_at(tmp_path, configuration=CAREFUL, default="careful") as daemon:
        page = visit.open(f"{daemon.url}/")
        with pressed_while_held(page, r"/daemon/status", f"{daemon.url}/#/new") as press:
            page.get_by_label("What should the agent do?").fill("Wait for me")
            press(page.get_by_role("button", name="Start"))
            expect(page.locator("[data-screen=new] .failed-note")).to_contain_text("is not ready")
        expect(page.get_by_role("heading", level=1)).to_have_text("Wait for me")

"""The real codex in the page: its model is a local server that plays the script in the message."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import Gateway
from model_server import ModelServer, write_codex_home
from playwright.sync_api import Locator, expect
from real_agents import required
from test_web_asking import press, read_on
from visits import Visit

pytestmark = pytest.mark.codex


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with ModelServer() as models:
        home = write_codex_home(tmp_path / "home", models.port)
        running = Gateway(
            tmp_path,
            required("codex"),
            home,
            runner="codex-app-server",
            sandbox="workspace-write",
            settings='approval_policy = "untrusted"',
        )
        yield running
        running.stop()


def approve(card: Locator) -> None:
    """Read a request to its end, and approve it."""
    expect(card.get_by_role("button", name=re.compile("Approve once|Read on"))).to_be_attached()
    read_on(card)
    press(card, "Approve once")


def test_codex_is_told_asks_and_shows_its_changes(
    gateway: Gateway, tmp_path: Path, visit: Visit
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "notes.txt").write_text("old words\n")
    page = visit.open(f"{gateway.daemon.url}/#/new")
    page.get_by_label("What should the agent do?").fill(
        "plan [>] Look; [ ] Change\n"
        "shell touch approved && echo it ran\n"
        f"update {workspace}/notes.txt old words -> new words\n"
        "say **All** done"
    )
    page.get_by_label("Directory", exact=True).fill(str(workspace))
    page.get_by_role("button", name="Start").click()
    story = page.locator("[data-screen=session]")
    card = story.locator(".card.request")
    expect(card).to_contain_text("touch approved && echo it ran", timeout=60_000)
    assert not (workspace / "approved").exists()
    approve(card)
    expect(story.locator(".closed-request").first).to_contain_text("Approved by local")
    # The change is asked for with its diff, and shown again when it is made.
    expect(card.locator(".diff .plus")).to_have_text("+new words", timeout=60_000)
    expect(card.locator(".diff .minus")).to_have_text("-old words")
    assert (workspace / "notes.txt").read_text() == "old words\n"
    approve(card)
    expect(story.locator(".closed-request").nth(1)).to_contain_text("Approved by local")
    expect(story.locator(".agent strong")).to_have_text("All", timeout=60_000)
    expect(story.locator(".mine .receipt").first).to_contain_text("done")
    assert (workspace / "approved").exists()
    assert (workspace / "notes.txt").read_text() == "new words\n"
    expect(story.get_by_label("Plan")).to_contain_text("Look")
    story.locator(".tool-head", has_text="touch approved").click()
    expect(story.get_by_label("Output").first).to_contain_text("it ran")
    change = story.locator(".files .diff")
    expect(change).to_contain_text("notes.txt")
    change.locator("summary").click()
    expect(change.locator(".plus")).to_have_text("+new words")
    story.get_by_role("link", name="run", exact=True).click()
    run = page.locator("[data-screen=run]")
    expect(run).to_contain_text("the run is completed")
    expect(run).to_contain_text("400 tokens in, 40 out")
    expect(run).to_contain_text("How it was started")
    expect(run).to_contain_text("app-server")
    page.go_back()
    # A second message continues the same conversation.
    page.get_by_role("textbox", name="Message").fill("say Again here")
    page.get_by_role("button", name="Start").click()
    expect(story.locator(".agent").last).to_contain_text("Again here", timeout=60_000)

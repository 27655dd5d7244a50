"""Every screen in every size: readable for everyone, usable with the keyboard, and the pictures of the documents.

``WEB_SCREENSHOTS=DIRECTORY`` writes a picture of each screen in four sizes, light and dark.
``UPDATE_PICTURES=1`` writes those of the documents.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import Page, expect
from scenes import command, fill, same_twice, screens
from visits import SIZES, Visit, until

ROOT = Path(__file__).parents[2]
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = ROOT / "docs" / "pictures"

DOCUMENTS = {
    "inbox-phone": ("inbox", "phone", "light"),
    "story-phone": ("story", "phone", "light"),
    "sessions-phone": ("sessions", "phone", "dark"),
    "run-phone": ("run", "phone", "light"),
    "new-phone": ("new", "phone", "light"),
    "device-phone": ("invitation", "phone", "light"),
    "second-phone": ("second", "phone", "light"),
    "batch-phone": ("batch", "phone", "light"),
    "elsewhere-phone": ("elsewhere", "phone", "light"),
    "offline-phone": ("offline", "phone", "dark"),
    "inbox-desk": ("inbox", "desk", "light"),
    "story-desk": ("story", "desk", "dark"),
}
"""The pictures in the documents: the screen, size and colours of each."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, str]]]:
    with pictured(tmp_path_factory.mktemp("shop")) as daemon:
        yield daemon, fill(daemon)


@contextmanager
def pictured(directory: Path) -> Iterator[Daemon]:
    """Run a daemon in a directory, or in one that looks well in the pictures of the documents."""
    if os.environ.get("UPDATE_PICTURES") != "1":
        with daemon_at(directory) as daemon:
            yield daemon
        return
    directory = Path("/srv/shop")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with daemon_at(directory) as daemon:
        yield daemon
    shutil.rmtree(directory)


def picture(page: Page, name: str, size: str, scheme: str) -> None:
    """Write what a page shows, where that is asked for."""
    expect(page.locator(".card [aria-disabled=true]")).to_have_count(0)
    if directory := os.environ.get("WEB_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(directory) / f"{name}-{size}-{scheme}.png")
    for document, place in DOCUMENTS.items():
        if os.environ.get("UPDATE_PICTURES") == "1" and place == (name, size, scheme):
            PICTURES.mkdir(exist_ok=True)
            page.screenshot(path=PICTURES / f"{document}.png")


def show(page: Page, name: str, path: str) -> None:
    page.evaluate("path => (location.hash = path)", path)
    marker = {"story": "session", "working": "session"}.get(name, name)
    if name == "details" and page.viewport_size and page.viewport_size["width"] >= 1300:
        marker = "session"
    if marker == "more" and page.viewport_size and page.viewport_size["width"] >= 900:
        marker = "status"
    expect(page.locator(f"[data-screen={marker}]").first).to_be_visible()
    if name in ("inbox", "sessions", "request"):
        expect(page.locator(f"[data-screen={name}] :is(.card, .row)").first).to_be_visible()
    if marker == "session":
        expect(page.locator(".story .entry").first).to_be_visible()
    if marker in ("run", "status"):
        expect(
            page.get_by_text("Evidence" if marker == "run" else "What doctor found")
        ).to_be_visible()
        expect(page.get_by_text("Reading…")).to_have_count(0)
    if name == "audit":
        expect(page.locator("[data-screen=audit] .row").first).to_be_visible()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [("phone", "light"), ("tablet", "dark"), ("laptop", "dark"), ("desk", "light")],
)
def test_screens_are_accessible_and_fit(
    filled: tuple[Daemon, dict[str, str]], visit: Visit, size: str, scheme: str
) -> None:
    daemon, ids = filled
    if not AXE.exists():
        if os.environ.get("REQUIRE_REAL_BROWSER") == "1":
            pytest.fail("axe-core is not there: run `bin/setup web`")
        pytest.skip("axe-core is not there: run `bin/setup web`")
    page = visit.open(f"{daemon.url}/", size, scheme)
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = {}
    for name, path in screens(ids).items():
        show(page, name, path)
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        for violation in result["violations"]:
            nodes = [node["html"][:160] for node in violation["nodes"]]
            found[f"{name}: {violation['id']}"] = nodes[:3]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        small = page.evaluate(SMALL)
        assert small == [], (name, small)
    assert found == {}


SMALL = """() => [...document.querySelectorAll("button, a, summary, select, textarea, input")]
  .filter((one) => one.offsetParent !== null && !one.closest("label.choice, .markdown"))
  .map((one) => [one.outerHTML.slice(0, 90), one.getBoundingClientRect()])
  .filter(([, box]) => box.width > 0 && (box.height < 43.5 || box.width < 43.5))
  .map(([text, box]) => `${text} ${box.width}x${box.height}`)"""
"""The controls and links that are smaller than a fingertip, but for links in what agents write."""


def test_text_twice_as_large_still_fits(
    filled: tuple[Daemon, dict[str, str]], visit: Visit
) -> None:
    daemon, ids = filled
    page = visit.open(f"{daemon.url}/")
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    for name, path in screens(ids).items():
        show(page, name, path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        wide = page.evaluate(
            """() => [...document.querySelectorAll(".scroll, .bar, .tabs")].filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.className)"""
        )
        assert wide == [], name


def test_request_is_denied_with_the_keyboard_alone(
    filled: tuple[Daemon, dict[str, str]], visit: Visit
) -> None:
    daemon, _ = filled
    session = daemon.begin(
        [["ask", {"text": "Keys?", "kind": "approval_request"}], ["end", "ok"]], title="By keys"
    )
    request = daemon.question(session)["id"]
    page = visit.open(f"{daemon.url}/#/r/{request}")
    expect(page.locator(f".card[data-request={request}]")).to_be_visible()

    def press_until(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "document.activeElement.innerText?.trim() || document.activeElement.labels?.[0]?.innerText.trim()"
            )
            if focused and focused.split("\n")[0] == name:
                # What has the focus is seen to have it.
                assert (
                    page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                )
                return
        raise AssertionError(name)

    press_until("More options")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Deny with words…")).to_be_visible()
    press_until("Deny with words…")
    page.keyboard.press("Space")
    press_until("Deny, and say to the agent")
    page.keyboard.type("By keyboard")
    press_until("Deny with these words")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Denied by local, here")).to_be_visible()
    assert daemon.get(f"/requests/{request}")["request"]["answer"] == "By keyboard"
    press_until("Sessions")
    page.keyboard.press("Enter")
    expect(page.locator("[data-screen=sessions]")).to_be_visible()
    press_until("New")
    page.keyboard.press("Enter")
    expect(page.get_by_label("What should the agent do?")).to_be_visible()
    press_until("What should the agent do?")
    page.keyboard.type("Hello from the keyboard")
    press_until("Start")
    page.keyboard.press("Enter")
    expect(page.locator(".story")).to_contain_text("You said: Hello from the keyboard")


def test_pictures(filled: tuple[Daemon, dict[str, str]], visit: Visit) -> None:
    daemon, ids = filled
    if not os.environ.get("WEB_SCREENSHOTS") and os.environ.get("UPDATE_PICTURES") != "1":
        pytest.skip("WEB_SCREENSHOTS=DIRECTORY or UPDATE_PICTURES=1 writes pictures")
    for size in SIZES:
        for scheme in ("light", "dark"):
            page = visit.open(f"{daemon.url}/", size, scheme)
            for name, path in screens(ids).items():
                show(page, name, path)
                until(page, "document.fonts.status === 'loaded'")
                picture(page, name, size, scheme)


def test_picture_of_an_invitation(daemon: Daemon, visit: Visit) -> None:
    page = visit.open(f"{daemon.url}/#/devices")
    page.get_by_role("button", name="Let another device in").click()
    expect(page.get_by_role("img", name="QR code of the link")).to_be_visible()
    expect(page.locator(".device")).to_contain_text("this one")
    page.locator(".invitation").scroll_into_view_if_needed()
    picture(page, "invitation", "phone", "light")


def test_pictures_of_moments(tmp_path: Path, visit: Visit) -> None:
    """The second ask of what does harm, requests that ask the same, one that is decided elsewhere, and no network."""
    is_wanted = os.environ.get("WEB_SCREENSHOTS") or os.environ.get("UPDATE_PICTURES") == "1"
    places = [
        (size, scheme)
        for size in SIZES
        for scheme in ("light", "dark")
        if is_wanted or (size, scheme) == ("phone", "light")
    ]
    axe = AXE.read_text() if AXE.exists() else ""
    found: list[Any] = []

    def shown(page: Page, name: str, size: str, scheme: str) -> None:
        picture(page, name, size, scheme)
        if axe:
            page.evaluate(axe)
            result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            found.extend((name, one["id"], one["nodes"][0]["html"]) for one in result["violations"])

    with pictured(tmp_path) as daemon:
        here = str(daemon.directory)
        batch = same_twice(daemon)
        harm = command("May I start again?", "git reset --hard origin/main", here)
        asking = daemon.begin([["ask", harm], ["end", "Done."]], title="A clean tree", cwd=here)
        harmful = daemon.question(asking)["id"]
        for size, scheme in places:
            page = visit.open(f"{daemon.url}/#/r/{harmful}", size, scheme)
            expect(page.locator(".where")).to_contain_text(
                "sandbox"
            )  # what comes late is asked again
            page.get_by_role("button", name="Approve once…", exact=True).click()
            expect(page.get_by_role("button", name="Yes, approve once")).to_be_visible()
            shown(page, "second", size, scheme)
            page.evaluate("location.hash = '/inbox'")
            both = page.locator(".card.request", has_text="× 2")
            both.scroll_into_view_if_needed()
            expect(both.get_by_role("button", name="Approve all 2 once")).to_be_visible()
            shown(page, "batch", size, scheme)
            other = daemon.begin([["ask", command("May I?", "make docs", here)], ["end", "Done."]], title="Build the guide", cwd=here)  # fmt: skip
            request = daemon.question(other)["id"]
            expect(page.locator(f".card[data-request={request}]")).to_be_attached()
            daemon.post(f"/requests/{request}/resolve", decision="approve")
            expect(page.locator(".toast")).to_contain_text("Approved by local")
            expect(page.get_by_label("Just decided")).to_contain_text("make docs")
            shown(page, "elsewhere", size, scheme)
            page.context.set_offline(True)
            expect(page.locator(".offline")).to_contain_text("Offline")
            expect(page.locator(".toast")).to_have_count(0)
            shown(page, "offline", size, scheme)
            page.close()
        assert len(batch) == 2
    assert found == []


def test_documents_show_pictures_that_are_small() -> None:
    files = {path.stem: path.stat().st_size for path in PICTURES.glob("*.png")}
    assert set(files) == set(DOCUMENTS)
    assert sum(files.values()) < 1_000_000
    page = (ROOT / "docs" / "web.md").read_text()
    for name in DOCUMENTS:
        assert f"pictures/{name}.png" in page

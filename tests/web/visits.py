"""Visits of the page, each as another device."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import define, field
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

SIZES: Final = {
    "phone": (390, 844),
    "tablet": (820, 1180),
    "laptop": (1024, 768),
    "desk": (1440, 900),
}

_WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile ?? ""}`));
"""

PATIENCE_S: Final = 90.0
"""Seconds to wait for what the page shows, on a machine that does much else."""

expect.set_options(timeout=PATIENCE_S * 1000)


def until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true in the page, whose policy forbids Playwright's own way."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


@contextmanager
def pressed_while_held(page: Page, held: str, url: str) -> Iterator[Callable[[Locator], None]]:
    """Have a button pressed while the page waits for an answer, and let go when this scope has seen the answer.

    What moves in between takes the button away from under the finger: the browser then tells no click.

    :param held: a regular expression of the addresses that are not answered before the button is pressed.
    :param url: what to load.
    """
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        waiting.append(route)

    page.route(re.compile(held), hold)
    page.goto(url)
    page.reload()  # the same page with another fragment would not be loaded

    def press(button: Locator) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not waiting:
            assert time.monotonic() < deadline, "nothing is read"
            page.wait_for_timeout(20)
        button.hover()
        page.mouse.down()
        page.unroute_all()  # lets all go on

    yield press
    page.mouse.up()


@define
class Visit:
    """The devices of one test. At the end, none may have an error or a violation of the policy."""

    browser: Browser
    contexts: list[BrowserContext] = field(factory=list)
    pages: list[Page] = field(factory=list)
    errors: list[str] = field(factory=list)

    def device(self, size: str = "phone", scheme: str = "light", **more: Any) -> BrowserContext:
        width, height = SIZES[size]
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            **more,
        )
        context.set_default_timeout(PATIENCE_S * 1000)
        context.add_init_script(_WATCH)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.contexts.append(context)
        return context

    def open(self, url: str, size: str = "phone", scheme: str = "light", **more: Any) -> Page:
        """Open an address on a new device."""
        page = self.device(size, scheme, **more).new_page()
        self.pages.append(page)
        page.goto(url)
        return page

    def close(self) -> None:
        violations = [
            found
            for page in self.pages
            if not page.is_closed()
            for found in page.evaluate("window.violations ?? []")
        ]
        for context in self.contexts:
            context.close()
        assert self.errors == [], self.errors
        assert violations == [], violations


@define
class Phone:
    """A device that stays at a daemon.

    Tests that change the page itself, or leave in it what other screens show, such as a search, open one
    of their own.
    """

    visit: Visit
    url: str

    def at(self, path: str) -> Page:
        """Show the screen of a path, such as ``/r/ID``, in the size of a phone."""
        if not self.visit.pages:
            return settled(self.visit.open(f"{self.url}/#{path}"))
        [page] = self.visit.pages
        width, height = SIZES["phone"]
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("path => (location.hash = path)", path)
        return page


HAS_READ: Final = """async () => {
  const { connection, isFresh, status } = await import("./web/app/state.js");
  return connection.value === "live" && isFresh.value && status.value !== null;
}"""


def settled(page: Page) -> Page:
    """Wait until the page has read the lists and the daemon's status, which make what is shown higher."""
    until(page, HAS_READ)
    return page


DOUBLE_TAP: Final = """async (one) => {
  one.click();
  await new Promise(requestAnimationFrame);
  one.click();
}"""
"""Press twice, a frame apart. On a busy machine, two presses of the test are further apart than a double tap."""


def first_held(page: Page, held: list[Any]) -> Any:
    """Return the first of the requests that a route of the test holds back, once there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while not held:
        assert time.monotonic() < deadline, "nothing is asked for"
        page.wait_for_timeout(20)
    return held[0]

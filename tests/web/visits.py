"""Visits of the page, each as another device."""

import time
from typing import Any, Final

from attrs import define, field
from playwright.sync_api import Browser, BrowserContext, Page, expect

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
            return self.visit.open(f"{self.url}/#{path}")
        [page] = self.visit.pages
        width, height = SIZES["phone"]
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("path => (location.hash = path)", path)
        return page

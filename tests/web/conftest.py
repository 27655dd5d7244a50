"""The page in a real browser, at a real agentd with scripted agents."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import ARGUMENTS, chromium, page_browser
from daemons import Daemon, daemon_at
from playwright.sync_api import Browser, sync_playwright
from visits import Phone, Visit


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser for the tests of a module: the whole one where the module says ``WHOLE_BROWSER = True``.

    Playwright's event loop must not outlive them: others have their own.
    """
    program = chromium() if getattr(request.module, "WHOLE_BROWSER", False) else page_browser()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for tests that look only at their own sessions."""
    with daemon_at(tmp_path_factory.mktemp("shared")) as daemon:
        yield daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own."""
    with daemon_at(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def phone(browser: Browser, shared: Daemon) -> Iterator[Phone]:
    """A phone of the tests of a module: they go from screen to screen, and load the page once."""
    visit = Visit(browser)
    yield Phone(visit, shared.url)
    visit.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    visit.close()

"""The page in a real browser, at a real agentd with scripted agents."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, daemon_at
from playwright.sync_api import Browser, sync_playwright
from visits import Visit

CHROMIUM = "/usr/bin/chromium"

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--font-render-hinting=none",
)


def _chromium() -> str:
    """Return the browser. Skip the test without it; fail with ``REQUIRE_REAL_BROWSER=1``."""
    program = os.environ.get("AGENT_ORCHESTRATOR_CHROMIUM") or shutil.which("chromium") or CHROMIUM
    if not Path(program).exists():
        reason = "chromium is not there: run `bin/setup browser`"
        if os.environ.get("REQUIRE_REAL_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module. Playwright's event loop must not outlive them: others have their own."""
    program = _chromium()
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


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser)
    yield visit
    visit.close()

"""The browser of the system's packages, whole or without its own windows."""

import os
import shutil
from pathlib import Path

import pytest

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


def page_browser() -> str:
    """Return the browser without its own windows, which takes half the processor time, else the whole one.

    The pages are rendered by the same code. It has no push messages and no notifications.
    """
    return shutil.which("chromium-headless-shell") or chromium()


def chromium() -> str:
    """Return the browser. Skip the test without it; fail with ``REQUIRE_REAL_BROWSER=1``."""
    program = os.environ.get("AGENT_ORCHESTRATOR_CHROMIUM") or shutil.which("chromium") or CHROMIUM
    if not Path(program).exists():
        reason = "chromium is not there: run `bin/setup browser`"
        if os.environ.get("REQUIRE_REAL_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program

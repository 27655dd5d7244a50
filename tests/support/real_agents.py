"""The programs of the real agents."""

import os
import platform
import shutil
from pathlib import Path
from typing import Final

import pytest

MODULES: Final = Path(__file__).parent.parent / "node_modules"

_MACHINE: Final = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

_PINNED: Final = {
    "codex": MODULES / ".bin" / "codex",
    "gemini": MODULES / ".bin" / "gemini",
    "claude": MODULES / "@anthropic-ai" / f"claude-code-linux-{_MACHINE}" / "claude",
    "opencode": MODULES / f"opencode-linux-{_MACHINE}" / "bin" / "opencode",
}


def found(name: str) -> str | None:
    """Return the agent to test with: the pinned one, else a named one, else one on the PATH."""
    named = os.environ.get(f"AGENT_ORCHESTRATOR_{name.upper()}")
    return str(_PINNED[name]) if _PINNED[name].exists() else named or shutil.which(name)


def required(name: str) -> str:
    """Return the agent to test with. Skip the test without it; fail with ``REQUIRE_REAL_AGENTS=1``."""
    program = found(name)
    if program is None:
        reason = f"{name} is not there: run `npm ci --prefix {MODULES.parent}`"
        if os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program

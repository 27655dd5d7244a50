"""Finds the program to start: the native codex behind its npm wrapper.

Codex 0.169 from npm is a Node script that starts the native binary as a child and forwards some
signals. Starting the binary directly saves 100 to 200 ms and 43 MB for each run. SIGKILL then
reaches codex, not only its wrapper.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from agent_orchestrator.runners.program import find_command, require_executable

_PLATFORMS = {
    "x86_64": ("codex-linux-x64", "x86_64-unknown-linux-musl"),
    "aarch64": ("codex-linux-arm64", "aarch64-unknown-linux-musl"),
}


def locate(command: str, env: Mapping[str, str], *, machine: str | None = None) -> Path:
    """Return the program to start for a command: an absolute path, or a name on the PATH of ``env``.

    :param machine: the processor's name as :func:`platform.machine` gives it.
    :raises NotInstalled: if there is none, or it may not be executed.
    """
    path = require_executable(find_command(command, env, "codex", "@openai/codex"))
    return _native(path.resolve(), machine or platform.machine()) or path


def _native(script: Path, machine: str) -> Path | None:
    """Return the native binary that the npm wrapper would start; None if there is none. It is searched for
    in the same places.
    """
    if script.name != "codex.js" or machine not in _PLATFORMS:
        return None
    package, triple = _PLATFORMS[machine]
    root = script.parent.parent
    vendors = [
        parent / "node_modules" / "@openai" / package / "vendor"
        for parent in (root, *root.parents)
        if parent.name != "node_modules"
    ]
    for vendor in (*vendors, root / "vendor"):
        binary = vendor / triple / "bin" / "codex"
        if os.access(binary, os.X_OK):
            return binary
    return None

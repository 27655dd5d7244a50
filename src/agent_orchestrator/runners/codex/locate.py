"""Finds the program to start: the native codex behind its npm wrapper.

Codex 0.169 from npm is a Node script that starts the native binary as a child and forwards some
signals. Starting the binary directly saves 100 to 200 ms and 43 MB for each run. SIGKILL then
reaches codex, not only its wrapper.
"""

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

_PLATFORMS = {
    "x86_64": ("codex-linux-x64", "x86_64-unknown-linux-musl"),
    "aarch64": ("codex-linux-arm64", "aarch64-unknown-linux-musl"),
}


class NotInstalled(Exception):
    """The program does not exist. The message says what to do."""


class NotExecutable(NotInstalled):
    """The file exists, but may not be executed."""


def locate(command: str, env: Mapping[str, str], *, machine: str | None = None) -> Path:
    """Return the program to start for a command: an absolute path, or a name on the PATH of ``env``.

    :param machine: the processor's name as :func:`platform.machine` gives it.
    :raises NotInstalled: if there is none.
    :raises NotExecutable: if the file may not be run.
    """
    if "/" in command or command.startswith("~"):
        path = Path(os.path.expanduser(command)).absolute()  # noqa: PTH111 - there may be no home
        if not path.is_file():
            raise NotInstalled(f"codex is not installed: there is no file {path}")
        if not os.access(path, os.X_OK):
            raise NotExecutable(f"{path} is not executable: run chmod +x {path}")
    else:
        on_path = shutil.which(command, path=env.get("PATH", os.defpath))
        if on_path is None:
            raise NotInstalled(
                f"codex is not installed: no {command!r} on the PATH; "
                "install it with: npm install -g @openai/codex"
            )
        path = Path(on_path).absolute()
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

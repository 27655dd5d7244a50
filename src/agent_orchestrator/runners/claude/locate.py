"""Finds the program to start: the native Claude Code behind its npm package.

The npm package ``claude-code`` 2.1.332 does not contain the program. The program is in another package, one for each
platform. An install script puts it in the place of ``bin/claude.exe``, but npm may not run install scripts. The program
needs no Node.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from agent_orchestrator.runners.program import NotInstalled, find_command, require_executable

_MACHINES: Final = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}

_STUB_SIZE: Final = 2**20
"""Maximum bytes of a stub. The binary has 400 MB."""


def locate(command: str, env: Mapping[str, str]) -> Path:
    """Return the program to start for a command: a path, or a name on the PATH of ``env``.

    :raises NotInstalled: if there is none.
    """
    found = find_command(command, env, "Claude Code", "@anthropic-ai/claude-code")
    script = found.resolve()
    if script.name != "claude.exe" or script.stat().st_size >= _STUB_SIZE:
        program = found
    else:
        native = next((one for one in _natives(script) if os.access(one, os.X_OK)), None)
        if native is None:
            raise NotInstalled(
                f"{found} has no native binary: run `node install.cjs` in {script.parent.parent}"
            )
        program = native
    return require_executable(program)


def _natives(stub: Path) -> Iterator[Path]:
    """Yield the possible paths of the native binary, the best package for this machine first."""
    system = "darwin" if platform.system() == "Darwin" else "linux"
    name = f"claude-code-{system}-{_MACHINES.get(platform.machine(), platform.machine())}"
    package = stub.parent.parent
    names = (f"{name}-musl", name) if platform.libc_ver()[0] != "glibc" else (name, f"{name}-musl")
    for folder in (package / "node_modules" / "@anthropic-ai", package.parent):
        for one in names:
            yield folder / one / "claude"

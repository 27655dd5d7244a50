"""The directories whose settings, hooks, skills and MCP servers Claude Code may load.

Claude Code 2.1.332 asks its user once for each directory whether to trust it, and keeps the answer in
``.claude.json``. With ``-p`` it does not ask, and runs the hooks and MCP servers of any directory. So the runner
lets it load these only where the user has trusted the directory, or one above it.

An agent may write any file below the directory that its session shares with its ancestors. So nothing is
loaded from a directory below that, trusted or not.
"""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from agent_orchestrator.runners.paths import upwards

ALL_SOURCES: Final = "user,project,local"
USER_SOURCES: Final = "user"


def setting_sources(env: Mapping[str, str], cwd: str, shared: str) -> str:
    """Return the value of ``--setting-sources`` for a session. Blocks.

    :param shared: see :attr:`~agent_orchestrator.ports.runner.RunContext.shared_cwd`.
    """
    directory = os.path.realpath(cwd)
    is_shared = directory in upwards(os.path.realpath(shared))
    return ALL_SOURCES if is_shared and is_trusted(env, directory) else USER_SOURCES


def is_trusted(env: Mapping[str, str], directory: str) -> bool:
    """Return whether the user has trusted a directory, or one above it, in Claude Code."""
    projects = _projects(env)
    return any(
        isinstance(project := projects.get(path), dict)
        and project.get("hasTrustDialogAccepted") is True
        for path in upwards(directory)
    )


def config_directory(env: Mapping[str, str]) -> Path | None:
    """Return the directory of its configuration and conversations; None without a home."""
    if found := env.get("CLAUDE_CONFIG_DIR"):
        return Path(found)
    home = env.get("HOME")
    return Path(home) / ".claude" if home else None


def state_file(env: Mapping[str, str]) -> Path | None:
    """Return Claude Code's file of trusted directories; None without a home."""
    home = env.get("CLAUDE_CONFIG_DIR") or env.get("HOME")
    return Path(home) / ".claude.json" if home else None


def _projects(env: Mapping[str, str]) -> dict[str, Any]:
    file = state_file(env)
    if file is None:
        return {}
    try:
        status = file.stat()
        return _projects_in(file, status.st_ino, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=8)
def _projects_in(file: Path, *_state: int) -> dict[str, Any]:
    """Return the projects of a file, which may have megabytes, so it is read once for each of its states.

    :raises OSError, ValueError, RecursionError: if it cannot be read. It is then read again the next time.
    """
    found = json.loads(file.read_bytes())
    projects = found.get("projects") if isinstance(found, dict) else None
    return projects if isinstance(projects, dict) else {}

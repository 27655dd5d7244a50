"""Findings about an installed codex for administrators."""

import getpass
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent_orchestrator.domain.exposure import possible_with_network, possible_without_sandbox
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.runners.codex.confinement import CHOOSING_KEYS, Workspace
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.codex.probe import home_of
from agent_orchestrator.runners.program import NotInstalled

_UNCONFINED: Final = ("--dangerously-bypass-approvals-and-sandbox", "--yolo", "danger-full-access")
"""Arguments of codex 0.169 that disable its sandbox."""


def codex_findings(
    about: str,
    env: Mapping[str, str],
    *,
    command: str,
    sandbox: str | None,
    extra_args: Sequence[str],
    settings: Mapping[str, Any],
) -> Iterator[Finding]:
    """Yield findings about codex's home, its sandbox and its configuration. Blocks.

    :param about: the subject of the findings.
    :param env: codex's environment.
    :param sandbox: the runner's setting; None means codex's own.
    :param settings: codex's settings.
    """
    # No argument lifts a sandbox that the runner sets.
    chosen = [sandbox] if sandbox else [*extra_args, *map(settings.get, CHOOSING_KEYS)]
    words = [str(value) for value in chosen]
    unconfined = [option for option in _UNCONFINED if any(option in word for word in words)]
    if unconfined:
        yield Finding(
            "warning",
            about,
            f"codex runs without its sandbox ({unconfined[0]}): its agents can "
            f"{possible_without_sandbox()}",
            'set sandbox = "workspace-write", unless agentd itself is confined',
            security=True,
        )
    if Workspace.of(settings.get("sandbox_workspace_write")).network_access:
        yield Finding(
            "note",
            about,
            f"its agents may use the network in their sandbox: they can {possible_with_network()}",
            "remove network_access if agents do not need it",
            security=True,
        )
    try:
        program, home = locate(command, env), home_of(env)
    except NotInstalled:
        return  # the provider's availability says it
    yield _home(about, program, home)
    if not unconfined and shutil.which("bwrap", path=env.get("PATH")) is None:
        yield Finding(
            "note",
            about,
            "bubblewrap (bwrap) is not on its PATH: codex uses its own copy for its sandbox",
            "install the system's bubblewrap package",
        )


def _home(about: str, program: Path, home: Path) -> Finding:
    try:
        is_directory = stat.S_ISDIR(home.stat().st_mode)
    except FileNotFoundError:
        return Finding(
            "warning",
            about,
            f"{home} does not exist, where codex ({program}) keeps its login and its threads",
            "run `codex login` as the user agentd runs as, or set `home`",
        )
    except OSError:  # no permission, or not a valid name
        is_directory = False
    if not is_directory or not os.access(home, os.W_OK | os.X_OK):
        return Finding(
            "error",
            about,
            f"codex cannot write to {home}, where it keeps its threads",
            f"give {_user()} the right to, or set `home` to another directory",
        )
    return Finding("ok", about, f"codex is {program}, its home {home} can be written")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # which of them depends on the Python
        return f"user {os.getuid()}"  # has no entry in passwd

"""Findings about an installed Claude Code for administrators, and hints for failed runs."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from agent_orchestrator.domain.exposure import possible_without_sandbox
from agent_orchestrator.domain.model import ApprovalPolicy, RunError, Sandbox
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import Issue, IssueCode
from agent_orchestrator.runners.claude.failures import REFUSED_ARGUMENTS
from agent_orchestrator.runners.claude.launch import ENV_FILE, KEYS, decides_alone, hides_keys
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.trust import config_directory
from agent_orchestrator.runners.program import NotInstalled


def claude_findings(
    about: str,
    env: Mapping[str, str],
    *,
    command: str,
    sandbox: Sandbox,
    policy: ApprovalPolicy,
) -> Iterator[Finding]:
    """Yield findings about Claude Code's directory, and settings that give its agents more rights. Blocks.

    :param about: the subject of the findings.
    """
    if decides_alone(sandbox, policy):
        yield Finding(
            "warning",
            about,
            f"Claude Code does not ask before it uses a tool ({sandbox}): its agents can "
            f"{possible_without_sandbox()}",
            'set sandbox = "workspace-write", unless agentd itself is confined',
            security=True,
        )
    else:
        yield Finding(
            "note",
            about,
            "its agents are confined by questions, not by a sandbox of the operating system: an action that a person "
            f"or a rule of Claude Code's settings allows can {possible_without_sandbox()}",
            "confine agentd itself, if agents must not be able to",
            security=True,
        )
    if keys := ", ".join(sorted(name for name in KEYS if env.get(name))):
        if hides_keys(env):
            said = "do not get it, but can read it from the process of Claude Code, as each program of the user can"
            hint = (
                "log in with `claude auth login`, and confine agentd, if they must not be able to"
            )
        else:
            said = f"have it in their environment, because {ENV_FILE} is set"
            hint = f"leave {ENV_FILE} to agentd"
        yield Finding("note", about, f"{keys}: its agents' commands {said}", hint, security=True)
    try:
        program = locate(command, env)
    except NotInstalled:
        return  # the provider's availability says it
    directory = config_directory(env)
    if directory is None:
        yield Finding("error", about, "Claude Code has no home", "set HOME, or the option `home`")
    elif not _is_usable(directory):
        yield Finding(
            "error",
            about,
            f"Claude Code cannot write to {directory}, where it keeps its conversations",
            "give the user of agentd write access to it, or set `home` to another directory",
        )
    else:
        yield Finding("ok", about, f"Claude Code is {program}, its directory {directory}")


def _is_usable(directory: Path) -> bool:
    try:
        directory.stat()
    except FileNotFoundError:
        return True  # Claude Code creates it
    except OSError:  # no permission, or not a valid name
        return False
    return os.access(directory, os.W_OK | os.X_OK)


_ISSUES: Final[tuple[tuple[str, str, IssueCode, str], ...]] = (
    (
        "auth_failed",
        "",
        "auth_failed",
        "run `claude auth login` as the user agentd runs as, or set ANTHROPIC_API_KEY for the provider",
    ),
    (
        "thread_missing",
        "",
        "thread_missing",
        'start a new session, or set on_missing_thread = "fresh"',
    ),
    (
        "invalid_config",
        REFUSED_ARGUMENTS,
        "invalid_config",
        "correct extra_args of the provider; see the invocation",
    ),
)
"""The issue and the hint, by the code of a failure and the beginning of its message."""


def likely_issue(error: RunError) -> Issue | None:
    """Return the likely issue of a failure; None if its code is enough."""
    for code, beginning, issue, hint in _ISSUES:
        if error.code == code and error.message.startswith(beginning):
            return Issue(issue, f"{error.code}: {error.message}", hint)
    return None

"""The likely issue of a failed run of codex, with a hint."""

from typing import Final

from agent_orchestrator.domain.model import RunError
from agent_orchestrator.operations.runs import Issue, IssueCode
from agent_orchestrator.runners.codex.failures import REFUSED_ARGUMENTS, THREAD_IN_USE

_ISSUES: Final[tuple[tuple[str, str, IssueCode, str], ...]] = (
    (
        "auth_failed",
        "",
        "auth_failed",
        "run `codex login` as the user agentd runs as, or set the key that codex's model provider reads",
    ),
    (
        "thread_missing",
        "",
        "thread_missing",
        'start a new session, or set on_missing_thread = "fresh"',
    ),
    (
        "provider_error",
        THREAD_IN_USE,
        "unknown",
        "end what else has the thread, such as `codex resume`, and send the message again",
    ),
    (
        "invalid_config",
        REFUSED_ARGUMENTS,
        "invalid_config",
        "correct extra_args, profile and config of the provider; see the invocation",
    ),
)
"""The issue and the hint, by the code of a failure and the beginning of its message."""


def likely_issue(error: RunError) -> Issue | None:
    """Return the likely issue of a failure of codex; None if its code is enough."""
    for code, beginning, issue, hint in _ISSUES:
        if error.code == code and error.message.startswith(beginning):
            return Issue(issue, f"{error.code}: {error.message}", hint)
    return None

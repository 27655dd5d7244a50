"""Converts the errors of Claude Code to our codes. All names and texts are those of 2.1.332."""

import re
import signal
from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.domain.errors import AgentFailed

_ERRORS: Final = {
    "authentication_failed": "auth_failed",
    "oauth_org_not_allowed": "auth_failed",
    "billing_error": "quota_exhausted",
    "rate_limit": "rate_limited",
    "model_not_found": "invalid_config",
}
"""Our codes for the ``error`` of the message with which Claude Code ends a turn."""

_LIMIT: Final = re.compile(
    r"usage limit|limit reached|hit your limit|credit balance", re.IGNORECASE
)

_SUBTYPES: Final = {
    "error_max_budget_usd": "quota_exhausted",
    "error_max_turns": "provider_error",
}

_CONTEXT: Final = ("blocking_limit", "image_error", "prompt_too_long")
"""The reasons that mean that the conversation is too large for the model or for one request."""

_FULL: Final = "context window limit"

_NO_CONVERSATION: Final = "No conversation found"
_IN_USE: Final = "is already in use"
_UNKNOWN_OPTION: Final = re.compile(r"^error: (.+)", re.MULTILINE)

REFUSED_ARGUMENTS: Final = "Claude Code refused its arguments"


def result_failure(result: Mapping[str, Any], error: str | None, said: str) -> AgentFailed:
    """Return the failure of a turn, from its result.

    :param error: the ``error`` of the turn's last message.
    :param said: the text of that message.
    """
    reason, subtype = result.get("terminal_reason"), str(result.get("subtype"))
    errors = result.get("errors")
    listed = [str(one) for one in errors] if isinstance(errors, list) else []
    told = [one for one in listed if not one.startswith("[ede_diagnostic]")]
    text = result.get("result")
    message = said or (text if isinstance(text, str) else "") or "; ".join(told)
    message = message or f"Claude Code ended the turn as {subtype} ({reason})"
    return AgentFailed(_code(result, error, message), message)


def _code(result: Mapping[str, Any], error: str | None, message: str) -> str:
    reason, subtype = result.get("terminal_reason"), str(result.get("subtype"))
    if reason in _CONTEXT or (error == "max_output_tokens" and _FULL in message):
        return "context_exceeded"
    if subtype in _SUBTYPES:
        return _SUBTYPES[subtype]
    if error == "rate_limit" and _LIMIT.search(message):
        return "quota_exhausted"
    if error in _ERRORS:
        return _ERRORS[error]
    if error == "server_error" and result.get("api_error_status") is None:
        return "provider_unreachable"
    return "provider_error"


def is_conversation_missing(result: Mapping[str, Any]) -> bool:
    """Return whether Claude Code has no conversation with the id to resume."""
    errors = result.get("errors")
    return isinstance(errors, list) and any(_NO_CONVERSATION in str(one) for one in errors)


def is_conversation_in_use(stderr: str) -> bool:
    """Return whether the id for a new conversation already has one."""
    return _IN_USE in stderr


def exit_failure(exit_code: int | None, stderr: str) -> AgentFailed:
    """Return the failure for a process that exited without being stopped.

    :param exit_code: negative for the signal that ended it.
    """
    detail = f": {stderr.strip()}" if stderr.strip() else ""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name if -exit_code in _SIGNALS else f"signal {-exit_code}"
        return AgentFailed("agent_crashed", f"Claude Code was killed by {name}{detail}")
    if (refusal := _UNKNOWN_OPTION.search(stderr)) is not None:
        return AgentFailed("invalid_config", f"{REFUSED_ARGUMENTS}: {refusal[1]}")
    return AgentFailed("agent_crashed", f"Claude Code ended (exit code {exit_code}){detail}")


_SIGNALS: Final = frozenset(one.value for one in signal.Signals)

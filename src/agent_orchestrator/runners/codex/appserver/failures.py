"""Converts the errors of ``codex app-server`` in a turn to our codes.

All names are those of codex 0.169's ``CodexErrorInfo``: a word, or a word with an HTTP status.
"""

from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.runners.codex.failures import turn_failure
from agent_orchestrator.runners.events import error_words, text

_CODES: Final = {
    "contextWindowExceeded": "context_exceeded",
    "sessionBudgetExceeded": "quota_exhausted",
    "usageLimitExceeded": "quota_exhausted",
    "rateLimitExceeded": "rate_limited",
    "unauthorized": "auth_failed",
    "modelNotFound": "invalid_config",
    "tooManyDenials": "denied",
}

_UNREACHABLE: Final = frozenset(
    {"httpConnectionFailed", "responseStreamConnectionFailed", "responseStreamDisconnected"}
)

_STATUS_CODES: Final = {
    401: "auth_failed",
    402: "quota_exhausted",
    403: "auth_failed",
    429: "rate_limited",
}


def failure_of(error: Mapping[str, Any]) -> tuple[str, str]:
    """Return our code and a message for codex's TurnError."""
    message = text(error.get("message")) or "codex gave no reason for the failed turn"
    details = text(error.get("additionalDetails"))
    if details and details not in message:
        message = f"{message}: {details}"
    return _code(error.get("codexErrorInfo")) or turn_failure(message), error_words(message)


def _code(info: Any) -> str | None:
    if isinstance(info, str):
        return _CODES.get(info)
    if not isinstance(info, Mapping) or len(info) != 1:
        return None
    ((name, more),) = info.items()
    status = more.get("httpStatusCode") if isinstance(more, Mapping) else None
    if status is not None:
        return _STATUS_CODES.get(status, "provider_error")
    return "provider_unreachable" if name in _UNREACHABLE else _CODES.get(name)

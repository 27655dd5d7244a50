"""Error codes for codex's failures, by the texts of its messages.

All texts are those of codex 0.169.
"""

import re
import signal
from typing import Final

_STATUS: Final = re.compile(r"unexpected status (\d{3})|last status: (\d{3})")

_STATUS_CODES: Final = {
    "401": "auth_failed",
    "403": "auth_failed",
    "402": "quota_exhausted",
    "429": "rate_limited",
}

_TURN: Final = (
    ("quota_exhausted", r"usage limit|quota exceeded|insufficient_quota|out of credits"),
    ("context_exceeded", r"ran out of room|context window|context_length_exceeded"),
    ("auth_failed", r"missing environment variable|incorrect api key|not logged in|unauthorized"),
    ("rate_limited", r"rate limit|too many requests"),
    # The connection, and not the server at its end, is what failed.
    ("provider_unreachable", r"connection failed|error sending request|stream disconnected"),
)

_STARTUP: Final = (
    (
        "thread_missing",
        (
            r"no rollout found|thread/resume failed|no saved session found|thread not found"
            r"|invalid session id"
        ),
    ),
    ("auth_failed", r"not logged in|codex login"),
    (
        "invalid_config",
        (
            r"error loading|config\.toml|failed to load config|invalid value|unexpected argument"
            r"|unknown (?:feature|variant|field|configuration)|unrecognized|model provider"
            r"|not inside a trusted directory|no such file or directory|finding codex home"
            r"|required mcp servers failed|read-only file system|permission denied"
            r"|invalid (?:type|override|profile)|failed to parse"
        ),
    ),
)

_KNOWN_TEXTS: Final = re.compile(r"(?:^|\s)(?:Error|error|fatal)\b", re.MULTILINE)
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\dT\S+\s+(?:ERROR|WARN|INFO|DEBUG|TRACE)\s|WARNING: ")
_COLOR: Final = re.compile("\x1b\\[[0-9;]*m")
"""Colour codes in an app-server's log lines."""

_STDERR_TAIL: Final = 16 * 2**10
"""Maximum characters of a message to search."""

_BUSY: Final = "already has an active writer"

THREAD_IN_USE: Final = "another process is using this thread"
REFUSED_ARGUMENTS: Final = "codex refused its arguments"
"""Beginnings of messages that :mod:`agent_orchestrator.runners.codex.diagnosis` explains further."""


def turn_failure(message: str) -> str:
    """Return the code for the message of ``turn.failed``."""
    code = _first_match(_TURN[:2], message)
    status = _STATUS.search(message[:_STDERR_TAIL])
    if code is None and status is not None:
        return _STATUS_CODES.get(status[1] or status[2], "provider_error")
    return code or _first_match(_TURN[2:], message) or "provider_error"


def startup_failure(exit_code: int | None, stderr: str) -> tuple[str, str]:
    """Return code and message for a codex process that exited without ending its turn.

    :param exit_code: negative for a signal.
    """
    message = error_text(stderr)
    if exit_code is not None and exit_code < 0:
        return "agent_crashed", _append_detail(
            f"codex was killed by {_signal_name(-exit_code)}", message
        )
    if exit_code == 101:  # Rust's exit code for a panic
        return "agent_crashed", _append_detail("codex panicked", message)
    if exit_code == 2 and message:  # its command line parser's, with the usage under it
        refusal = " ".join(message.partition("\n\n")[0].split())
        return "invalid_config", f"{REFUSED_ARGUMENTS}: {refusal.removeprefix('error: ')}"
    if exit_code and message:
        if is_busy(message):
            return "provider_error", f"{THREAD_IN_USE}: {message}"
        if code := _first_match(_STARTUP, message):
            return code, message
    return "agent_crashed", _append_detail(
        f"codex ended (exit code {exit_code}) during the turn", message
    )


def refusal_code(message: str) -> str:
    """Return the code for the message of a request that codex refused."""
    return _first_match(_STARTUP, message) or _first_match(_TURN, message) or "provider_error"


def is_busy(stderr: str) -> bool:
    """Return whether codex refused a thread because another process has it open.

    The lock ends with its process. After a kill it is free within moments.
    """
    return _BUSY in stderr


def error_text(stderr: str) -> str:
    """Return the error message in codex's stderr, without log lines and warnings."""
    plain = _COLOR.sub("", stderr)
    lines = [line for line in plain.splitlines() if not _LOG_LINE.match(line)]
    text = "\n".join(lines).strip()
    start = next((match.start() for match in _KNOWN_TEXTS.finditer(text)), 0)
    return text[start:].strip()


def _first_match(table: tuple[tuple[str, str], ...], message: str) -> str | None:
    message = message[:_STDERR_TAIL]
    return next(
        (code for code, pattern in table if re.search(pattern, message, re.IGNORECASE)), None
    )


def _append_detail(text: str, detail: str) -> str:
    return f"{text}: {detail}" if detail else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

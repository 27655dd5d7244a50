"""Failures of a command: exit codes, which ``agentctl --help`` explains, and error messages."""

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agent_orchestrator.domain.errors import OrchestratorError, Unreachable
    from agentctl.settings import CallSettings

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
DENIED: Final = 5
CONFLICT: Final = 6
TIMED_OUT: Final = 7
INTERRUPTED: Final = 130

_CODES: Final = {
    USAGE: "invalid_request",
    DENIED: "unauthorized forbidden",
    NOT_FOUND: "not_found",
    CONFLICT: "conflict invalid_transition idempotency_conflict already_resolved session_busy "
    "session_closed cursor_ahead",
    FAILED: "method_not_allowed gone payload_too_large unsupported_media_type misdirected_request "
    "rate_limited unavailable internal",
}
EXIT_CODES: Final = {code: number for number, codes in _CODES.items() for code in codes.split()}
"""Exit codes by the daemon's error codes."""

_HINTS: Final[dict[str, str]] = {
    "unauthorized": "give a token with --auth-token or AGENTCTL_AUTH_TOKEN",
    "forbidden": "use a token that allows this",
    "idempotency_conflict": "use another --idempotency-key",
    "already_resolved": "see `agentctl request show`",
    "session_busy": "wait until its run has ended; a message can be sent with --when-busy queue",
    "session_closed": "create another with `agentctl session create`",
    "cursor_ahead": "start again after `resume_cursor` in the error's details (--format json)",
    "gone": "go on with that number as `--cursor`, or without it",
    "invalid_transition": "see `agentctl run get`",
    "unavailable": "try again later; `agentctl daemon status` shows the queue",
    "misdirected_request": "give agentd's address in --url",
    "internal": "see agentd's log",
}


_UNWRITABLE: Final = (errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Error numbers of failed writes to standard output. Unlike errors from ``open``, they have no file name."""


class Failure(Exception):
    """An error that ends a command.

    :param code: a stable code for programs.
    :param message: one sentence for the user.
    :param hint: what to do next.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        exit_code: int = FAILED,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code
        self.hint = hint
        self.details = dict(details or {})

    def as_line(self) -> str:
        """Return the error as one line of text."""
        if not self.hint:
            return self.message
        if self.message.endswith("?"):
            return f"{self.message} {self.hint[0].upper()}{self.hint[1:]}"
        return f"{self.message.rstrip('.')}: {self.hint}"

    def as_json(self) -> dict[str, Any]:
        """Return the error as JSON, in the format of the daemon's errors."""
        details = self.details | ({"hint": self.hint} if self.hint else {})
        return {"error": {"code": self.code, "message": self.message, "details": details}}


def usage_failure(message: str) -> Failure:
    """Return a failure for invalid arguments."""
    return Failure("invalid_request", message, exit_code=USAGE)


def file_failure(error: OSError) -> Failure:
    """Return a failure for a file or an output stream that cannot be used."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return Failure("unusable_file", f"{error.filename}: {reason}")
    if error.errno in _UNWRITABLE:
        reason = "standard output is closed" if error.errno == errno.EBADF else reason
        return Failure("output_failed", f"the answer cannot be written: {reason}")
    return Failure("system", reason)


def failure_of(error: "OrchestratorError") -> Failure:
    """Return a failure for an error from the daemon."""
    hint = _HINTS.get(error.code)
    if error.code == "not_found":
        hint = _details_hint(error.details)
    return Failure(
        error.code,
        error.message,
        exit_code=EXIT_CODES.get(error.code, FAILED),
        hint=hint,
        details=error.details,
    )


def unknown_to_daemon(error: "OrchestratorError") -> str | None:
    """Return the name of the field or call that the daemon does not know; None for other errors.

    The usual cause is a daemon of another version.
    """
    from agent_orchestrator.domain.errors import InvalidRequest, MethodNotAllowed, NotFound
    from agent_orchestrator.fields import NOT_A_FIELD

    fields = error.details.get("fields") if isinstance(error, InvalidRequest) else None
    if isinstance(fields, Mapping):
        names = [name for name, problem in fields.items() if str(problem).startswith(NOT_A_FIELD)]
        return f"the field `{names[0]}`" if names else None
    is_path = isinstance(error, NotFound) and not error.details
    return "this call" if is_path or isinstance(error, MethodNotAllowed) else None


def version_mismatch(
    error: "OrchestratorError", settings: "CallSettings", daemon_version: str
) -> Failure:
    """Return a failure for a field or call that the daemon does not know."""
    from importlib.metadata import version

    own_version = version("agent-orchestrator")
    return Failure(
        "version_mismatch",
        f"agentd at {settings.url} is version {daemon_version} and does not know {unknown_to_daemon(error)}, which"
        f" this agentctl, version {own_version}, sends",
        hint="restart agentd, so that both have one version"
        + (": `agentctl daemon stop --wait`, `agentctl daemon start`" if settings.is_local else ""),
        details={
            "agentd": daemon_version,
            "agentctl": own_version,
            "error": error.code,
            **error.details,
        },
    )


def _details_hint(details: Mapping[str, Any]) -> str | None:
    for kind in ("run", "session", "request"):
        if f"{kind}_id" in details:
            return f"`agentctl {kind} list` shows the existing ones"
    return None


def unreachable(error: "Unreachable", settings: "CallSettings") -> Failure:
    """Return a failure for a call without an answer."""
    start = "agentctl daemon start"
    if (problem := _tls_problem(error, settings)) is not None:
        hint = problem
    elif not settings.is_local:
        hint = "is agentd running there, and is --url right?"
    else:
        hint = f"is agentd running? start it with `{start}`"
    return Failure(
        "unreachable",
        f"cannot reach {settings.url}",
        exit_code=UNREACHABLE,
        hint=hint,
        details={"cause": str(error)},
    )


def _tls_problem(error: BaseException, settings: "CallSettings") -> str | None:
    """Return a hint if TLS settings probably caused the error, else None."""
    import ssl

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({cause.verify_message}): give the certificate of its authority, or "
            "the daemon's own, with --ca-file"
        )
    if cause is not None and cause.reason == "WRONG_VERSION_NUMBER":
        return "the server does not use TLS; try http:// instead of https://"
    if settings.url.startswith("http:") and "disconnected" in str(error):
        return "the server closed the connection without an answer; try https:// instead of http://"
    return None

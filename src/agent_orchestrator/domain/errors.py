"""The errors of the API, each with a stable ``code``.

OrchestratorError
├── InvalidRequest          the request is invalid; ``details["fields"]`` names each bad field
├── Unauthorized            no token, or an unknown one
├── Forbidden               the caller is known, but may not do this
├── NotFound                no such object, or the caller may not see it
├── MethodNotAllowed
├── Conflict                the current state does not allow it
│   ├── InvalidTransition   the run's lifecycle has no such step
│   ├── IdempotencyConflict the key was used for another request
│   ├── AlreadyResolved     another decision came first
│   ├── SessionBusy         ``when_busy="reject"`` and a run is active
│   ├── SessionClosed
│   └── CursorAhead         the cursor is beyond the last event
├── Gone                    events after the cursor were deleted
├── PayloadTooLarge
├── UnsupportedMediaType
├── MisdirectedRequest      the Host header names another server
├── RateLimited
├── Unavailable             not now; try again after ``retry_after_s``
└── Internal                an unexpected error

Other exceptions are not API errors. ``StoreOpenError`` (unusable database) and ``ConfigError``
(unusable configuration) prevent a start. ``Unreachable`` is raised by a client whose daemon does not
answer. A runner raises ``AgentFailed`` to end its run as failed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class OrchestratorError(Exception):
    """An API error.

    :param message: one sentence for people.
    :param details: machine-readable facts, without secrets and tracebacks.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequest(OrchestratorError):
    """The request is invalid; ``details["fields"]`` maps each bad field to its problem."""

    code = "invalid_request"

    @classmethod
    def of(cls, problems: Mapping[str, str]) -> "InvalidRequest":
        """Return the error for problems by field."""
        text = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        return cls(text, {"fields": dict(problems)})


class Unauthorized(OrchestratorError):
    code = "unauthorized"


class Forbidden(OrchestratorError):
    code = "forbidden"


class NotFound(OrchestratorError):
    code = "not_found"


class MethodNotAllowed(OrchestratorError):
    code = "method_not_allowed"


class Conflict(OrchestratorError):
    code = "conflict"


class InvalidTransition(Conflict):
    code = "invalid_transition"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class AlreadyResolved(Conflict):
    code = "already_resolved"


class SessionBusy(Conflict):
    code = "session_busy"


class SessionClosed(Conflict):
    code = "session_closed"


class CursorAhead(Conflict):
    """``details["resume_cursor"]``, if present, is the last cursor at which the log is what the reader read."""

    code = "cursor_ahead"

    @classmethod
    def restored(cls, details: Mapping[str, Any]) -> "CursorAhead":
        """Return the error for a cursor that was read before the log was restored from a backup.

        :param details: must have ``resume_cursor``.
        """
        return cls(
            "the log was restored from a backup since this cursor was read: forget all events after"
            f" cursor {details['resume_cursor']}, and read again from there",
            details,
        )


class Gone(OrchestratorError):
    """Events after the cursor were deleted. ``details["oldest"]`` is the cursor to go on from."""

    code = "gone"


class PayloadTooLarge(OrchestratorError):
    code = "payload_too_large"


class UnsupportedMediaType(OrchestratorError):
    code = "unsupported_media_type"


class MisdirectedRequest(OrchestratorError):
    code = "misdirected_request"


class RateLimited(OrchestratorError):
    code = "rate_limited"


class Unavailable(OrchestratorError):
    """The service cannot accept this now.

    :param retry_after_s: whole seconds to wait before the next try.
    """

    code = "unavailable"

    def __init__(
        self, message: str, details: Mapping[str, Any] | None = None, *, retry_after_s: int = 1
    ) -> None:
        super().__init__(message, {**(details or {}), "retry_after_s": retry_after_s})
        self.retry_after_s = retry_after_s


class Internal(OrchestratorError):
    code = "internal"


class Unreachable(Exception):
    """The daemon cannot be reached, or the connection broke before the answer."""


class ConfigError(Exception):
    """A setting is invalid; the message names it and says what is valid."""


class StoreOpenError(Exception):
    """The database cannot be opened; nothing in it was changed."""


class StoreLocked(StoreOpenError):
    """Another process uses the database."""


class SchemaTooNew(StoreOpenError):
    """A newer version of the program wrote this database."""


class ForeignDatabase(StoreOpenError):
    """The file is not a database of this program."""


class UnknownDatabase(StoreOpenError):
    """The database lies where others may have put it, and its user has never used it."""


class StoreDamaged(StoreOpenError):
    """The database fails its integrity check."""


class CommitsLost(StoreOpenError):
    """The database lacks acknowledged commits."""


class AgentFailed(Exception):
    """Raised by a runner to end its run as ``failed``.

    :param code: one of :data:`agent_orchestrator.domain.model.FAILURE_CODES`.
    :param message: the agent's own message, or what was observed.
    :param exit_code: of the agent's process, if it had one; negative for a signal.
    """

    def __init__(self, code: str, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code

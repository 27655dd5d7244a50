"""Every error a caller can be told of, each with a stable ``code``.

OrchestratorError
├── InvalidRequest          the request itself is wrong; ``details["fields"]`` names each bad field
├── Unauthorized            no token, or one that is not known
├── Forbidden               a known caller who may not do this
├── NotFound                no such thing, or none this caller may see
├── MethodNotAllowed
├── Conflict                the state of things forbids it
│   ├── InvalidTransition   the run's lifecycle has no such step
│   ├── IdempotencyConflict the key was used for another request
│   ├── AlreadyResolved     another answer came first
│   ├── SessionBusy         ``when_busy="reject"`` and a run is active
│   ├── SessionClosed
│   └── CursorAhead         the cursor is beyond the last event
├── Gone                    the cursor is below what is kept
├── PayloadTooLarge
├── UnsupportedMediaType
├── MisdirectedRequest      the Host header names another server
├── RateLimited
├── Unavailable             not now; ``retry_after_s`` says when to try again
└── Internal                a fault of ours

Two more trees never travel as an API error: ``StoreOpenError`` (the database cannot be used) and
``ConfigError`` (the configuration cannot be used) end a start; ``Unreachable`` is raised by a
client that cannot reach its daemon. ``AgentFailed`` is what a runner raises to end its run as
failed: a failed run is an outcome, not an error of the caller who asked for it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class OrchestratorError(Exception):
    """A refusal or fault with a stable code.

    :param message: one sentence for a person.
    :param details: machine-readable facts; never secrets, never a traceback.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequest(OrchestratorError):
    """The request is malformed; ``details["fields"]`` maps each bad field to what is wrong with it."""

    code = "invalid_request"

    @classmethod
    def of(cls, problems: Mapping[str, str]) -> "InvalidRequest":
        """Return the error that names every field of ``problems``."""
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
    """``details["resume_cursor"]`` is the last place the log has in common with the reader's, as far as
    that is known.
    """

    code = "cursor_ahead"

    @classmethod
    def restored(cls, details: Mapping[str, Any]) -> "CursorAhead":
        """Return what a reader is told whose cursor is of a log that went on otherwise.

        :param details: with ``resume_cursor``.
        """
        return cls(
            "the log was restored from a backup after this cursor was read: forget what came after"
            f" cursor {details['resume_cursor']}, and begin again there",
            details,
        )


class Gone(OrchestratorError):
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
    """The service cannot take this now.

    :param retry_after_s: whole seconds after which a new try makes sense.
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
    """The daemon could not be reached, or the connection broke before an answer came."""


class ConfigError(Exception):
    """A setting cannot be used; the message names it and says what would be right."""


class StoreOpenError(Exception):
    """The database cannot be opened; nothing in it was changed."""


class StoreLocked(StoreOpenError):
    """Another process has the database."""


class SchemaTooNew(StoreOpenError):
    """A newer version of the program wrote this database."""


class ForeignDatabase(StoreOpenError):
    """The file is not a database of this program."""


class UnknownDatabase(StoreOpenError):
    """The database was found where anybody may have put it, and its user never used it."""


class StoreDamaged(StoreOpenError):
    """The database fails its integrity check."""


class CommitsLost(StoreOpenError):
    """The database lacks commits it once had, which were acknowledged."""


class AgentFailed(Exception):
    """Raised by a runner: the run ends as ``failed``.

    :param code: one of :data:`agent_orchestrator.domain.model.FAILURE_CODES`.
    :param message: what the agent said, or what was observed.
    :param exit_code: the agent process's exit code, negative for a signal, where there was one.
    """

    def __init__(self, code: str, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code

"""The table of errors and HTTP statuses, for servers and clients."""

from collections.abc import Mapping
from typing import Any, Final

from agent_orchestrator.domain import errors

STATUSES: Final[dict[type[errors.OrchestratorError], int]] = {
    errors.InvalidRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.InvalidTransition: 409,
    errors.IdempotencyConflict: 409,
    errors.AlreadyResolved: 409,
    errors.SessionBusy: 409,
    errors.SessionClosed: 409,
    errors.CursorAhead: 409,
    errors.Gone: 410,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.MisdirectedRequest: 421,
    errors.RateLimited: 429,
    errors.Internal: 500,
    errors.Unavailable: 503,
}

MAX_RETRY_S: Final = 3600
"""Maximum seconds that a client waits because a server's ``Retry-After`` asks for it."""

_BY_CODE: Final = {kind.code: kind for kind in STATUSES}
_BY_STATUS: Final = {status: kind for kind, status in reversed(STATUSES.items())}


def status_of(error: errors.OrchestratorError) -> int:
    """Return the HTTP status of an error."""
    return STATUSES[type(error)]


def to_body(error: errors.OrchestratorError) -> dict[str, Any]:
    """Return the JSON body of an error."""
    return {
        "error": {"code": error.code, "message": error.message, "details": error.details},
    }


def from_body(status: int, body: Any) -> errors.OrchestratorError:
    """Return the error in a response. A body in another format is classified by the status."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        kind = _BY_STATUS.get(status, errors.Internal)
        return kind(f"the server answered {status} without a reason")
    kind = _BY_CODE.get(str(error.get("code")), _BY_STATUS.get(status, errors.Internal))
    message = str(error.get("message", ""))
    details = error.get("details")
    details = dict(details) if isinstance(details, Mapping) else {}
    if kind is errors.Unavailable:
        retry = details.get("retry_after_s")
        retry = min(max(retry, 0), MAX_RETRY_S) if isinstance(retry, int) else 1
        return errors.Unavailable(message, details, retry_after_s=retry)
    return kind(message, details)

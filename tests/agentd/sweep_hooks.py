"""Hooks of schemathesis: a media type, changes of some of its requests, and a check of ours."""

import os
from typing import Any

import schemathesis

# The file of a session. Schemathesis does not know how to send its type.
schemathesis.serializer.alias("application/x-ndjson", "text/plain")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    body = case.body
    if (
        case.operation.path == "/daemon/backup"
        and isinstance(body, dict)
        and isinstance(body.get("path"), str)
        and body["path"].startswith("/")
    ):
        body["path"] = os.environ["SWEEP_COPY"]  # never another place on this machine

    for name in ("wait_s", "timeout_s"):
        seconds = (case.query or {}).get(name)
        # A value out of bounds stays: it must be refused.
        if isinstance(seconds, (int, float)) and 0.1 < seconds <= 86_400:
            case.query[name] = 0.1  # the ids exist, so the answer would wait


@schemathesis.check
def refused(context: Any, response: Any, case: Any) -> None:
    """Fail if a caller that must be refused got another answer."""
    if case.operation.path not in ("/health", "/devices/claim"):
        assert response.status_code in (401, 429), f"{case.operation.label}: {response.status_code}"

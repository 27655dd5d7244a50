"""Told to schemathesis: what of its requests must be as it would not make it, and a check of ours."""

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    body = case.body
    if (
        case.operation.path == "/daemon/backup"
        and isinstance(body, dict)
        and isinstance(body.get("path"), str)
        and body["path"].startswith("/")
    ):
        body["path"] = os.environ["SWEEP_COPY"]  # not anywhere on the machine the tests run on

    for name in ("wait_s", "timeout_s"):
        seconds = (case.query or {}).get(name)
        # One that is out of bounds stays: it must be refused.
        if isinstance(seconds, (int, float)) and 0.1 < seconds <= 86_400:
            case.query[name] = 0.1  # ids are those of things that are there: the answer would wait


@schemathesis.check
def refused(context: Any, response: Any, case: Any) -> None:
    """Fail for an answer to who may not be answered."""
    if case.operation.path != "/health":
        assert response.status_code in (401, 429), f"{case.operation.label}: {response.status_code}"

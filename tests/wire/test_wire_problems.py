"""Every error has a status and is decoded as the same error."""

from typing import Any

import pytest

from agent_orchestrator.domain import errors
from agent_orchestrator.wire import problems


def every_kind(kind: type[errors.OrchestratorError]) -> set[type[errors.OrchestratorError]]:
    return {kind}.union(*(every_kind(sub) for sub in kind.__subclasses__()))


KINDS = sorted(
    every_kind(errors.OrchestratorError) - {errors.OrchestratorError}, key=lambda kind: kind.code
)


def test_every_error_has_a_status() -> None:
    assert set(problems.STATUSES) == set(KINDS)


def test_error_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_error_is_decoded_as_it_was_encoded(kind: type[errors.OrchestratorError]) -> None:
    error = kind("why", {"a": 1})
    body = problems.to_body(error)
    again = problems.from_body(problems.status_of(error), body)
    assert type(again) is kind
    assert (again.message, again.details) == (error.message, error.details)
    assert problems.to_body(again) == body


def test_retry_after_is_decoded() -> None:
    body = problems.to_body(errors.Unavailable("full", retry_after_s=7))
    again = problems.from_body(503, body)
    assert isinstance(again, errors.Unavailable)
    assert again.retry_after_s == 7


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, None, errors.NotFound),
        (404, "<html>", errors.NotFound),
        (409, {"error": {"code": "from_the_future"}}, errors.Conflict),
        (409, {"error": {"code": "session_busy", "details": 5}}, errors.SessionBusy),
        (503, {"error": {"code": "unavailable", "details": {"retry_after_s": "x"}}}, errors.Unavailable),
        (502, {"error": "bad gateway"}, errors.Internal),
        (418, {}, errors.Internal),
        (400, {"error": {}}, errors.InvalidRequest),
    ],
)  # fmt: skip
def test_foreign_error_body_is_mapped_by_its_status(status: int, body: Any, kind: type) -> None:
    assert type(problems.from_body(status, body)) is kind

"""Policies: their order, and which of several holds."""

from itertools import product
from typing import get_args

import pytest

from agent_orchestrator.domain.approvals import STRICTNESS, is_looser, policy_for, strictest
from agent_orchestrator.domain.model import Approvals, RequestKind


def test_all_of_them_have_a_place() -> None:
    assert sorted(STRICTNESS) == sorted(get_args(Approvals))


@pytest.mark.parametrize(("one", "other"), [*product(STRICTNESS, STRICTNESS)])
def test_the_stricter_of_two_holds(one: Approvals, other: Approvals) -> None:
    found = strictest(one, None, other)
    assert found in (one, other)
    assert not is_looser(found, one)
    assert not is_looser(found, other)
    assert strictest(other, one) == found
    assert not (is_looser(one, other) and is_looser(other, one))


def test_without_any_the_parent_is_asked() -> None:
    assert strictest() == strictest(None, None) == "ask-parent"
    assert strictest("allow", None) == "allow"


@pytest.mark.parametrize("kind", get_args(RequestKind))
def test_only_a_question_cannot_be_allowed(kind: RequestKind) -> None:
    changed = {policy for policy in STRICTNESS if policy_for(kind, policy) != policy}
    assert changed == ({"allow"} if kind == "input_request" else set())

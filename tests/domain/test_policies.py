"""Approval policies: their order, and which of several applies."""

from itertools import product
from typing import get_args

import pytest

from agent_orchestrator.domain.approvals import STRICTNESS, is_looser, policy_for, strictest
from agent_orchestrator.domain.model import Approvals, RequestKind


def test_every_approval_policy_has_a_strictness() -> None:
    assert sorted(STRICTNESS) == sorted(get_args(Approvals))


@pytest.mark.parametrize(("one", "other"), [*product(STRICTNESS, STRICTNESS)])
def test_strictest_returns_the_stricter_of_two_policies(one: Approvals, other: Approvals) -> None:
    found = strictest(one, None, other)
    assert found in (one, other)
    assert not is_looser(found, one)
    assert not is_looser(found, other)
    assert strictest(other, one) == found
    assert not (is_looser(one, other) and is_looser(other, one))


def test_default_approval_policy_is_ask_parent() -> None:
    assert strictest() == strictest(None, None) == "ask-parent"
    assert strictest("allow", None) == "allow"


@pytest.mark.parametrize("kind", get_args(RequestKind))
def test_policy_allow_does_not_apply_to_input_requests(kind: RequestKind) -> None:
    changed = {policy for policy in STRICTNESS if policy_for(kind, policy) != policy}
    assert changed == ({"allow"} if kind == "input_request" else set())

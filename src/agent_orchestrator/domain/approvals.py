"""Approval policies: who decides the requests of agents.

``allow``
    Approve at once.
``ask-parent``
    Ask the agent of the parent session, and people once that agent has ended or does not answer in time.
``ask-human``
    Ask people; no agent may decide.
``deny``
    Deny at once.

An ``input_request`` needs an answer in words, which ``allow`` cannot give: it goes to the parent instead.
"""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Approvals, Decision, RequestKind, RequestStatus

STRICTNESS: Final[tuple[Approvals, ...]] = ("allow", "ask-parent", "ask-human", "deny")
"""The policies from the loosest to the strictest."""

DEFAULT: Final[Approvals] = "ask-parent"


@frozen
class Resolution:
    """The result of a decision about a request.

    :param needs_text: whether the decision must come with a text.
    """

    status: RequestStatus
    needs_text: bool = False


_APPROVED: Final = Resolution("approved")
_DENIED: Final = Resolution("denied")
_ANSWERED: Final = Resolution("answered", needs_text=True)

RESOLUTIONS: Final[Mapping[tuple[RequestKind, Decision], Resolution]] = {
    ("approval_request", "approve"): _APPROVED,
    ("approval_request", "deny"): _DENIED,
    ("approval_request", "answer"): _ANSWERED,
    ("permission_request", "approve"): _APPROVED,
    ("permission_request", "deny"): _DENIED,
    ("permission_request", "answer"): _ANSWERED,
    # A bare yes does not answer "which port?".
    ("input_request", "approve"): Resolution("approved", needs_text=True),
    ("input_request", "deny"): _DENIED,
    ("input_request", "answer"): _ANSWERED,
}


def strictest(*policies: Approvals | None) -> Approvals:
    """Return the strictest of the policies, or the default if all are None."""
    present = [policy for policy in policies if policy is not None]
    return max(present, key=STRICTNESS.index, default=DEFAULT)


def is_looser(policy: Approvals, than: Approvals) -> bool:
    """Return True if a policy is less strict than another."""
    return STRICTNESS.index(policy) < STRICTNESS.index(than)


def policy_for(kind: RequestKind, policy: Approvals) -> Approvals:
    """Return the policy that applies to a kind of request."""
    return DEFAULT if kind == "input_request" and policy == "allow" else policy

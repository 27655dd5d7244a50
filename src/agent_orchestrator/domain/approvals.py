"""Who decides what agents ask for: the policies, and how several of them make one.

``allow``
    It is approved at once.
``ask-parent``
    The agent of the parent session, and people once that one has ended or does not answer in time.
``ask-human``
    People; an agent may not decide it.
``deny``
    It is denied at once.

A question (``input_request``) asks for knowledge, not for leave: nobody can allow it, so that
``allow`` puts it to the parent like any other.
"""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Approvals, Decision, RequestKind, RequestStatus

STRICTNESS: Final[tuple[Approvals, ...]] = ("allow", "ask-parent", "ask-human", "deny")
"""The policies, the loosest first: whoever comes later lets an agent do less on its own."""

DEFAULT: Final[Approvals] = "ask-parent"


@frozen
class Resolution:
    """What a decision makes of a request.

    :param needs_text: whether it says nothing without words.
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
    # A bare yes is no answer to "which port?".
    ("input_request", "approve"): Resolution("approved", needs_text=True),
    ("input_request", "deny"): _DENIED,
    ("input_request", "answer"): _ANSWERED,
}


def strictest(*given: Approvals | None) -> Approvals:
    """Return the strictest of the policies that are set; the default where none is."""
    policies = [policy for policy in given if policy is not None]
    return max(policies, key=STRICTNESS.index, default=DEFAULT)


def is_looser(policy: Approvals, than: Approvals) -> bool:
    """Tell whether a policy lets an agent do what the other does not."""
    return STRICTNESS.index(policy) < STRICTNESS.index(than)


def policy_for(kind: RequestKind, policy: Approvals) -> Approvals:
    """Return the policy for one kind of request."""
    return DEFAULT if kind == "input_request" and policy == "allow" else policy

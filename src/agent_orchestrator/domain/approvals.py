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

from typing import Final

from agent_orchestrator.domain.model import Approvals, RequestKind

STRICTNESS: Final[tuple[Approvals, ...]] = ("allow", "ask-parent", "ask-human", "deny")
"""The policies, the loosest first: whoever comes later lets an agent do less on its own."""

DEFAULT: Final[Approvals] = "ask-parent"


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

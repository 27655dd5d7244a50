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

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve, frozen

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.model import (
    Approvals,
    Decision,
    Option,
    OptionKind,
    Request,
    RequestKind,
    RequestStatus,
)

STRICTNESS: Final[tuple[Approvals, ...]] = ("allow", "ask-parent", "ask-human", "deny")
"""The policies from the loosest to the strictest."""

DEFAULT: Final[Approvals] = "ask-parent"


@frozen
class Resolution:
    """The result of a decision about a request.

    :param status: the status of the request after the decision.
    :param needs_text: whether the decision must come with a text.
    """

    status: RequestStatus
    needs_text: bool = False


_APPROVED: Final = Resolution("approved")
_DENIED: Final = Resolution("denied")
_ANSWERED: Final = Resolution("answered", needs_text=True)

RESOLUTIONS: Final[Mapping[tuple[RequestKind, str], Resolution]] = {
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

DECISIONS: Final[Mapping[OptionKind, Decision]] = {
    "allow_once": "approve",
    "allow_session": "approve",
    "allow_always": "approve",
    "deny": "deny",
    "deny_and_stop": "deny",
    "answer": "answer",
}
"""The decision that an option is, by its kind."""

SESSION_SCOPE: Final = "session"
"""The ``scope`` of an approval that also covers similar requests of the session."""

_SCOPES: Final[Mapping[OptionKind, str]] = {"allow_once": "once", "allow_session": SESSION_SCOPE}


def problem_of_options(options: Sequence[Option]) -> dict[str, str]:
    """Return the problems of the options that a request is to offer, by field; empty if there are none.

    A name that two options share could make a person choose another option than the one that was meant.
    """
    names: dict[str, Option] = {}
    for index, option in enumerate(options):
        for field in ("id", "label"):
            if names.setdefault(getattr(option, field), option) != option:
                return {f"options[{index}].{field}": "is the id or label of another option"}
    return {}


def decide(
    request: Request,
    decision: Decision | None = None,
    *,
    option: str | None = None,
    scope: str | None = None,
    text: str | None = None,
) -> Request:
    """Return a request with a decision and the option that it means.

    Without ``option`` the decision means the option of its kind, if the request has one: an approval
    ``allow_once``, or ``allow_session`` with that scope; a denial ``deny``; an answer the option that its
    text names.

    :param option: the id or label of an option.
    :raises InvalidRequest: if there is no such option, it is not that decision, or a text is missing.
    """
    options = request.options or ()
    chosen: Option | None = None
    if option is not None:
        chosen = _checked(options, decision, option, scope)
    elif decision is not None:
        chosen = _meant(options, decision, scope, text)
    if chosen is not None:
        words = None if option is None and decision == "answer" else text
        if chosen.kind == "answer" and not (words or "").strip():
            words = chosen.label
        return evolve(
            request,
            decision=DECISIONS[chosen.kind],
            option=chosen.id,
            scope=_SCOPES.get(chosen.kind),
            answer=words,
        )
    if decision is None:
        raise InvalidRequest.of({"decision": "is required, unless an option is given"})
    if RESOLUTIONS[request.kind, decision].needs_text and not (text or "").strip():
        raise InvalidRequest.of({"text": f"is required to {decision} an {request.kind}"})
    return evolve(request, decision=decision, option=None, scope=scope, answer=text)


def _meant(
    options: Sequence[Option], decision: Decision, scope: str | None, text: str | None
) -> Option | None:
    """Return the option that a decision means without naming it."""
    if decision == "answer":  # clients of earlier versions name the option in the text
        return _named(options, (text or "").strip())
    kinds: tuple[OptionKind, ...] = ("deny",)
    if decision == "approve":
        # If the request cannot be approved for the session, it is approved once.
        kinds = ("allow_session", "allow_once") if scope == SESSION_SCOPE else ("allow_once",)
    return next((one for kind in kinds for one in options if one.kind == kind), None)


def _checked(
    options: Sequence[Option], decision: Decision | None, option: str, scope: str | None
) -> Option:
    """Return the option with an id or label.

    :raises InvalidRequest: if there is none, or it contradicts the decision or the scope.
    """
    if (chosen := _named(options, option)) is None:
        names = ", ".join(one.id[:100] for one in options)
        problem = f"must be one of {names}" if options else "is not possible: the request has none"
        raise InvalidRequest.of({"option": problem})
    expected = DECISIONS[chosen.kind]
    if decision not in (None, expected):
        raise InvalidRequest.of({"decision": f"must be {expected} for the option {chosen.id}"})
    if scope not in (None, _SCOPES.get(chosen.kind)):
        raise InvalidRequest.of({"scope": f"contradicts the option {chosen.id}"})
    return chosen


def _named(options: Sequence[Option], name: str) -> Option | None:
    return next((one for one in options if name in (one.id, one.label)), None)


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

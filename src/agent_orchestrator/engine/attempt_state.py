"""The states of an attempt that this process executes, as tables: pure, without input or output.

An attempt has two things that change. Its *course* leads from working to its recorded end, past the
reason for which its agent is stopped, if it is. Its *blocker* is what its agent waits for.

:func:`advance` and :func:`block` look up what follows. What is not in the tables cannot happen, and raises.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Course(Enum):
    WORKING = "working"
    PARKING = "parking"
    """Its agent is being stopped, and the run goes on waiting without it."""
    RELEASING = "releasing"
    """Its agent is being stopped, and the run goes back to the queue."""
    FAILING = "failing"
    CANCELING = "canceling"
    ENDED = "ended"
    """Its end is recorded."""


class Order(Enum):
    """What happens to an attempt as a whole."""

    PARK = "park"
    RELEASE = "release"
    FAIL = "fail"
    CANCEL = "cancel"
    END = "end"


COURSES: Final[Mapping[tuple[Course, Order], Course]] = {
    (Course.WORKING, Order.PARK): Course.PARKING,
    (Course.WORKING, Order.RELEASE): Course.RELEASING,
    (Course.WORKING, Order.FAIL): Course.FAILING,
    (Course.WORKING, Order.CANCEL): Course.CANCELING,
    (Course.WORKING, Order.END): Course.ENDED,
    (Course.PARKING, Order.PARK): Course.PARKING,
    (Course.PARKING, Order.RELEASE): Course.RELEASING,
    (Course.PARKING, Order.FAIL): Course.FAILING,
    (Course.PARKING, Order.CANCEL): Course.CANCELING,
    (Course.PARKING, Order.END): Course.ENDED,
    (Course.RELEASING, Order.PARK): Course.RELEASING,
    (Course.RELEASING, Order.RELEASE): Course.RELEASING,
    (Course.RELEASING, Order.FAIL): Course.FAILING,
    (Course.RELEASING, Order.CANCEL): Course.CANCELING,
    (Course.RELEASING, Order.END): Course.ENDED,
    # A failure ends the run: it is not given back to the queue any more.
    (Course.FAILING, Order.PARK): Course.FAILING,
    (Course.FAILING, Order.RELEASE): Course.FAILING,
    (Course.FAILING, Order.FAIL): Course.FAILING,
    (Course.FAILING, Order.CANCEL): Course.CANCELING,
    (Course.FAILING, Order.END): Course.ENDED,
    # A cancel was asked for by somebody: nothing else counts beside it.
    (Course.CANCELING, Order.PARK): Course.CANCELING,
    (Course.CANCELING, Order.RELEASE): Course.CANCELING,
    (Course.CANCELING, Order.FAIL): Course.CANCELING,
    (Course.CANCELING, Order.CANCEL): Course.CANCELING,
    (Course.CANCELING, Order.END): Course.ENDED,
    # The pool may stop all of its attempts while one of them is just leaving.
    (Course.ENDED, Order.PARK): Course.ENDED,
    (Course.ENDED, Order.RELEASE): Course.ENDED,
    (Course.ENDED, Order.FAIL): Course.ENDED,
    (Course.ENDED, Order.CANCEL): Course.ENDED,
}


class Blocker(Enum):
    NOTHING = "nothing"
    ANSWER = "answer"
    """The answer to a question that its run cannot go on without."""
    CALL = "call"
    """A call of its agent that waits: for another run, or for a question it asked without waiting."""
    BOTH = "both"


class Wait(Enum):
    """What happens to the things that an agent waits for."""

    ASKED = "asked"
    ANSWERED = "answered"
    CALL_BEGUN = "call begun"
    """The first of its calls waits."""
    CALLS_OVER = "calls over"
    """None of its calls waits any more."""


BLOCKERS: Final[Mapping[tuple[Blocker, Wait], Blocker]] = {
    (Blocker.NOTHING, Wait.ASKED): Blocker.ANSWER,
    (Blocker.NOTHING, Wait.CALL_BEGUN): Blocker.CALL,
    (Blocker.ANSWER, Wait.ANSWERED): Blocker.NOTHING,
    (Blocker.ANSWER, Wait.CALL_BEGUN): Blocker.BOTH,
    (Blocker.CALL, Wait.ASKED): Blocker.BOTH,
    (Blocker.CALL, Wait.CALLS_OVER): Blocker.NOTHING,
    (Blocker.BOTH, Wait.ANSWERED): Blocker.CALL,
    (Blocker.BOTH, Wait.CALLS_OVER): Blocker.ANSWER,
}


class ImpossibleStep(Exception):
    """An attempt in this state cannot take this event: a fault of the engine."""


def advance(course: Course, order: Order) -> Course:
    """Return the course that follows.

    :raises ImpossibleStep: if an attempt on this course cannot take the order.
    """
    after = COURSES.get((course, order))
    if after is None:
        raise ImpossibleStep(f"{order} while the attempt is {course}")
    return after


def block(blocker: Blocker, wait: Wait) -> Blocker:
    """Return what an agent waits for afterwards.

    :raises ImpossibleStep: if an agent that waits for this cannot take the event.
    """
    after = BLOCKERS.get((blocker, wait))
    if after is None:
        raise ImpossibleStep(f"{wait} while the agent waits for {blocker}")
    return after

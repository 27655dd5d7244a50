"""The course of an attempt that this process executes, as a table without input or output.

The course leads from working to the recorded end, by way of the reason for which the agent is stopped, if it is.
:func:`advance` looks up the next course. A step that is not in the table cannot happen, and raises.
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

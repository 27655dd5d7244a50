"""The states of an attempt in this process, from working to its recorded end, as a table.

:func:`advance` looks up the next state. It raises for a step that is not in the table.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class Course(Enum):
    WORKING = "working"
    PARKING = "parking"
    """Its agent is being stopped; the run stays ``waiting`` without an agent."""
    RELEASING = "releasing"
    """Its agent is being stopped; the run goes back to the queue."""
    FAILING = "failing"
    CANCELING = "canceling"
    ENDED = "ended"
    """Its end is recorded."""


class Order(Enum):
    """An event that changes the course of an attempt."""

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
    # A failure ends the run: it cannot go back to the queue.
    (Course.FAILING, Order.PARK): Course.FAILING,
    (Course.FAILING, Order.RELEASE): Course.FAILING,
    (Course.FAILING, Order.FAIL): Course.FAILING,
    (Course.FAILING, Order.CANCEL): Course.CANCELING,
    (Course.FAILING, Order.END): Course.ENDED,
    # A requested cancel overrides everything else.
    (Course.CANCELING, Order.PARK): Course.CANCELING,
    (Course.CANCELING, Order.RELEASE): Course.CANCELING,
    (Course.CANCELING, Order.FAIL): Course.CANCELING,
    (Course.CANCELING, Order.CANCEL): Course.CANCELING,
    (Course.CANCELING, Order.END): Course.ENDED,
    # The pool may stop all its attempts while one of them has just ended.
    (Course.ENDED, Order.PARK): Course.ENDED,
    (Course.ENDED, Order.RELEASE): Course.ENDED,
    (Course.ENDED, Order.FAIL): Course.ENDED,
    (Course.ENDED, Order.CANCEL): Course.ENDED,
}


class ImpossibleStep(Exception):
    """The table has no such step: a bug of the engine."""


def advance(course: Course, order: Order) -> Course:
    """Return the course after an order.

    :raises ImpossibleStep: if the table has no such step.
    """
    after = COURSES.get((course, order))
    if after is None:
        raise ImpossibleStep(f"{order} while the attempt is {course}")
    return after

"""The course of a running attempt: every state with every order, and what blocks it."""

from datetime import UTC, datetime
from itertools import product

import anyio
import anyio.lowlevel
import pytest

from agent_orchestrator.domain.lifecycle import Signal
from agent_orchestrator.domain.model import RunError
from agent_orchestrator.engine.attempt_state import (
    COURSES,
    Course,
    ImpossibleStep,
    Order,
    advance,
)
from agent_orchestrator.engine.running_attempt import Assignment, RunningAttempt

NOW = datetime(2026, 1, 1, tzinfo=UTC)

RANK = {Course.WORKING: 0, Course.PARKING: 1, Course.RELEASING: 2, Course.FAILING: 3}
RANK |= {Course.CANCELING: 4, Course.ENDED: 5}
LEADS_TO = {
    Order.PARK: Course.PARKING,
    Order.RELEASE: Course.RELEASING,
    Order.FAIL: Course.FAILING,
    Order.CANCEL: Course.CANCELING,
    Order.END: Course.ENDED,
}


@pytest.mark.parametrize(("course", "order"), list(product(Course, Order)))
def test_the_strongest_order_decides_the_course(course: Course, order: Order) -> None:
    if (course, order) == (Course.ENDED, Order.END):
        with pytest.raises(ImpossibleStep):
            advance(course, order)
        return
    after = advance(course, order)
    assert after is max(course, LEADS_TO[order], key=RANK.__getitem__)


def test_transition_table_has_no_other_entries() -> None:
    assert set(COURSES) == set(product(Course, Order)) - {(Course.ENDED, Order.END)}


def attempt() -> RunningAttempt:
    # Only the state matters: no test here reads the assignment.
    return RunningAttempt(Assignment(None, None, (), None))  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_attempt_end_has_the_first_reason_of_the_strongest_course() -> None:
    one = attempt()
    one.park(NOW)
    one.release("first", NOW)
    one.release("second", NOW)
    assert one.attempt_end is not None
    assert (one.attempt_end.signal, one.attempt_end.reason) == (Signal.RELEASE, "first")
    one.fail(RunError("timeout", "it took too long"))
    one.park(NOW)
    assert one.attempt_end is not None
    assert one.attempt_end.signal is Signal.FAIL
    one.cancel()
    one.fail(RunError("timeout", "it took too long"))
    assert one.attempt_end is not None
    assert one.attempt_end.signal is Signal.CANCEL
    assert one.scope.cancel_called


@pytest.mark.anyio
async def test_attempt_is_blocked_until_its_request_and_all_calls_end() -> None:
    one = attempt()
    assert one.set_request("req_1")
    assert not one.set_request("req_1")
    assert not one.set_request("req_2")  # blocked before, and after
    one.begin_call()
    one.begin_call()
    assert not one.set_request(None)
    one.end_call()
    assert one.is_blocked
    assert one.blocked.since is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.blocked.wait_over)
        await anyio.lowlevel.checkpoint()
        one.end_call()
    assert not one.is_blocked
    assert one.blocked.since is None
    assert one.blocked.total_s >= 0

"""The states of a run and the steps between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_orchestrator.domain.errors import InvalidTransition
from agent_orchestrator.domain.lifecycle import (
    ACTIVE,
    STEPS,
    TERMINAL,
    RunStatus,
    Signal,
    is_terminal,
    signal_between,
    step,
)


@pytest.mark.parametrize("signal", Signal)
@pytest.mark.parametrize("status", RunStatus)
def test_every_status_and_signal_is_a_step_or_is_refused(status: RunStatus, signal: Signal) -> None:
    if (status, signal) in STEPS:
        assert step(status, signal) is STEPS[status, signal]
        assert signal_between(status, STEPS[status, signal]) is signal
    else:
        with pytest.raises(InvalidTransition):
            step(status, signal)


def test_terminal_states_are_completed_failed_and_canceled() -> None:
    assert {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELED} == TERMINAL
    assert not TERMINAL & ACTIVE
    assert all(is_terminal(status) == (status in TERMINAL) for status in RunStatus)


@given(st.lists(st.sampled_from(list(Signal)), max_size=40))
def test_no_signal_leaves_a_terminal_state(signals: list[Signal]) -> None:
    status = RunStatus.QUEUED
    for signal in signals:
        before = status
        try:
            status = step(status, signal)
        except InvalidTransition:
            status = before
        if is_terminal(before):
            assert status is before


@pytest.mark.parametrize("after", RunStatus)
@pytest.mark.parametrize("before", RunStatus)
def test_no_step_keeps_the_same_status(before: RunStatus, after: RunStatus) -> None:
    if before is after:
        with pytest.raises(InvalidTransition):
            signal_between(before, after)

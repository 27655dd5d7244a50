"""The lifecycle of a run: states, signals, and the table of steps between states.

A run is ``queued``, then ``running``, perhaps ``waiting`` while its question is open, and ends as
``completed``, ``failed`` or ``canceled``. A run that is released (by a drain or a lost worker) goes
back to the queue with a higher attempt number, so that writes of the older attempt are refused.

States change only by signals: :func:`step` looks up the next state.
"""

from enum import StrEnum
from typing import Final

from agent_orchestrator.domain.errors import InvalidTransition


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


class Signal(StrEnum):
    START = "start"
    """A worker, or the client of a manual run, starts the run."""
    WAIT = "wait"
    """The agent asked a question and waits for the answer."""
    RESUME = "resume"
    """The question was resolved."""
    RELEASE = "release"
    """The run goes back to the queue for its next attempt."""
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"


STEPS: Final[dict[tuple[RunStatus, Signal], RunStatus]] = {
    (RunStatus.QUEUED, Signal.START): RunStatus.RUNNING,
    (RunStatus.QUEUED, Signal.CANCEL): RunStatus.CANCELED,
    (RunStatus.RUNNING, Signal.WAIT): RunStatus.WAITING,
    (RunStatus.RUNNING, Signal.RELEASE): RunStatus.QUEUED,
    (RunStatus.RUNNING, Signal.COMPLETE): RunStatus.COMPLETED,
    (RunStatus.RUNNING, Signal.FAIL): RunStatus.FAILED,
    (RunStatus.RUNNING, Signal.CANCEL): RunStatus.CANCELED,
    (RunStatus.WAITING, Signal.RESUME): RunStatus.RUNNING,
    (RunStatus.WAITING, Signal.RELEASE): RunStatus.QUEUED,
    (RunStatus.WAITING, Signal.FAIL): RunStatus.FAILED,
    (RunStatus.WAITING, Signal.CANCEL): RunStatus.CANCELED,
}

_SIGNALS: Final = {(before, after): signal for (before, signal), after in STEPS.items()}

TERMINAL: Final = frozenset(RunStatus) - {before for before, _ in STEPS}
"""The states without a next state."""

ACTIVE: Final = frozenset({RunStatus.RUNNING, RunStatus.WAITING})
"""The states that occupy a session: at most one of its runs is active."""


def is_terminal(status: RunStatus) -> bool:
    """Return True if a run in this state has ended."""
    return status in TERMINAL


def step(status: RunStatus, signal: Signal) -> RunStatus:
    """Return the state after a signal.

    :raises InvalidTransition: if a run in ``status`` cannot take ``signal``.
    """
    try:
        return STEPS[status, signal]
    except KeyError:
        raise InvalidTransition(
            f"a run that is {status} cannot {signal}", {"status": status, "signal": signal}
        ) from None


def signal_between(before: RunStatus, after: RunStatus) -> Signal:
    """Return the signal that leads from one state to another.

    :raises InvalidTransition: if no step does.
    """
    try:
        return _SIGNALS[before, after]
    except KeyError:
        raise InvalidTransition(
            f"a run that is {before} cannot become {after}", {"from": before, "to": after}
        ) from None

"""The life of a run: states, signals and the one table of steps between them.

A run waits its turn (``queued``), is executed (``running``), may stand still while a question it
asked is open (``waiting``), and ends once: ``completed``, ``failed`` or ``canceled``. A run that is
released (a drain, a lost worker) goes back to the queue, which raises its attempt number, so that
nothing an older attempt still writes is taken.

Nobody sets a state. A signal says what happened, and :func:`step` looks up what follows.
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
    """A worker (or, for a manual run, its holder) takes the run."""
    WAIT = "wait"
    """The agent asked something it cannot go on without."""
    RESUME = "resume"
    """The question was resolved."""
    RELEASE = "release"
    """The worker gives the run back; the next attempt starts from the queue."""
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
"""The states no step leaves."""

ACTIVE: Final = frozenset({RunStatus.RUNNING, RunStatus.WAITING})
"""The states that occupy a session: at most one of its runs is in one of them."""


def is_terminal(status: RunStatus) -> bool:
    """Tell whether a run in this state has ended for good."""
    return status in TERMINAL


def step(status: RunStatus, signal: Signal) -> RunStatus:
    """Return the state that follows.

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

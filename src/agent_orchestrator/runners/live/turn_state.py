"""The states of a run in an agent, as tables and pure functions.

A run has two states. Its *turn* is the work of the agent. A message that the agent did not accept while it
worked becomes a further turn of the same run. Its *prompt* decides when to record events. They are
held back until the agent has the prompt, so that the first ones are written in one commit.

:func:`step` looks up the next state. A combination that is not in the tables cannot happen, and
raises.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from attrs import frozen


class Turn(Enum):
    NONE = "none"
    """No turn was started yet."""
    STARTING = "starting"
    """The agent was asked to start a turn and has not answered."""
    RUNNING = "running"
    CANCELING = "canceling"
    """An approval was answered with cancel: the agent will interrupt the turn."""
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """It ended with neither a result nor an error."""
    DENIED = "denied"
    """It was interrupted because an approval was answered with cancel."""
    REFUSED = "refused"
    """The agent refused to start it."""
    LOST = "lost"
    """The process of the agent has ended."""
    STOPPED = "stopped"
    """The run does not wait for it any more."""


class Prompt(Enum):
    PENDING = "pending"
    """The agent has not confirmed that it has the prompt. Events are held back."""
    OVERDUE = "overdue"
    """As ``PENDING``, but the process was recorded already, because this took too long."""
    TAKEN = "taken"
    """The agent has the prompt, and this is being recorded. Events are held back."""
    RECORDED = "recorded"
    """It is recorded. Events are recorded when they arrive."""
    NOT_TAKEN = "not taken"
    """The turn ended, and the agent never confirmed that it has the prompt."""


class Event(Enum):
    START = "start"
    """A turn is requested."""
    ACCEPTED = "accepted"
    """The agent has started the turn, and said which one it is."""
    REFUSED = "refused"
    DELAYED = "delayed"
    """The prompt was not confirmed in time."""
    CONFIRMED = "confirmed"
    """The agent has written the prompt into its own record."""
    RECORDED = "recorded"
    """All that was held back is recorded."""
    CANCEL_ANSWERED = "cancel answered"
    """An approval was answered with cancel."""
    COMPLETED = "completed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    UNCONFIRMED = "unconfirmed"
    """The turn is over without a result, and the agent did not confirm the prompt."""
    LOST = "lost"
    """The process of the agent has ended."""
    STOP = "stop"


class Action(Enum):
    RECORD_PROCESS = "record process"
    """Record which process does the work."""
    RECORD_PROMPT = "record prompt"
    """Record that the agent has the prompt, then the events that were held back."""
    RELEASE_EVENTS = "release events"
    """Record the events that were held back."""


_AT_WORK: Final = (Turn.RUNNING, Turn.CANCELING)


@frozen
class State:
    """The states of a run's turn and of its prompt."""

    turn: Turn = Turn.NONE
    prompt: Prompt = Prompt.PENDING

    @property
    def has_prompt(self) -> bool:
        """Whether the agent has the prompt."""
        return self.prompt in (Prompt.TAKEN, Prompt.RECORDED)

    @property
    def holds_events(self) -> bool:
        """Whether events are held back."""
        return self.prompt in (Prompt.PENDING, Prompt.OVERDUE, Prompt.TAKEN)

    @property
    def is_running(self) -> bool:
        """Whether the agent has started a turn and not ended it."""
        return self.turn in _AT_WORK

    @property
    def is_working(self) -> bool:
        """Whether the agent may be working on a turn: it was asked to, and has not ended it."""
        return self.turn in (Turn.STARTING, Turn.RUNNING, Turn.CANCELING)


class ImpossibleStep(Exception):
    """The event is impossible in this state: the driver has an error."""


TURN_STEPS: Final[Mapping[tuple[Turn, Event], Turn]] = {
    (Turn.NONE, Event.START): Turn.STARTING,
    (Turn.COMPLETED, Event.START): Turn.STARTING,
    (Turn.STARTING, Event.ACCEPTED): Turn.RUNNING,
    (Turn.STARTING, Event.REFUSED): Turn.REFUSED,
    **{(turn, Event.CANCEL_ANSWERED): Turn.CANCELING for turn in _AT_WORK},
    **{(turn, Event.COMPLETED): Turn.COMPLETED for turn in _AT_WORK},
    **{(turn, Event.FAILED): Turn.FAILED for turn in _AT_WORK},
    (Turn.RUNNING, Event.INTERRUPTED): Turn.INTERRUPTED,
    (Turn.CANCELING, Event.INTERRUPTED): Turn.DENIED,
    **{(turn, Event.LOST): Turn.LOST for turn in (Turn.STARTING, *_AT_WORK)},
    **{(turn, Event.STOP): Turn.STOPPED for turn in Turn if turn is not Turn.STOPPED},
    # An answer to a question may arrive after the end of its turn.
    **{
        (turn, Event.CANCEL_ANSWERED): turn
        for turn in (Turn.COMPLETED, Turn.FAILED, Turn.INTERRUPTED, Turn.DENIED, Turn.LOST)
    },
}
"""The next state of the turn for each event of a turn. Other events do not change it."""

PROMPT_STEPS: Final[Mapping[tuple[Prompt, Event], tuple[Prompt, tuple[Action, ...]]]] = {
    (Prompt.PENDING, Event.DELAYED): (Prompt.OVERDUE, (Action.RECORD_PROCESS,)),
    (Prompt.PENDING, Event.CONFIRMED): (
        Prompt.TAKEN,
        (Action.RECORD_PROCESS, Action.RECORD_PROMPT),
    ),
    (Prompt.OVERDUE, Event.CONFIRMED): (Prompt.TAKEN, (Action.RECORD_PROMPT,)),
    (Prompt.TAKEN, Event.RECORDED): (Prompt.RECORDED, ()),
    (Prompt.PENDING, Event.UNCONFIRMED): (Prompt.NOT_TAKEN, (Action.RELEASE_EVENTS,)),
    (Prompt.OVERDUE, Event.UNCONFIRMED): (Prompt.NOT_TAKEN, (Action.RELEASE_EVENTS,)),
}
"""The next state of the prompt for each event, with the actions. Other events do not change it."""

_TURN_EVENTS: Final = frozenset(event for _, event in TURN_STEPS)
_UNCONFIRMED_TURNS: Final = frozenset({Turn.FAILED, Turn.INTERRUPTED, Turn.DENIED})


def step(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """Return the next state and the actions.

    The end of a turn confirms that the agent had its prompt.

    :raises ImpossibleStep: if the event is impossible in this state.
    """
    if event in _TURN_EVENTS:
        turn = TURN_STEPS.get((state.turn, event))
        if turn is None:
            raise ImpossibleStep(f"{event} while the turn is {state.turn}")
        after = State(turn, state.prompt)
        if event is Event.COMPLETED and not state.has_prompt:
            return step(after, Event.CONFIRMED)
        return after, ()
    if event is Event.CONFIRMED and not _may_confirm(state.turn):
        raise ImpossibleStep(f"{event} while the turn is {state.turn}")
    if event is Event.UNCONFIRMED and state.turn not in _UNCONFIRMED_TURNS:
        raise ImpossibleStep(f"{event} while the turn is {state.turn}")
    found = PROMPT_STEPS.get((state.prompt, event))
    if found is None:
        raise ImpossibleStep(f"{event} while the prompt is {state.prompt}")
    prompt, actions = found
    return State(state.turn, prompt), actions


def _may_confirm(turn: Turn) -> bool:
    return turn in _AT_WORK or turn is Turn.COMPLETED

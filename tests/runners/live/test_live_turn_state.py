"""The table of a turn's states: every state with every event, and the walks that a run takes."""

from itertools import product

import pytest

from agent_orchestrator.runners.live.turn_state import (
    PROMPT_STEPS,
    TURN_STEPS,
    Action,
    Event,
    ImpossibleStep,
    Prompt,
    State,
    Turn,
    step,
)

STATES = [State(turn, prompt) for turn, prompt in product(Turn, Prompt)]
RUNNING = (Turn.RUNNING, Turn.CANCELING)
OVER = (Turn.COMPLETED, Turn.FAILED, Turn.INTERRUPTED, Turn.DENIED, Turn.LOST)
PENDING = (Prompt.PENDING, Prompt.OVERDUE)

# In which turns each event can come, and in which prompts: written down apart from the table.
POSSIBLE = {
    Event.START: ((Turn.NONE, Turn.COMPLETED), tuple(Prompt)),
    Event.ACCEPTED: ((Turn.STARTING,), tuple(Prompt)),
    Event.REFUSED: ((Turn.STARTING,), tuple(Prompt)),
    Event.DELAYED: (tuple(Turn), (Prompt.PENDING,)),
    Event.CONFIRMED: ((*RUNNING, Turn.COMPLETED), PENDING),
    Event.RECORDED: (tuple(Turn), (Prompt.TAKEN,)),
    Event.CANCEL_ANSWERED: ((*RUNNING, *OVER), tuple(Prompt)),
    Event.FAILED: (RUNNING, tuple(Prompt)),
    Event.INTERRUPTED: (RUNNING, tuple(Prompt)),
    Event.UNCONFIRMED: ((Turn.FAILED, Turn.INTERRUPTED, Turn.DENIED), PENDING),
    Event.LOST: ((Turn.STARTING, *RUNNING), tuple(Prompt)),
    Event.STOP: (tuple(turn for turn in Turn if turn is not Turn.STOPPED), tuple(Prompt)),
    # A turn completes only with a prompt that the agent has, or confirms with it.
    Event.COMPLETED: (
        RUNNING,
        tuple(prompt for prompt in Prompt if prompt is not Prompt.NOT_TAKEN),
    ),
}


@pytest.mark.parametrize("event", Event)
def test_every_state_accepts_an_event_or_raises(event: Event) -> None:
    turns, prompts = POSSIBLE[event]
    for state in STATES:
        if state.turn in turns and state.prompt in prompts:
            after, actions = step(state, event)
            assert isinstance(after, State)
            assert len(set(actions)) == len(actions)
        else:
            with pytest.raises(ImpossibleStep):
                step(state, event)


def test_each_event_belongs_to_the_turn_or_to_the_prompt() -> None:
    of_turn = {event for _, event in TURN_STEPS}
    of_prompt = {event for _, event in PROMPT_STEPS}
    assert of_turn | of_prompt == set(Event)
    assert not of_turn & of_prompt


@pytest.mark.parametrize(
    "state", STATES, ids=lambda state: f"{state.turn.value}-{state.prompt.value}"
)
def test_held_events_are_released_once(state: State) -> None:
    for event in Event:
        try:
            after, actions = step(state, event)
        except ImpossibleStep:
            continue
        # The prompt never goes back to being unknown once it is recorded, or given up.
        if not state.holds_events:
            assert after.prompt is state.prompt
            assert actions == ()
        releases = {Action.RECORD_PROMPT, Action.RELEASE_EVENTS} & set(actions)
        assert bool(releases) == (state.prompt in PENDING and after.prompt not in PENDING)
        # A process is recorded when the prompt stops being pending for the first time.
        assert (Action.RECORD_PROCESS in actions) == (
            state.prompt is Prompt.PENDING and after.prompt in (Prompt.OVERDUE, Prompt.TAKEN)
        )


def walk(*events: Event) -> tuple[State, list[Action]]:
    state, done = State(), []
    for event in events:
        state, actions = step(state, event)
        done += actions
    return state, done


def test_every_state_of_a_turn_can_be_reached() -> None:
    reached, pending = {State()}, [State()]
    while pending:
        state = pending.pop()
        for event in Event:
            try:
                after, _ = step(state, event)
            except ImpossibleStep:
                continue
            if after not in reached:
                reached.add(after)
                pending.append(after)
    assert {state.turn for state in reached} == set(Turn)
    assert {state.prompt for state in reached} == set(Prompt)
    completed = {state for state in reached if state.turn is Turn.COMPLETED}
    assert all(state.has_prompt for state in completed)
    assert all(state.is_working == (state.turn in (*RUNNING, Turn.STARTING)) for state in reached)


def test_a_prompt_that_is_confirmed_late_is_recorded_once() -> None:
    begun = (Event.START, Event.ACCEPTED)
    state, done = walk(*begun, Event.DELAYED, Event.CONFIRMED, Event.RECORDED, Event.COMPLETED)
    assert state == State(Turn.COMPLETED, Prompt.RECORDED)
    assert done == [Action.RECORD_PROCESS, Action.RECORD_PROMPT]


def test_a_turn_that_completes_confirms_the_prompt() -> None:
    state, done = walk(Event.START, Event.ACCEPTED, Event.COMPLETED, Event.RECORDED, Event.START)
    assert state == State(Turn.STARTING, Prompt.RECORDED)
    assert done == [Action.RECORD_PROCESS, Action.RECORD_PROMPT]


def test_a_turn_without_a_prompt_releases_held_events() -> None:
    state, done = walk(Event.START, Event.ACCEPTED, Event.FAILED, Event.UNCONFIRMED)
    assert state == State(Turn.FAILED, Prompt.NOT_TAKEN)
    assert done == [Action.RELEASE_EVENTS]


@pytest.mark.parametrize(
    ("end", "turn"),
    [
        (Event.COMPLETED, Turn.COMPLETED),
        (Event.FAILED, Turn.FAILED),
        (Event.INTERRUPTED, Turn.DENIED),
        (Event.LOST, Turn.LOST),
    ],
)
def test_an_interruption_after_a_cancel_is_a_denial(end: Event, turn: Turn) -> None:
    state, _ = walk(Event.START, Event.ACCEPTED, Event.CONFIRMED, Event.CANCEL_ANSWERED, end)
    assert state.turn is turn

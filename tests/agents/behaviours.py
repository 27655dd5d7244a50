"""The behaviours that every agent is held to."""

from collections.abc import Callable
from itertools import product
from typing import Any, Final, TypeVar

import pytest
from adapters import AGENTS, Agent
from loops import ON_ONE_LOOP

BEHAVIOURS: Final = {
    "first_turn": "A message is answered, with the tokens it used",
    "usage": "A run reports the tokens of all calls of its model, and of no other run",
    "resume": "The conversation goes on, also after a restart",
    "prompts": "A prompt that begins with `/`, `-` or `@`, or has 900,000 characters, is text",
    "big_answer": "An answer of 5 MB arrives whole",
    "children": "Its tools start children and wait for them",
    "steer": "A message joins the turn that runs",
    "interrupt": "A message ends the turn that runs, and is the next",
    "cancel": "A cancel, and a message that interrupts, end a run that starts, waits for the model, answers, runs a command or asks; nothing of it is left alive",
    "daemon_killed": "After `kill -9` of the daemon in each of these states, or when the agent has just answered, nothing is left alive, and the run goes on after a restart",
    "agent_killed": "`kill -9` of the agent in each of these states fails the run, and the next message goes on in the conversation",
    "exclusive": "While a run works, the agent's own program is refused its conversation",
    "takeover": "A person takes a session over in the agent's own program (`agentctl attach`); what is done there is logged, and the next run knows it",
    "deltas": "Its answer is logged in pieces while it writes",
    "allow": "It asks before a command, and an approval counts once",
    "allow_session": "An approval for the session counts for later runs",
    "deny": "After a denial the agent goes on, and reads the words of the denial",
    "expiry": "What nobody decides in time is declined",
    "late": "An approval after a restart reaches the agent",
    "parent": "A parent agent decides what its child asks",
    "files": "Changes of files are logged",
    "diffs": "They have diffs",
    "errors": "What the model server refuses (400, 401, no credit) has its code, and the next message works",
    "retries": "So have 429, 500, overload, an answer that breaks off and a server that cannot be reached; each new try is logged",
    "context": "A conversation that is too long for the model has the code `context_exceeded`",
    "directory": "A directory that is gone is named; when it is back, the session goes on",
}
"""Each behaviour in words, by its name."""

CELLS: Final[dict[tuple[str, str], str]] = {}
"""The test of each behaviour of each agent."""

T = TypeVar("T", bound=Callable[..., Any])


def _mark(test: T, names: tuple[str, ...], agents: list[Agent]) -> T:
    for agent, name in product(agents, names):
        assert (agent.name, name) not in CELLS, f"{name} of {agent.name} has two tests"
        CELLS[agent.name, name] = test.__qualname__
    params = [pytest.param(agent, id=agent.name, marks=agent.mark) for agent in agents]
    marked = pytest.mark.parametrize("agent", params)(test)
    return pytest.mark.anyio(ON_ONE_LOOP(pytest.mark.timeout(300)(marked)))


def behaviour(*names: str) -> Callable[[T], T]:
    """Mark the test of some behaviours. It runs with all agents that have one of them.

    It also tests what happens instead with an agent that does not have all.
    """
    return lambda test: _mark(
        test, names, [one for one in AGENTS if set(names) - one.cannot.keys()]
    )


def instead(*names: str) -> Callable[[T], T]:
    """Mark the test of what happens with the agents that have none of these behaviours."""
    return lambda test: _mark(
        test, names, [one for one in AGENTS if one.cannot.keys() >= set(names)]
    )

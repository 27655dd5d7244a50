"""The behaviours that every agent is held to."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest
from adapters import AGENTS, Agent
from loops import ON_ONE_LOOP

BEHAVIOURS: Final = {
    "first_turn": "A message is answered, with the tokens it used",
    "resume": "The conversation goes on, also after a restart",
    "prompts": "A prompt that begins with `/`, `-` or `@`, or has 900,000 characters, is text",
    "big_answer": "An answer of 5 MB arrives whole",
    "children": "Its tools start children and wait for them",
    "steer": "A message joins the turn that runs",
}
"""Each behaviour in words, by its name."""

CELLS: Final[dict[tuple[str, str], str]] = {}
"""The test of each behaviour of each agent."""

T = TypeVar("T", bound=Callable[..., Any])


def _mark(test: T, name: str, agents: list[Agent]) -> T:
    for agent in agents:
        assert (agent.name, name) not in CELLS, f"{name} of {agent.name} has two tests"
        CELLS[agent.name, name] = test.__qualname__
    params = [pytest.param(agent, id=agent.name, marks=agent.mark) for agent in agents]
    marked = pytest.mark.parametrize("agent", params)(test)
    return pytest.mark.anyio(ON_ONE_LOOP(pytest.mark.timeout(300)(marked)))


def behaviour(name: str) -> Callable[[T], T]:
    """Mark the test of a behaviour. It runs with all agents that have it."""
    return lambda test: _mark(test, name, [one for one in AGENTS if name not in one.cannot])


def instead(name: str) -> Callable[[T], T]:
    """Mark the test of what happens with the agents that do not have a behaviour."""
    return lambda test: _mark(test, name, [one for one in AGENTS if name in one.cannot])

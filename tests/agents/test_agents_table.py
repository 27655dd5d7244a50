"""Each cell of the table in docs/providers.md has its test."""

from importlib import import_module
from itertools import product
from pathlib import Path

from adapters import AGENTS
from behaviours import BEHAVIOURS, CELLS


def test_each_behaviour_of_each_agent_has_a_test() -> None:
    for path in Path(__file__).parent.glob("test_agents_*.py"):
        import_module(path.stem)
    assert CELLS.keys() == set(product([agent.name for agent in AGENTS], BEHAVIOURS))


def test_each_listed_inability_of_an_agent_is_a_known_behaviour() -> None:
    assert {name for agent in AGENTS for name in agent.cannot} <= BEHAVIOURS.keys()

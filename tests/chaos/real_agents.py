"""The real agents with a process for each session, on scripted models, and what their models saw."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from benchmarks.bare_agents import REAL_AGENTS, RealAgent
from benchmarks.codex import NotMeasured
from tests.chaos.outcome import Outcome
from tests.chaos.traffic import Traffic

from agent_orchestrator import Client
from agent_orchestrator.domain.lifecycle import RunStatus

IDLE_S: Final = 5.0
"""Seconds that a process is kept without a run. Afterwards nothing of it may be alive."""

_TEXTS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "claude": attrgetter("texts"),
    "opencode": attrgetter("user_texts"),
}
"""What the user's side has sent in the conversation of a request to the model."""

_TAKES_AGAIN: Final = frozenset({"opencode"})
"""Agents whose prompts have no id: one that was sent, and not recorded before the kill, is sent again."""


@frozen
class Scripted:
    """An agent with its model."""

    agent: RealAgent
    model: Any = field(repr=False)

    def times(self, text: str) -> int:
        """Return how often a message is in the conversation that has it most often."""
        texts_of = _TEXTS[self.agent.name]
        found = [[one.strip("\n") for one in texts_of(one)] for one in self.model.requests]
        return max((texts.count(text) for texts in found), default=0)


def real_agent(name: str) -> RealAgent:
    """Return an agent.

    :raises NotMeasured: if it is not installed.
    """
    (agent,) = (one for one in REAL_AGENTS if one.name == name)
    agent.found()
    return agent


@contextmanager
def installed(directory: Path, outcome: Outcome) -> Iterator[tuple[str, list[Scripted]]]:
    """Have the agents that are installed. Give the configuration of their providers, and the agents."""
    config, found = "", list[Scripted]()
    with ExitStack() as stack:
        for agent in REAL_AGENTS:
            try:
                agent.found()
            except NotMeasured as reason:
                outcome.notes.append(str(reason))
                continue
            model = stack.enter_context(agent.server())
            config += provider(agent, directory, model)
            found.append(Scripted(agent, model))
        yield config, found


def provider(agent: RealAgent, directory: Path, model: Any) -> str:
    """Return the configuration of its provider."""
    home = directory / f"home-{agent.name}"
    return agent.provider(home, model.port, more=f"idle_s = {IDLE_S}")


async def check_conversations(
    client: Client, agents: list[Scripted], traffic: Traffic, outcome: Outcome
) -> None:
    """Compare the acknowledged messages with the conversations that the models saw."""
    for one in agents:
        for ack in traffic.acks.values():
            if ack.run_id is None:
                continue
            run = await client.get_run(ack.run_id)
            if run.provider != one.agent.name:
                continue
            times = one.times(ack.text)
            if run.status is RunStatus.COMPLETED and times == 0:
                outcome.fault("lost", f"{one.agent.name} was not given the message {ack.key}")
            if times > (run.attempt if one.agent.name in _TAKES_AGAIN else 1):
                outcome.fault("doubled", f"{one.agent.name} was given {ack.key} {times} times")

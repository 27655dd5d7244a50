"""One agentd with all agents, for all tests of a process."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from adapters import AGENTS, Agent
from cases import Case, World
from gateway import Daemon
from model_server import closed_port
from real_agents import found, required


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("agents")
    with ExitStack() as stack:
        models, variables = {}, {}
        settings = ["[routing]", "default = 'none'", "[providers.none]", "runner = 'demo'"]
        closed = stack.enter_context(closed_port())
        for agent in AGENTS:
            if (program := found(agent.program)) is not None:
                server = models[agent.name] = stack.enter_context(agent.server())
                home = directory / agent.name
                variables[agent.name] = agent.prepare(home, server.port)
                settings.append(agent.configuration(program, variables[agent.name]))
                settings.append(agent.unreachable_configuration(program, directory, closed))
        daemon = Daemon(directory, "--max-concurrency", "16")
        daemon.configure("\n".join(settings))
        daemon.start()
        yield (made := World(daemon, models, directory, variables))
        made.revive()
        daemon.stop()


@pytest.fixture
def case(world: World, agent: Agent, tmp_path: Path) -> Case:
    required(agent.program)
    world.revive()
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    models = world.models[agent.name]
    home = world.directory / agent.name
    variables = world.variables[agent.name]
    return Case(agent, world.daemon, models, workspace, len(models.requests), home, variables)

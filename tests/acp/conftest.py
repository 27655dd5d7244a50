"""Fixtures for tests that run the real opencode against the scripted model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_model import ChatModel
from opencode import AcpGateway, AcpGateways
from opencode_home import opencode_env
from real_agents import required

from agent_orchestrator.runners.acp.agents import AGENTS


@pytest.fixture(scope="session")
def opencode() -> str:
    return required("opencode")


@pytest.fixture
def model() -> Iterator[ChatModel]:
    with ChatModel() as server:
        yield server


@pytest.fixture
def opencode_home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def gateways(
    tmp_path: Path, opencode: str, opencode_home: Path, model: ChatModel
) -> Iterator[AcpGateways]:
    """Make gateways with settings of the test's own; they end with it."""
    made: list[AcpGateway] = []

    def make(*arguments: str, settings: str = "") -> AcpGateway:
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        env = opencode_env(opencode_home, model.port)
        made.append(
            AcpGateway(
                directory, [opencode, *AGENTS["opencode"].argv[1:]], env, settings, arguments
            )
        )
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def gateway(gateways: AcpGateways) -> AcpGateway:
    return gateways()

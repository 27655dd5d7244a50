"""Fixtures for tests that run the real opencode against the scripted model."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_model import ChatModel
from opencode import AcpGateway, AcpGateways
from opencode_home import opencode_env

from agent_orchestrator.runners.acp.agents import AGENTS

MODULES = Path(__file__).parent.parent / "node_modules"

PINNED = MODULES / "opencode-linux-x64" / "bin" / "opencode"


@pytest.fixture(scope="session")
def opencode() -> str:
    """The opencode to test with: the pinned one, else a named one, else one on the PATH."""
    named = os.environ.get("AGENT_ORCHESTRATOR_OPENCODE")
    found = str(PINNED) if PINNED.exists() else named or shutil.which("opencode")
    if found is None:
        reason = f"opencode is not there: run `npm ci --prefix {MODULES.parent}`"
        if os.environ.get("REQUIRE_REAL_AGENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


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

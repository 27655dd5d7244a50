"""Fixtures for tests that run the real codex against the local model server."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway import Gateway, Gateways
from model_server import ModelServer, write_codex_home
from real_agents import required


@pytest.fixture(scope="session")
def codex() -> str:
    return required("codex")


@pytest.fixture
def models() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, models: ModelServer) -> Path:
    """A codex home whose model is the local server."""
    return write_codex_home(tmp_path / "home", models.port)


@pytest.fixture
def usual_home(tmp_path: Path, models: ModelServer) -> Path:
    """A home in which codex also does what it does beside its turns, in processes of its own."""
    return write_codex_home(tmp_path / "home", models.port, is_lean=False, reads_projects=True)


@pytest.fixture
def home_with_projects(tmp_path: Path, models: ModelServer) -> Path:
    """A codex home that goes by the repository that a session works in."""
    return write_codex_home(tmp_path / "home", models.port, reads_projects=True)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory that codex's sandbox does not let commands write to: it lets them in ``/tmp``."""
    path = Path(tempfile.mkdtemp(prefix="outside-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def gateways(tmp_path: Path, codex: str, home: Path) -> Iterator[Gateways]:
    """Make gateways with settings of the test's own; they end with it."""
    made: list[Gateway] = []

    def make(*arguments: str, **settings: str) -> Gateway:
        directory = tmp_path / f"gateway-{len(made)}"
        directory.mkdir()
        made.append(Gateway(directory, codex, home, *arguments, **settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def gateway(gateways: Gateways) -> Gateway:
    return gateways()

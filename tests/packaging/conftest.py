from pathlib import Path

import pytest
from checkout import Checkout, copying_python


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose ``-m venv`` copies the first environment."""
    return copying_python(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Checkout:
    """A checkout that is set up; do not change it."""
    checkout = Checkout.create(tmp_path_factory.mktemp("ready") / "with a space", python)
    done = checkout.run("bin/setup", "dev")
    assert done.returncode == 0, done.stderr
    return checkout

import pytest
from checkout import Checkout


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout that is set up; leave it as it is."""
    checkout = Checkout.create(tmp_path_factory.mktemp("ready") / "with a space")
    done = checkout.run("bin/setup", "dev")
    assert done.returncode == 0, done.stderr
    return checkout

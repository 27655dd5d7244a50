"""What all tests share."""

import signal

import pytest
from hypothesis import settings

# A shell lets what it starts in the background ignore interrupts, and so would whatever a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes on a busy machine says nothing about it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

pytest.register_assert_rewrite("agent_orchestrator.testing")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the library's tests on both event loops."""
    return str(request.param)

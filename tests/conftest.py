"""What all tests share."""

import pytest

pytest.register_assert_rewrite("agent_orchestrator.testing")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the library's tests on both event loops."""
    return str(request.param)

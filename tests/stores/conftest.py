"""What the tests of stores share."""

import pytest


@pytest.fixture(autouse=True)
def _whole_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check for damage at an opening take a minute: after its second a busy machine may have begun it only."""
    monkeypatch.setattr("agent_orchestrator.stores.sqlite.connection.CHECK_LIMIT_S", 60.0)

"""What codex's failures come from, and what to do."""

import pytest

from agent_orchestrator.domain.model import RunError
from agent_orchestrator.runners.codex.diagnosis import likely_issue
from agent_orchestrator.runners.codex.failures import startup_failure


@pytest.mark.parametrize(
    ("exit_code", "stderr", "issue", "hint"),
    [
        (1, "Error: not logged in", "auth_failed", "codex login"),
        (1, "Error: no rollout found for thread id x", "thread_missing", "on_missing_thread"),
        (1, "Error: thread x already has an active writer", "unknown", "codex resume"),
        (2, "error: unexpected argument '--x' found\n\nUsage: …", "invalid_config", "extra_args"),
    ],
)
def test_a_startup_failure_has_an_issue_with_a_hint(
    exit_code: int, stderr: str, issue: str, hint: str
) -> None:
    error = RunError(*startup_failure(exit_code, stderr))
    found = likely_issue(error)
    assert found is not None
    assert found.code == issue
    assert hint in found.hint
    assert error.message in found.message


def test_a_failure_without_more_evidence_has_no_own_issue() -> None:
    assert likely_issue(RunError("agent_crashed", "codex panicked")) is None
    assert likely_issue(RunError("invalid_config", "the directory is missing")) is None

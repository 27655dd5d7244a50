"""The answer of a host about processes that it cannot search for."""

from collections.abc import Mapping

import pytest

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import ReapResult
from agent_orchestrator.hosts.linux import host
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.testing.stores.samples import NOW

pytestmark = pytest.mark.anyio

ATTEMPTS = [Attempt(f"run_{number}", 1, "dmn_1/1", "codex", NOW) for number in range(3)]


async def states() -> Mapping[str, str]:
    answers = await LinuxHost().reap(ATTEMPTS)
    return {run_id: found.state for (run_id, _), found in answers.items()}


async def test_reap_answers_unknown_without_a_process_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "live_process", lambda _: None)
    assert await states() == dict.fromkeys(("run_0", "run_1", "run_2"), "unknown")
    (finding,) = [one for one in LinuxHost().findings() if one.about == "processes"]
    assert "/proc" in finding.message


async def test_reap_answers_for_each_attempt_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(mark: str | None, *_: object) -> ReapResult:
        if mark == ATTEMPTS[0].tag:
            raise PermissionError("no access")
        return (
            ReapResult("alive", (7,), (8,)) if mark == ATTEMPTS[1].tag else ReapResult("gone", (7,))
        )

    monkeypatch.setattr(host, "kill_orphans", end)
    assert await states() == {"run_0": "unknown", "run_1": "alive", "run_2": "gone"}

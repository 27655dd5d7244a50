"""What a host says of processes that it cannot look for."""

from collections.abc import Mapping

import pytest

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.runners import reaper
from agent_orchestrator.runners.custody import Survivors
from agent_orchestrator.testing.stores.samples import NOW

pytestmark = pytest.mark.anyio

ATTEMPTS = [Attempt(f"run_{number}", 1, "dmn_1/1", "codex", NOW) for number in range(3)]


async def states(host: LinuxHost) -> Mapping[str, str]:
    return {run_id: found.state for (run_id, _), found in (await host.reap(ATTEMPTS)).items()}


async def test_without_a_process_table_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "live_process", lambda _: None)
    assert await states(LinuxHost()) == dict.fromkeys(("run_0", "run_1", "run_2"), "unknown")


async def test_each_attempt_is_answered_for_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(mark: str | None, *_: object) -> Survivors:
        if mark == ATTEMPTS[0].mark:
            raise PermissionError("no access")
        return Survivors((7,), (8,)) if mark == ATTEMPTS[1].mark else Survivors((7,))

    monkeypatch.setattr(reaper, "end_survivors", end)
    assert await states(LinuxHost()) == {"run_0": "unknown", "run_1": "alive", "run_2": "gone"}

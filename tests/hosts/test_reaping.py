"""The answer of a host about processes that it cannot search for."""

import uuid
from collections.abc import Collection, Mapping

import pytest
from attrs import evolve

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import ReapResult
from agent_orchestrator.hosts.linux import host, orphans
from agent_orchestrator.hosts.linux.host import LinuxHost
from agent_orchestrator.processes import Process, live_processes
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

    async def all_tags(attempts: Collection[Attempt]) -> set[str]:
        return {attempt.tag for attempt in attempts}

    monkeypatch.setattr(host, "tags_with_processes", all_tags)
    monkeypatch.setattr(host, "kill_orphans", end)
    assert await states() == {"run_0": "unknown", "run_1": "alive", "run_2": "gone"}


async def test_the_process_table_is_read_once_for_all_attempts_without_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def look() -> list[Process]:
        looks.append(1)
        return live_processes()

    monkeypatch.setattr(orphans, "live_processes", look)
    # Ids that no process of this machine has.
    ids = [uuid.uuid4().hex for _ in range(100)]
    attempts = [Attempt(run_id, 1, "dmn_1/1", "codex", NOW) for run_id in ids]
    answers = {
        **await LinuxHost().reap([*attempts, evolve(attempts[0], attempt=2, host="another")])
    }
    assert answers.pop((ids[0], 2)).state == "unknown"
    assert len(answers) == 100
    assert set(answers.values()) == {ReapResult()}
    assert len(looks) <= 5  # more than one if some process shows no environment

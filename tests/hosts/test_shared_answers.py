"""What daemons of the tests ask a pinned agent only once; see ``tests/support/shortcuts.py``."""

from pathlib import Path

import pytest
import shortcuts
from attrs import frozen
from loops import ON_ONE_LOOP

from agent_orchestrator.hosts import this_host
from agent_orchestrator.runners.claude import self_test


@frozen
class Spec:
    command: str


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pinned agents."""
    pinned, answers = tmp_path / "pinned", tmp_path / "answers"
    pinned.mkdir()
    answers.mkdir()
    monkeypatch.setattr(shortcuts, "MODULES", pinned)
    shortcuts.share_answers(monkeypatch, answers)
    return pinned


def program(folder: Path) -> Path:
    """Make a program that prints how often it was started."""
    file = folder / "agent"
    file.write_text(f'#!/bin/sh\necho x >> {file}.log\necho "$1" $(wc -l < {file}.log)\n')
    file.chmod(0o755)
    return file


def asked(file: Path, *arguments: str) -> str:
    return this_host().output([str(file), *arguments], env={}, timeout_s=60).decode().strip()


def test_a_pinned_agent_is_asked_for_its_version_once(modules: Path) -> None:
    file = program(modules)
    assert [asked(file, "--version") for _ in range(2)] == ["--version 1"] * 2
    assert [asked(file, "login") for _ in range(2)] == ["login 2", "login 3"]


def test_another_program_is_asked_each_time(modules: Path, tmp_path: Path) -> None:
    file = program(tmp_path)
    assert [asked(file, "--version") for _ in range(2)] == ["--version 1", "--version 2"]


@pytest.mark.anyio
@ON_ONE_LOOP
async def test_only_the_passed_self_test_of_a_pinned_program_is_kept(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str | None, bool]] = [("it did not ask", True), ("slow", False), (None, True)]
    tried: list[str] = []

    async def problem(spec: Spec) -> tuple[str | None, bool]:
        tried.append(spec.command)
        return found[min(len(tried) - 1, 2)]

    monkeypatch.setattr(self_test, "_problem", problem)
    shortcuts.share_answers(monkeypatch, tmp_path / "answers")
    pinned, other = str(program(modules)), str(program(tmp_path))
    answers = [await self_test._problem(Spec(pinned)) for _ in range(5)]
    assert answers == [*found, *[(None, True)] * 2]
    assert tried == [pinned] * 3
    for _ in range(2):
        assert await self_test._problem(Spec(other)) == (None, True)
    assert tried == [pinned] * 3 + [other] * 2

"""Code of one agent is in the package of its runner, and nowhere else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agent_orchestrator
from agent_orchestrator.known_runners import KNOWN_AGENTS

SOURCE = Path(agent_orchestrator.__file__).parents[1]
RUNNERS = SOURCE / "agent_orchestrator" / "runners"

NAMED = {
    "codex": {
        "agent_orchestrator/known_runners.py": "the registry and the defaults",
        "agent_orchestrator/operations/runs.py": "`codex_invocation` is a field of the API",
        "agentctl/commands/takeover.py": "examples of a provider and its conversations",
        "agentctl/commands/screens.py": "an example of a provider",
        "agent_orchestrator/runners/acp/agents.py": "`codex-acp`, another program",
    },
    "claude": {
        "agent_orchestrator/known_runners.py": "the registry",
        "agent_orchestrator/runners/acp/agents.py": "`claude-acp`, another program",
        "agent_orchestrator/testing/stores/values.py": "a provider's name as a value",
    },
}
"""The modules outside its folder that may name an agent, and why."""


def naming(word: str) -> set[str]:
    """Return the modules outside the folder of its runner that have the word in them."""
    return {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        if RUNNERS / word not in file.parents and re.search(word, file.read_text(), re.IGNORECASE)
    }


@pytest.mark.parametrize("agent", NAMED)
def test_agent_is_named_only_in_its_runners_package(agent: str) -> None:
    assert naming(agent) == set(NAMED[agent])


def test_modules_outside_a_runners_package_do_not_import_it() -> None:
    rooms = {place.split(":")[0] for agent in KNOWN_AGENTS for place in agent.runners.values()}
    packages = {".".join(room.split(".")[:3]) for room in rooms}
    for file in SOURCE.rglob("*.py"):
        if file.relative_to(SOURCE).as_posix() in OFFERING:
            continue
        inside = ".".join(file.relative_to(SOURCE).with_suffix("").parts[:3])
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                package = ".".join(node.module.split(".")[:3])
                assert package not in packages - {inside} - PUBLIC, (file, node.lineno)


PUBLIC = {"agent_orchestrator.runners.function"}
"""A part of the library's own API."""

OFFERING = {"agent_orchestrator/testing/agents.py"}
"""The check of an ACP agent's start, which the package of its runner has for authors of agents."""


@pytest.mark.parametrize(
    "module", ["agent_orchestrator.embedded", "agentd.cli", "agentd.daemon", "agentctl.main"]
)
def test_runners_are_not_imported_before_a_provider_uses_them(module: str) -> None:
    script = f"import sys, {module}; print([one for one in sys.modules if '.runners.codex' in one or '.runners.claude' in one])"
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == "[]"


def test_engine_and_runners_do_not_read_proc() -> None:
    # import-linter keeps the modules out that know a machine; the path of a file needs no import.
    for room in ("engine", "runners", "operations", "ports", "tools"):
        for file in (SOURCE / "agent_orchestrator" / room).rglob("*.py"):
            assert "/proc" not in file.read_text(), file

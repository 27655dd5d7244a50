"""Which of the engine's environment variables agents inherit."""

import shutil
import subprocess
from pathlib import Path

import pytest

from agent_orchestrator.engine import EnvPolicy
from agent_orchestrator.engine.environment import (
    HOST_VARIABLES,
    is_host_variable,
    unusual_variables,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "providers.md"

TIED = {name: "x" for tie in HOST_VARIABLES for name in tie.names}
KEPT = {
    "PATH": "/bin",
    "HOME": "/h",
    "SSH_AUTH_SOCK": "/s",
    "NODE_OPTIONS": "-x",
    "GIT_AUTHOR_NAME": "A",
}


def test_variables_of_a_directory_or_process_are_not_inherited() -> None:
    more = {"GIT_CONFIG_KEY_0": "x", "npm_package_name": "x", "AGENTD_DB": "x"}
    assert EnvPolicy().apply(TIED | KEPT | more) == KEPT


def test_variables_named_in_the_policy_are_inherited() -> None:
    assert EnvPolicy(inherit=("GIT_DIR", "NONE")).apply(TIED) == {"GIT_DIR": "x"}
    given = {"GIT_DIR": "/other", "PYTHONPATH": "lib"}
    assert EnvPolicy(set=given).apply(TIED) == given


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_local_variables_of_git_are_not_inherited() -> None:
    done = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, check=True)
    names = done.stdout.decode().split()
    assert names
    assert [name for name in names if not is_host_variable(name)] == []


def test_usual_shell_variables_are_not_reported() -> None:
    assert unusual_variables(["PWD", "TMUX", "PATH", "VIRTUAL_ENV", "GIT_DIR"]) == [
        "GIT_DIR",
        "VIRTUAL_ENV",
    ]


def test_document_lists_all_variables_that_are_not_inherited() -> None:
    text = DOCUMENT.read_text()
    for tie in HOST_VARIABLES:
        named = [f"`{name}`" for name in tie.names] + [f"`{name}…`" for name in tie.prefixes]
        assert f"| {tie.subject} | {', '.join(named)} |" in text

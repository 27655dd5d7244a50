"""What agents get of the environment their engine was started in."""

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


def test_what_ties_to_a_directory_or_process_is_not_handed_on() -> None:
    more = {"GIT_CONFIG_KEY_0": "x", "npm_package_name": "x", "AGENTD_DB": "x"}
    assert EnvPolicy().apply(TIED | KEPT | more) == KEPT


def test_what_was_named_is_handed_on() -> None:
    assert EnvPolicy(inherit=("GIT_DIR", "NONE")).apply(TIED) == {"GIT_DIR": "x"}
    given = {"GIT_DIR": "/other", "PYTHONPATH": "lib"}
    assert EnvPolicy(set=given).apply(TIED) == given


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_all_that_git_calls_local_is_held_back() -> None:
    told = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, check=True)
    names = told.stdout.decode().split()
    assert names
    assert [name for name in names if not is_host_variable(name)] == []


def test_what_every_shell_has_is_not_worth_a_word() -> None:
    assert unusual_variables(["PWD", "TMUX", "PATH", "VIRTUAL_ENV", "GIT_DIR"]) == [
        "GIT_DIR",
        "VIRTUAL_ENV",
    ]


def test_the_document_has_them_all() -> None:
    text = DOCUMENT.read_text()
    for tie in HOST_VARIABLES:
        named = [f"`{name}`" for name in tie.names] + [f"`{name}…`" for name in tie.prefixes]
        assert f"| {tie.subject} | {', '.join(named)} |" in text

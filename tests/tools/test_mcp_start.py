"""What the tools stand on is imported when they are used."""

import subprocess
import sys

import pytest
from driving import COMMAND, environment


@pytest.mark.parametrize("module", ["agentd.daemon", "agentctl.main", "agentctl.commands.mcp"])
def test_nothing_loads_the_package_at_the_start(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'mcp', 'mcp_types', 'pydantic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_outside_of_a_run_agentctl_says_what_is_missing() -> None:
    done = subprocess.run(
        [*COMMAND, "mcp"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--run-id" in done.stderr

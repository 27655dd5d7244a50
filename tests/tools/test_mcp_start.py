"""The packages that the tools need are imported at their first use."""

import json
import signal
import subprocess
import sys

import pytest
from driving import COMMAND, environment, started

NOWHERE = {"AGENTCTL_URL": "http://127.0.0.1:9"}
"""A daemon that is not there. Otherwise agentctl would look for daemons of other tests."""


@pytest.mark.parametrize("module", ["agentd.daemon", "agentctl.main", "agentctl.commands.mcp"])
def test_mcp_package_is_not_imported_at_the_start(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'mcp', 'mcp_types', 'pydantic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_agentctl_mcp_outside_of_a_run_names_the_missing_option() -> None:
    done = subprocess.run(
        [*COMMAND, "mcp"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(**NOWHERE),
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--run-id" in done.stderr


def test_agentctl_mcp_ends_on_an_interrupt_while_its_input_is_open() -> None:
    own = {"AGENTCTL_RUN_ID": "run_1", "AGENTCTL_SESSION_ID": "ses_1"}
    with started(
        [*COMMAND, "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**NOWHERE, **own),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"] == {}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT

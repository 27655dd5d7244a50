"""What a thread's commands have left running is found, whatever they are doing at that moment."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from agent_orchestrator.processes import read_proc
from agent_orchestrator.runners.codex.appserver import strays

pytestmark = pytest.mark.anyio

THREAD_ID = f"thread-of-test-{os.getpid()}"


@pytest.fixture
def command() -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | {strays.VARIABLE.decode().rstrip("="): THREAD_ID}
    with subprocess.Popen(["sleep", "300"], env=env) as process:
        yield process
        process.kill()


async def test_a_command_amid_execve_is_killed(
    command: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Linux shows the environment of a process as empty until execve has set up the new program.
    path = f"/proc/{command.pid}/environ"
    shown = iter([b"", b""])
    monkeypatch.setattr(
        strays,
        "read_proc",
        lambda asked: next(shown, read_proc(asked)) if asked == path else read_proc(asked),
    )
    assert await strays.kill_strays({THREAD_ID}) == [command.pid]
    assert await strays.kill_strays({THREAD_ID}) == []

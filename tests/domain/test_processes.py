"""The identity of a process beyond its pid."""

import os
import subprocess
import sys

from agent_orchestrator.processes import is_running, process_start_id, start_id


def test_process_start_id_has_the_boot_and_the_start_tick() -> None:
    odd = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') S 1 (x', 0, 0, 0); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", odd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        before = process_start_id(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        boot, _, ticks = (process_start_id(process.pid) or "").partition("/")
        assert f"{boot}/{ticks}" == before == start_id(int(ticks))
        assert len(boot) == 36
        assert is_running(process.pid, before)
        assert not is_running(process.pid, f"{boot}/1")
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid, before)  # it has ended, and is not reaped yet
        process.wait(60)
    assert process_start_id(process.pid) is None

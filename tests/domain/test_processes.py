"""The identity of a process beyond its pid."""

import os
import shutil
import subprocess
import sys

import pytest

from agent_orchestrator.processes import (
    has_ended,
    is_running,
    process_start_id,
    start_id,
)


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


def test_an_end_is_certain_or_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE
    ) as process:
        own = process_start_id(process.pid)
        assert own is not None
        boot = own.partition("/")[0]
        assert not has_ended(process.pid, own)
        assert has_ended(process.pid, f"{boot}/1")
        assert not has_ended(process.pid, None)
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_ended(process.pid, own)
        process.wait(60)
        assert has_ended(process.pid, own)
    assert not has_ended(os.getpid(), process_start_id(os.getpid()))


def test_an_end_is_not_certain_without_file_descriptors() -> None:
    """Nothing can be read then, also of processes that run."""
    script = (
        "import os, resource, sys\n"
        "from agent_orchestrator.processes import has_ended, is_running, process_start_id\n"
        "pid = os.getppid()\n"
        "start_id = process_start_id(pid)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "sys.exit(2 * has_ended(pid, start_id) + is_running(pid, start_id))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_the_end_of_a_hidden_process_is_not_certain() -> None:
    """As in a service with ProtectProc=invisible."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("util-linux is not there")
    script = (
        "import os, sys\n"
        "from agent_orchestrator.processes import has_ended, process_start_id\n"
        "pid, start_id = int(sys.argv[1]), sys.argv[2]\n"
        "sys.exit(3 if process_start_id(pid) is not None else 2 * has_ended(pid, start_id))\n"
    )
    mount = "mount -t proc -o hidepid=2 proc /proc || exit 77; "
    own = process_start_id(os.getpid())
    assert own is not None
    user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups "
    inside = ["unshare", "--mount", "sh", "-c", f'{mount}{user}"$@"', "sh"]
    found = subprocess.run(
        [*inside, sys.executable, "-c", script, str(os.getpid()), own],
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if found.returncode in (1, 77, 126, 127):
        pytest.skip("/proc cannot be mounted, or another user cannot read the program")
    assert found.returncode == 0

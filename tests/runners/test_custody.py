import os
import resource
import signal
import subprocess
import sys
import uuid

import anyio
import psutil
import pytest

from agent_orchestrator.ports import MARK_VARIABLE
from agent_orchestrator.processes import birth_of
from agent_orchestrator.runners.custody import Survivors, brand, end_survivors

pytestmark = pytest.mark.anyio

RLIMIT_LOCKS = 10

ORPHAN = """
import subprocess, sys
null = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=null, **eval(sys.argv[1]))
print(child.pid, flush=True)
"""
"""Leaves a process behind in a session of its own, without a parent."""


@pytest.fixture
def mark():
    return uuid.uuid4().hex


@pytest.fixture
def orphan(mark):
    """Start an orphan that bears the brand, the mark, or neither; return its pid."""
    left = []

    def start(*, branded=False, marked=False, clean=False, **options):
        def become_branded():
            _, most = resource.getrlimit(RLIMIT_LOCKS)
            resource.setrlimit(RLIMIT_LOCKS, (brand(mark), most))

        env = {**os.environ, **({MARK_VARIABLE: mark} if marked else {})}
        child = {"env": {}, "executable": "/bin/sleep"} if clean else {}
        started = subprocess.run(
            [sys.executable, "-c", ORPHAN, repr(child)],
            env=env,
            stdout=subprocess.PIPE,
            check=True,
            preexec_fn=become_branded if branded else None,
            **options,
        )
        left.append(psutil.Process(int(started.stdout)))
        return left[-1].pid

    yield start
    for process in left:
        if process.is_running():
            process.kill()


async def test_nothing_is_found_of_what_is_gone(mark):
    assert await end_survivors(mark) == Survivors()
    assert await end_survivors(mark, os.getpid(), "another-boot/1") == Survivors()
    assert await end_survivors(None, None, None) == Survivors()


@pytest.mark.parametrize(
    "bears", [{"branded": True, "clean": True}, {"marked": True}, {"branded": True, "marked": True}]
)
async def test_an_orphan_is_known_by_what_it_inherited(mark, orphan, bears):
    pid = orphan(**bears)
    stranger = orphan()
    with anyio.fail_after(10):
        assert await end_survivors(mark) == Survivors((pid,))
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert psutil.pid_exists(stranger)


async def test_a_stopped_one_is_ended_too(mark, orphan):
    pid = orphan(branded=True)
    os.kill(pid, signal.SIGSTOP)
    with anyio.fail_after(10):
        assert (await end_survivors(mark)).killed == (pid,)


async def test_a_recorded_process_is_ended_with_its_session(mark, orphan):
    pid = orphan()
    born = birth_of(pid)
    for stranger in (None, f"{born}0", f"another-boot/{born.partition('/')[2]}"):
        assert await end_survivors(mark, pid, stranger) == Survivors()
    with anyio.fail_after(10):
        assert await end_survivors(mark, pid, born) == Survivors((pid,))


def test_a_brand_fits_the_limit_and_is_a_marks_own(mark):
    assert 2**61 <= brand(mark) < 2**62
    assert brand(mark) == brand(mark)
    assert brand(mark) != brand(mark + "0")

"""Agents whose time has passed are killed by their supervisors, also while their daemon is stopped."""

import os
import signal
import subprocess
import sys
import time

import anyio
import psutil
import pytest
from loops import ON_ONE_LOOP
from pids import is_gone

from agent_orchestrator.host import ProcessSpec
from agent_orchestrator.hosts.linux.expiry import Expiry, expiry_table
from agent_orchestrator.hosts.linux.host import LinuxHost

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

# An agent with a process that has left its session.
ESCAPES = ["sh", "-c", "setsid sleep 600 & echo $!; exec sleep 600"]
MARGIN_S = 30.0
STARTS_S = 10.0
"""Seconds in which an agent has begun, also on a busy machine: a supervisor looks when they have passed."""


def spec(argv, tmp_path):
    return ProcessSpec(argv, cwd=str(tmp_path), env={"PATH": os.environ["PATH"]})


async def pid_in(process):
    text = b""
    while not text.endswith(b"\n"):
        text += await process.read()
    return int(text)


async def test_an_agent_is_killed_when_its_time_has_passed(tmp_path):
    moments = [time.monotonic() + STARTS_S]
    host = LinuxHost().limited(lambda: moments[0])
    with anyio.fail_after(60):
        async with host, host.open_process(spec(ESCAPES, tmp_path)) as process:
            escaped = await pid_in(process)
            assert await process.wait() == -signal.SIGKILL
            assert moments[0] <= time.monotonic() < moments[0] + MARGIN_S
            while not is_gone(escaped):
                assert time.monotonic() < moments[0] + MARGIN_S
                await anyio.sleep(0.02)
        moments[0] += 60
        assert not host.extend()
        assert host.extend()


async def test_an_extended_agent_goes_on(tmp_path):
    moments = [time.monotonic() + STARTS_S]
    host = LinuxHost().limited(lambda: moments[0])
    with anyio.fail_after(60):
        async with host, host.open_process(spec(["cat"], tmp_path)) as process:
            ends_at = time.monotonic() + STARTS_S
            while time.monotonic() < ends_at:  # longer than the first time
                await anyio.sleep(0.5)
                moments[0] = time.monotonic() + STARTS_S
                assert host.extend()
            assert process.returncode is None


async def test_agents_started_after_an_expiry_that_is_known_go_on(tmp_path):
    """A daemon that was cut off and has its lease again begins its runs again once, not twice."""
    moments = [time.monotonic() + 0.1]
    host = LinuxHost().limited(lambda: moments[0])
    with anyio.fail_after(60):
        async with host:
            async with host.open_process(spec(["sleep", "600"], tmp_path)) as process:
                assert await process.wait() == -signal.SIGKILL
            assert not host.extend(), "the time is the same still"
            assert host.extend()
            moments[0] += 60
            async with host.open_process(spec(["cat"], tmp_path)) as process:
                assert host.extend()
                assert process.returncode is None
            moments[0] = time.monotonic() - 1
            async with host.open_process(spec(["sleep", "600"], tmp_path)) as process:
                assert await process.wait() == -signal.SIGKILL
            assert not host.extend()


async def test_engines_without_a_lease_and_later_agents_are_not_affected(tmp_path):
    moments = [time.monotonic() - 1]
    ended, free = LinuxHost().limited(lambda: moments[0]), LinuxHost()
    with anyio.fail_after(60):
        async with free, free.open_process(spec(["cat"], tmp_path)) as other:
            for _ in range(2):  # the second has the supervisor of the first
                async with ended.open_process(spec(["sleep", "600"], tmp_path)) as process:
                    assert await process.wait() == -signal.SIGKILL
            moments[0] = time.monotonic() + 60
            async with ended.open_process(spec(["true"], tmp_path)) as process:
                assert await process.wait() == 0
            assert other.returncode is None


def test_the_memory_can_only_be_read_by_others():
    table = expiry_table()
    path = f"/proc/self/fd/{table.descriptor}"
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"\0" * 8, 0)
    finally:
        os.close(descriptor)


def test_numbers_are_used_again():
    first = Expiry(lambda: 1.0)
    number = first.number
    assert number > 0
    second = Expiry(lambda: 2.0)
    assert second.number != number
    del first
    assert Expiry(lambda: 3.0).number == number


PROGRAM = """
import sys, time
import anyio
from agent_orchestrator.host import ProcessSpec
from agent_orchestrator.hosts.linux.host import LinuxHost

async def main():
    ends_at = time.monotonic() + float(sys.argv[1])
    host = LinuxHost().limited(lambda: ends_at)
    async with host, anyio.create_task_group() as tasks:
        spec = ProcessSpec(sys.argv[2:], cwd="/", env={"PATH": "/usr/bin:/bin"})
        async with host.open_process(spec) as process:
            print(process.pid, int(await process.read()), ends_at, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


def test_the_agents_of_a_stopped_daemon_are_killed():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(STARTS_S), *ESCAPES], stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            agent, escaped, ends_at = owner.stdout.readline().split()
            owner.send_signal(signal.SIGSTOP)
            assert not is_gone(int(agent))
            while not is_gone(int(agent)) or not is_gone(int(escaped)):
                assert time.monotonic() < float(ends_at) + MARGIN_S
                time.sleep(0.02)
            assert time.monotonic() >= float(ends_at)
            assert psutil.Process(owner.pid).status() == psutil.STATUS_STOPPED
        finally:
            owner.kill()

"""The host with process groups only, run on the system of these tests."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import anyio
import psutil
import pytest

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import Host
from agent_orchestrator.hosts import process
from agent_orchestrator.hosts.posix import processes
from agent_orchestrator.hosts.posix.host import PosixHost
from agent_orchestrator.testing import HostContract

pytestmark = pytest.mark.anyio


class TestPosixHost(HostContract):
    finds_everything = False

    def make_host(self) -> Host:
        return PosixHost()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    code = "import time; print(flush=True); time.sleep(300)"
    argv = [sys.executable, "-S", "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def only(monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
    """Hide all other processes, which may be orphans of other programs."""
    monkeypatch.setattr(processes.psutil, "pids", lambda: list(pids))


def attempt_of(pid: int | None, start_id: str | None) -> Attempt:
    now = datetime.now(UTC)
    return Attempt(
        "run_1", 1, f"dmn_{os.getpid()}/1", "agent", now, pid=pid, process_start_id=start_id
    )


async def state(attempt: Attempt) -> str:
    return (await PosixHost().reap([attempt]))["run_1", 1].state


async def test_reap_answers_gone_if_no_process_can_be_left(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, os.getpid(), sleeper.pid)  # the parent of the sleeper is this process
    assert await state(attempt_of(None, None)) == "gone"
    assert await state(attempt_of(sleeper.pid, "another")) == "gone"
    assert sleeper.poll() is None


async def test_reap_kills_the_group_of_a_known_process(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, sleeper.pid)
    start_id = PosixHost().process_start_id(sleeper.pid)
    assert await state(attempt_of(sleeper.pid, start_id)) == "gone"
    assert sleeper.wait(60) != 0


async def test_reap_answers_unknown_if_an_orphan_may_be_of_the_attempt(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, sleeper.pid)
    monkeypatch.setattr(processes, "_adopters", lambda: {os.getpid()})
    assert await state(attempt_of(None, None)) == "unknown"
    assert sleeper.poll() is None


@pytest.mark.parametrize("hidden", ["environ", "create_time", "uids"])
async def test_reap_answers_unknown_if_an_orphan_cannot_be_read(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    only(monkeypatch, sleeper.pid)
    monkeypatch.setattr(processes, "_adopters", lambda: {os.getpid()})
    monkeypatch.setattr(psutil.Process, hidden, denied)
    assert await state(attempt_of(None, None)) == "unknown"


async def test_reap_answers_unknown_if_a_process_start_id_cannot_be_read(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    host = PosixHost()
    start_id = host.process_start_id(sleeper.pid)
    monkeypatch.setattr(psutil.Process, "status", denied)
    assert host.process_start_id(sleeper.pid) is None
    assert await state(attempt_of(sleeper.pid, start_id)) == "unknown"
    assert sleeper.poll() is None


async def test_reap_answers_alive_if_a_process_cannot_be_killed(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    only(monkeypatch, sleeper.pid)
    monkeypatch.setattr(processes, "KILL_TIMEOUT_S", 0.02)
    start_id = PosixHost().process_start_id(sleeper.pid)
    monkeypatch.setattr(psutil.Process, "kill", denied)
    assert await state(attempt_of(sleeper.pid, start_id)) == "alive"


async def test_process_with_the_tag_is_killed_where_its_group_may_not_be_read(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    only(monkeypatch, sleeper.pid)
    monkeypatch.setattr(psutil.Process, "environ", lambda _: {"TAG": "this"})
    monkeypatch.setattr(os, "getsid", denied)
    with anyio.fail_after(60):
        result = await processes.kill_processes("TAG", ["this"], group=999_999)
    assert (result.state, result.ended) == ("gone", (sleeper.pid,))


def test_output_times_out_also_where_a_group_without_live_processes_may_not_be_signalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(_: int, __: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", denied)  # as Darwin's killpg answers for a zombie's group
    code = "import os, time; os.fork() or (os.setsid(), time.sleep(1))"
    with pytest.raises(TimeoutError):
        PosixHost().output([sys.executable, "-S", "-c", code], env=dict(os.environ), timeout_s=0.2)


def test_long_arguments_are_refused_with_the_bound_of_this_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    assert "Linux allows 128 KiB" in process._start_problem(problem, "agent", "/")[1]
    monkeypatch.setattr(process.sys, "platform", "darwin")
    monkeypatch.setattr(os, "sysconf", {"SC_ARG_MAX": 2**20}.__getitem__)
    assert process._start_problem(problem, "agent", "/") == (
        "invalid_config",
        "the arguments and variables for agent are too long: this system allows 1024 KiB in total",
    )


def test_findings_warn_that_the_end_of_orphans_is_not_guaranteed() -> None:
    (finding,) = [one for one in PosixHost().findings() if one.about == "processes"]
    assert finding.level == "warning"
    assert "cannot guarantee" in finding.message

"""Finds the processes of an attempt by the means of POSIX: process group, session, environment and descent.

A process that leaves its session, drops its tag and loses its parent cannot be assigned to an attempt. But
it is visible as an orphan that is younger than the attempt and in another session than this process.
"""

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Final

import anyio
import psutil
from anyio.to_thread import run_sync

from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.host import ReapResult
from agent_orchestrator.ports.runner import TAG_VARIABLE

KILL_TIMEOUT_S: Final = 5.0
"""Seconds after which processes that do not die are given up."""

_PAUSE_S: Final = 0.01

_CLOCK_S: Final = 2.0
"""Maximum error in seconds of the reported start of a process: it may be too early."""

_INIT: Final = 1
"""The pid of init, which adopts orphans. It is also the session of processes that init starts."""


async def kill_processes(
    variable: str, values: Collection[str], group: int | None = None
) -> ReapResult:
    """Kill the processes with a variable or in a group, and return when they are gone.

    :param variable: the environment variable whose values identify them.
    :param group: the id of a process group and session whose processes are killed too.
    """
    limiter = anyio.CapacityLimiter(1)  # the default limiter's threads may all be busy
    killed: dict[int, None] = {}
    give_up_at = anyio.current_time() + KILL_TIMEOUT_S
    while processes := await run_sync(_matching, variable, values, group, limiter=limiter):
        alive = tuple(process.pid for process in processes)
        if anyio.current_time() > give_up_at:
            return ReapResult("alive", tuple(pid for pid in killed if pid not in alive), alive)
        killed |= dict.fromkeys(alive)
        for process in processes:
            with suppress(psutil.Error):  # gone, or another process has its pid
                process.kill()
        await anyio.sleep(_PAUSE_S)
    return ReapResult("gone", tuple(killed))


def is_alive(pid: int) -> bool:
    """Return False if there is no such process, or a zombie. True if it cannot be read."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def possible_escapes(since: datetime) -> list[str]:
    """Return this user's orphans without a tag that have started since a time, as pids with names.

    If :func:`kill_processes` has missed a process of an attempt, that process is such an orphan or descends
    from one.
    """
    begin = since.timestamp() - _CLOCK_S
    adopters = _adopters()
    holders = []
    for process in _processes():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if _may_have_escaped(process, begin, adopters):
                holders.append(f"{process.pid} ({decode_for_display(process.name())})")
    return holders


def _matching(variable: str, values: Collection[str], group: int | None) -> list[psutil.Process]:
    processes: dict[int, psutil.Process] = {}
    for process in _processes():
        with suppress(psutil.Error, OSError):
            is_in_group = group is not None and _is_in_group(process.pid, group)
            if is_in_group or (values and process.environ().get(variable) in values):
                processes |= {
                    member.pid: member for member in (process, *process.children(recursive=True))
                }
    own_process = psutil.Process()
    if own_process.pid in processes:  # the agent started this process and its descendants
        for spared in (own_process, *own_process.children(recursive=True)):
            processes.pop(spared.pid, None)
    return [
        process for process in processes.values() if is_alive(process.pid) and process.is_running()
    ]


def _is_in_group(pid: int, group: int) -> bool:
    try:
        return group in (os.getpgid(pid), os.getsid(pid))
    except PermissionError:  # some systems refuse this for processes of other sessions
        return False


def _processes() -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        with suppress(psutil.Error):
            yield psutil.Process(pid)


def _adopters() -> frozenset[int]:
    """Return the processes that can adopt an orphan of this machine.

    Linux has subreapers besides init. They are ancestors of what they adopt, and of the next daemon.
    """
    above = psutil.Process().parents() if sys.platform == "linux" else ()
    return frozenset({0, _INIT, *(process.pid for process in above)})


def _may_have_escaped(process: psutil.Process, begin: float, adopters: frozenset[int]) -> bool:
    if process.ppid() not in adopters or os.getsid(process.pid) in (0, _INIT, os.getsid(0)):
        return False
    try:
        if process.uids().real != os.getuid() or process.create_time() < begin:
            return False
        return TAG_VARIABLE not in process.environ() and is_alive(process.pid)
    except psutil.AccessDenied:
        return True

"""The processes of an attempt as POSIX shows them: by process group, session, environment and descent.

A process that leaves its session, drops its tag and loses its parent cannot be assigned to an attempt. It can
be noticed: it is an orphan that is younger than the attempt, in another session than this process.
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
from agent_orchestrator.host import Remains
from agent_orchestrator.ports.runner import TAG_VARIABLE

KILL_TIMEOUT_S: Final = 5.0
"""Seconds after which processes that do not die are given up."""

_PAUSE_S: Final = 0.01

_CLOCK_S: Final = 2.0
"""Seconds by which the start of a process may be reported too early."""

_INIT: Final = 1
"""The process that adopts orphans, and the session of what it starts itself."""


async def kill_processes(
    variable: str, values: Collection[str], group: int | None = None
) -> Remains:
    """Kill the processes that are found, and return when they are gone.

    :param variable: the environment variable whose values identify them.
    :param group: the id of a process group and session whose processes are killed too.
    """
    limiter = anyio.CapacityLimiter(1)  # its own: it must not wait for others' work in threads
    killed: dict[int, None] = {}
    give_up_at = anyio.current_time() + KILL_TIMEOUT_S
    while processes := await run_sync(_matching, variable, values, group, limiter=limiter):
        alive = tuple(process.pid for process in processes)
        if anyio.current_time() > give_up_at:
            return Remains("alive", tuple(pid for pid in killed if pid not in alive), alive)
        killed |= dict.fromkeys(alive)
        for process in processes:
            with suppress(psutil.Error):  # gone, or another process has its pid
                process.kill()
        await anyio.sleep(_PAUSE_S)
    return Remains("gone", tuple(killed))


def is_alive(pid: int) -> bool:
    """Return False if there is no such process, or a zombie. True if it cannot be read."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def possible_escapes(since: datetime) -> list[str]:
    """Return the orphans of this user that started since then and have no tag: pids with names.

    Any process that is left of an attempt, and not found, has such an orphan above it, or is one.
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
            pid = process.pid
            is_in_group = group is not None and group in (os.getpgid(pid), os.getsid(pid))
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

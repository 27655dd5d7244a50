"""Finds the processes that a thread's commands left running.

An app-server process serves many threads, so process groups and inherited tags do not separate
them. But codex 0.169 sets ``CODEX_THREAD_ID`` in the environment of every command, sandboxed or
not.
"""

from collections.abc import Collection

import anyio
import psutil
from anyio.to_thread import run_sync

from agent_orchestrator.processes import live_processes, read_proc

VARIABLE = b"CODEX_THREAD_ID="

_SCANS = 10
"""Each scan kills what it finds. The next one finds what those processes started meanwhile."""

_RESCANS = 4
"""A process in the middle of execve shows an empty environment for a moment."""


async def kill_strays(thread_ids: Collection[str]) -> list[int]:
    """Kill the processes of these threads' commands and return their pids once they are gone."""
    limiter = anyio.CapacityLimiter(1)  # its own: it must not wait for others' work in threads
    ended: list[int] = []
    again = _RESCANS
    for _ in range(_SCANS):
        found, is_unclear = await run_sync(_kill, frozenset(thread_ids), limiter=limiter)
        ended += found
        if found:
            continue
        if not is_unclear or not again:
            break
        again -= 1
        await anyio.sleep(0.005)
    return ended


def processes_of_threads(thread_ids: Collection[str]) -> list[psutil.Process]:
    """Return the live processes of these threads' commands, and what descends from them."""
    return _scan(thread_ids)[0]


def _scan(thread_ids: Collection[str]) -> tuple[list[psutil.Process], bool]:
    """Return these processes, and whether some process showed no environment."""
    entries = [VARIABLE + thread_id.encode() + b"\0" for thread_id in thread_ids]
    found: dict[int, psutil.Process] = {}
    is_unclear = False
    for candidate in live_processes():
        environ = (
            None if candidate.is_kernel_thread else read_proc(f"/proc/{candidate.pid}/environ")
        )
        if environ is None:
            continue  # it is gone, or another user's
        is_unclear |= not environ
        if any(entry in environ for entry in entries):
            try:
                process = psutil.Process(candidate.pid)
                below = process.children(recursive=True)
            except psutil.Error:
                continue
            found |= {one.pid: one for one in (process, *below)}
    return [one for one in found.values() if _is_alive(one)], is_unclear


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill(thread_ids: frozenset[str]) -> tuple[list[int], bool]:
    found, is_unclear = _scan(thread_ids)
    for process in found:
        try:
            process.kill()  # psutil checks that the pid was not reused
        except psutil.Error:
            continue
    psutil.wait_procs(found, timeout=0.5)
    return [process.pid for process in found], is_unclear

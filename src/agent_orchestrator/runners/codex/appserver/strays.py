"""What a thread's commands have left running.

The process of an app-server serves many threads, so that what one of them started cannot be told by
process group or by a mark in the environment. Codex 0.169 sets ``CODEX_THREAD_ID`` in every command's
environment, sandboxed or not.
"""

import os
from collections.abc import Collection

import anyio
import psutil
from anyio.to_thread import run_sync

VARIABLE = b"CODEX_THREAD_ID="

_SCANS = 10
"""Each time what was found is killed; what is begun by what is being killed is found the next time."""


async def kill_strays(thread_ids: Collection[str]) -> list[int]:
    """Kill the processes of these threads' commands and return their pids once they are gone."""
    limiter = anyio.CapacityLimiter(1)  # its own: it must not wait for others' work in threads
    ended: list[int] = []
    for _ in range(_SCANS):
        found = await run_sync(_kill, frozenset(thread_ids), limiter=limiter)
        if not found:
            break
        ended += found
    return ended


def processes_of_threads(thread_ids: Collection[str]) -> list[psutil.Process]:
    """Return the live processes of these threads' commands, and what descends from them."""
    entries = [VARIABLE + thread_id.encode() + b"\0" for thread_id in thread_ids]
    found: dict[int, psutil.Process] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all it takes
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123 - called for each process
                environ = file.read()
            if any(entry in environ for entry in entries):
                process = psutil.Process(int(name))
                below = process.children(recursive=True)
                found |= {one.pid: one for one in (process, *below)}
        except (OSError, psutil.Error):
            continue  # it is gone, or another user's
    return [one for one in found.values() if _is_alive(one)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill(thread_ids: frozenset[str]) -> list[int]:
    found = processes_of_threads(thread_ids)
    for process in found:
        try:
            process.kill()  # psutil sees to it that the pid has not been used anew
        except psutil.Error:
            continue
    psutil.wait_procs(found, timeout=0.5)
    return [process.pid for process in found]

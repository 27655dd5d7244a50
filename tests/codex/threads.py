"""What the commands of codex's threads have left running."""

from collections.abc import Collection

import psutil

from agent_orchestrator.runners.codex.appserver.teardown import THREAD_VARIABLE


def processes_of_threads(thread_ids: Collection[str]) -> list[int]:
    """Return the pids of the live processes of these threads' commands, and of their descendants."""
    found: set[int] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(THREAD_VARIABLE) in thread_ids:
                below = process.children(recursive=True)
                found |= {one.pid for one in (process, *below) if _is_alive(one)}
        except psutil.Error:
            continue
    return sorted(found)


def _is_alive(process: psutil.Process) -> bool:
    return bool(process.status() != psutil.STATUS_ZOMBIE)

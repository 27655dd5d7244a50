"""A process and its descendants, for diagnosis."""

from collections.abc import Callable, Sequence

import psutil

from agent_orchestrator.encoding import decode_for_display
from agent_orchestrator.operations.runs import ProcessView

_COMMAND_LENGTH = 500
"""Maximum number of characters of a command in the tree."""


def process_tree(
    pid: int, start_id: str | None, limit: int, start_id_of: Callable[[int], str | None]
) -> Sequence[ProcessView]:
    """Return a process and its descendants, the process first; an empty list if it has ended.

    :param start_id: identifies the process if its pid was reused.
    :param limit: maximum number of processes.
    :param start_id_of: returns the start id of a pid.
    """
    try:
        root = psutil.Process(pid)
        # Compared after psutil has the process. From then on psutil notices another process with its pid.
        if start_id_of(pid) != start_id or root.status() == psutil.STATUS_ZOMBIE:
            return ()
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return ()
    return [view for process in processes[:limit] if (view := _view(process)) is not None]


def _view(process: psutil.Process) -> ProcessView | None:
    try:
        command = decode_for_display(
            " ".join(process.cmdline())[:_COMMAND_LENGTH] or process.name()
        )
        return ProcessView(process.pid, process.ppid(), command, process.status())
    except psutil.Error:
        return None

"""Looks at processes, which may end at any moment."""

from contextlib import suppress

import psutil


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, though its parent may not have been told yet."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True

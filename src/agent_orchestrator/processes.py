"""Which process is meant: a pid alone is used anew, and the time of day is set."""

from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def birth_of(pid: int) -> str | None:
    """Return what, together with its pid, no other process has or ever had: the machine's boot and
    the clock tick after it in which the process started. None if there is no such process.

    Unlike a start time in seconds since the epoch it does not move when the clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # pid (name) state ppid …; the name may hold anything (proc_pid_stat(5): starttime is field 22)
    return birth(int(text[text.rindex(b")") + 2 :].split()[19]))


def birth(ticks: int) -> str | None:
    """Return the same for a process that started so many clock ticks after the machine did."""
    try:
        return f"{_BOOT_ID.read_text().strip()}/{ticks}"
    except OSError:
        return None

"""The processes of this machine: their identity and their descendants.

Pids are reused, and the clock may be set. So a process is identified by its pid and its start id.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_DUMPABLE: Final = 4
_LOCKS: Final = b"\nMax file locks"
_KERNEL_THREAD: Final = 0x0020_0000  # PF_KTHREAD


@frozen
class Process:
    """A live process, from /proc/PID/stat."""

    pid: int
    parent: int
    group: int
    session: int
    flags: int
    started: int
    """Start time, in clock ticks since boot."""

    @property
    def is_kernel_thread(self) -> bool:
        return bool(self.flags & _KERNEL_THREAD)


def process_start_id(pid: int) -> str | None:
    """Return the boot id and the clock tick since boot at which a process started; None if there is none.

    Together with the pid this identifies a process. It does not change if the clock is set. Systems other than
    Linux have :func:`portable_start_id` instead.
    """
    if sys.platform != "linux":
        return portable_start_id(pid)
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # pid (name) state ppid …; the name may have any characters (proc_pid_stat(5): starttime is field 22)
    return start_id(int(text[text.rindex(b")") + 2 :].split()[19]))


def portable_start_id(pid: int) -> str | None:
    """Return the boot and the time at which a process started, on any POSIX system.

    Return None for a process that has ended or cannot be read.
    """
    import psutil  # agentctl starts without it

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{_boot_session()}/{process.create_time()}"
    except psutil.Error:
        return None


def _boot_session() -> str:
    """Return the id of the boot on Linux and macOS; an empty text on other systems."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    value, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    with suppress(AttributeError):
        ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", value, ctypes.byref(size), None, 0)
    return value.value.decode()


def is_running(pid: int, start_id: str | None) -> bool:
    """Return True if the process with this pid and start id runs. A zombie does not run."""
    if sys.platform != "linux":
        return start_id is not None and portable_start_id(pid) == start_id
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    state = text[text.rindex(b")") + 2 :][:1]
    return start_id is not None and process_start_id(pid) == start_id and state not in (b"Z", b"X")


def has_ended(pid: int, start_id: str | None) -> bool:
    """Return True if the process with this pid and start id has certainly ended. Its boot must be this one.

    It is not certain if the process is hidden, as those of other users may be (proc(5), hidepid), or if this process
    is out of file descriptors.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's
    if sys.platform != "linux":
        found = portable_start_id(pid)
        return None not in (found, start_id) and found != start_id
    text = read_proc(f"/proc/{pid}/stat")
    if text is None or start_id is None:
        return False
    fields = text[text.rindex(b")") + 2 :].split()
    # A process whose first thread has exited is shown as a zombie while other threads run.
    is_zombie = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return is_zombie or fields[19] != start_id.rpartition("/")[2].encode()


def flock_holder(device: int, inode: int) -> str | None:
    """Return the pid of a process that holds a ``flock`` on a file; None if unknown.

    :param device: ``st_dev`` of the file.
    :param inode: ``st_ino`` of the file.
    """
    name = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == name and int(fields[4]) > 0:
                return fields[4]
    return None


def start_id(ticks: int) -> str | None:
    """Return the start id of a process that started this many clock ticks after boot."""
    try:
        return f"{_BOOT_ID.read_text().strip()}/{ticks}"
    except OSError:
        return None


def live_process(pid: int) -> Process | None:
    """Return a process; None if it does not exist or has ended."""
    text = read_proc(f"/proc/{pid}/stat")
    if text is None:
        return None
    # pid (name) state ppid pgrp session tty tpgid flags …; the name may have any characters
    fields = text[text.rindex(b")") + 2 :].split()
    # A process whose first thread has exited is shown as a zombie while other threads run.
    if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
        return None
    parent, group, session = int(fields[1]), int(fields[2]), int(fields[3])
    return Process(pid, parent, group, session, int(fields[6]), int(fields[19]))


def pids() -> list[int]:
    """Return the pids of this machine, or of the container this process is in."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def live_processes() -> list[Process]:
    """Return all processes that are alive."""
    return [process for pid in pids() if (process := live_process(pid)) is not None]


def with_descendants(roots: set[int], processes: Iterable[Process]) -> set[int]:
    """Return these pids and those of all their descendants."""
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process.pid)
    found, unvisited = set(roots), list(roots)
    while unvisited:
        unseen = [pid for pid in children.get(unvisited.pop(), ()) if pid not in found]
        found.update(unseen)
        unvisited += unseen
    return found


def lock_limit_of(pid: int) -> bytes | None:
    """Return the soft RLIMIT_LOCKS of a process; None if it has ended or is another user's."""
    limits = read_proc(f"/proc/{pid}/limits")
    if limits is None or (start := limits.find(_LOCKS)) < 0:
        return None
    return limits[start + len(_LOCKS) :].split(None, 1)[0]


def read_proc(path: str) -> bytes | None:
    """Return a file of /proc; None if its process has ended or is another user's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 2**17):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def hide_memory() -> None:
    """Prevent other processes of this user from reading this process's memory and environment.

    They cannot trace it or see its descriptors (prctl(2), PR_SET_DUMPABLE), and it leaves no core
    dump. Root still can. Programs that this process starts are not affected. Systems other than Linux have no
    such call: nothing is done.

    :raises OSError: if the kernel refuses.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

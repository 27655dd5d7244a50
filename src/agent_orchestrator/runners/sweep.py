"""What is left of an agent: found in /proc and killed, until a look finds nothing.

A process is known by its pid and its start time together, and killed through a pidfd, so that a
pid used anew is never hit.
"""

import logging
import os
import signal
from contextlib import suppress
from typing import Final

import anyio
from anyio.to_thread import run_sync
from attrs import field, frozen, mutable

from agent_orchestrator.ports import MARK_VARIABLE

_log = logging.getLogger(__name__)

_PATIENCE: Final = 5.0
"""Seconds after which what does not die is named in the log and left."""

_LOOKS_AGAIN: Final = 4
"""A process in the middle of execve shows an empty environment for a moment."""

_KERNEL_THREAD: Final = 0x0020_0000


@frozen
class _Seen:
    """A live process, from /proc/PID/stat."""

    pid: int
    parent: int
    group: int
    session: int
    flags: int
    started: int
    """Clock ticks since the machine started."""

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


@mutable(eq=False)
class Sweep:
    """Finds and kills what belongs to one agent.

    :param root: the agent's process, process group and session; it must not be reaped before the
        last sweep.
    :param mark: the value of :data:`MARK_VARIABLE` that only this agent's processes have.
    """

    root: int
    mark: str | None
    _known: set[tuple[int, int]] = field(factory=set, init=False)
    """Who belonged to it at an earlier look; a parent's death hides whose child a process was."""
    _lock: anyio.Lock = field(factory=anyio.Lock, init=False)
    _limiter: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(1), init=False)
    """Its own: a sweep must not wait for others' work in threads."""

    async def remember(self) -> None:
        """Note the agent's processes while their ancestry still shows."""
        async with self._lock:
            await run_sync(self._look, limiter=self._limiter)

    async def __call__(self) -> None:
        """Kill all that is left and return when it is gone, or named in the log as immortal."""
        async with self._lock:
            patience = anyio.current_time() + _PATIENCE
            again = _LOOKS_AGAIN
            while True:
                found, unclear = await run_sync(self._look, limiter=self._limiter)
                if found:
                    if anyio.current_time() > patience:
                        pids = ", ".join(str(seen.pid) for seen in found)
                        _log.warning("processes of agent %d do not die: %s", self.root, pids)
                        return
                    await self._kill(found)
                elif unclear and again:
                    again -= 1
                    await anyio.sleep(0.005)
                else:
                    return

    async def _kill(self, found: list[_Seen]) -> None:
        pidfds = [fd for seen in found if (fd := _killed(seen)) is not None]
        try:
            with anyio.move_on_after(0.5):
                for fd in pidfds:
                    await anyio.wait_readable(fd)
        finally:
            for fd in pidfds:
                os.close(fd)

    def _look(self) -> tuple[list[_Seen], bool]:
        """Return the live processes that belong to the agent, and whether some could not be told."""
        alive = [
            seen
            for name in os.listdir("/proc")  # noqa: PTH208 - names are all it takes
            if name.isdigit() and (seen := _stat(int(name))) is not None
        ]
        entry = f"\0{MARK_VARIABLE}={self.mark}\0".encode() if self.mark else None
        since = _started(self.root)
        own = os.getpid()
        ours: dict[int, _Seen] = {}
        unclear = False
        for seen in alive:
            if seen.pid == own or seen.flags & _KERNEL_THREAD:
                continue
            if self.root in (seen.group, seen.session) or seen.identity in self._known:
                ours[seen.pid] = seen
            elif (
                entry is not None
                # What is older than the agent was not started by it.
                and seen.started >= since
                and (environ := _environ(seen.pid)) is not None
            ):
                if entry in environ:
                    ours[seen.pid] = seen
                elif environ == b"\0":
                    unclear = True
        grown = True
        while grown:
            children = {s.pid: s for s in alive if s.parent in ours and s.pid not in ours}
            grown = bool(children)
            ours |= children
        self._known |= {seen.identity for seen in ours.values()}
        return list(ours.values()), unclear


def _stat(pid: int) -> _Seen | None:
    """Return the process, or None when there is none or it is dead already."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    # pid (name) state ppid pgrp session tty tpgid flags …; the name may hold anything
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    parent, group, session = int(fields[1]), int(fields[2]), int(fields[3])
    return _Seen(pid, parent, group, session, int(fields[6]), int(fields[19]))


def _started(pid: int) -> int:
    """Return when a process started, dead or not, in clock ticks since the machine did; 0 when
    there is none.
    """
    text = _read(f"/proc/{pid}/stat")
    return 0 if text is None else int(text[text.rindex(b")") + 2 :].split()[19])


def _environ(pid: int) -> bytes | None:
    environ = _read(f"/proc/{pid}/environ")
    return None if environ is None else b"\0" + environ


def _read(path: str) -> bytes | None:
    """Return a file of /proc; None when its process is gone or another user's."""
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


def _killed(seen: _Seen) -> int | None:
    """Kill the process and return its pidfd; None when it is gone."""
    try:
        pidfd = os.pidfd_open(seen.pid)
    except OSError:
        return None
    again = _stat(seen.pid)
    if again is None or again.identity != seen.identity:
        os.close(pidfd)
        return None
    with suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return pidfd

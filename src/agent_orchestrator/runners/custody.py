"""What is left of an attempt whose keepers are gone: found by what its processes inherited, killed.

While a keeper lives it knows each process of its agent, whatever that did; see
:mod:`agent_orchestrator.runners.guardian`. This is for when the keeper was killed, at once or with
the daemon: a process belongs to an attempt if it bears its *brand* or its mark, or descends from
one that does.

The brand is a number in the soft limit ``RLIMIT_LOCKS``, which Linux has not enforced since 2.4.25.
It passes to every child and through every ``execve``: a new session, a second fork, a clean
environment and closed descriptors do not get rid of it, only setting that limit does.

A process is known by its pid and the tick it started in together, and killed through a pidfd, so that a
pid used anew is never hit.
"""

import os
import signal
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import anyio
from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.ports import MARK_VARIABLE
from agent_orchestrator.processes import birth_of

PATIENCE: Final = 5.0
"""Seconds after which what does not die is given up."""

_LOOKS_AGAIN: Final = 4
"""A process in the middle of execve shows an empty environment for a moment."""

_KERNEL_THREAD: Final = 0x0020_0000
_LOCKS: Final = b"\nMax file locks"


@frozen
class Survivors:
    """What was found of an attempt.

    :param killed: the processes that were alive and are gone.
    :param alive: those that do not die: the kernel holds them, or they are another user's.
    """

    killed: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()


def brand(mark: str) -> int:
    """Return the limit that the processes with this mark bear; no other process has it."""
    return 2**61 | int.from_bytes(blake2b(mark.encode(), digest_size=8).digest()) >> 3


async def end_survivors(
    mark: str | None, pid: int | None = None, born: str | None = None
) -> Survivors:
    """Kill all that is left of an attempt, and return when it is gone.

    Nothing is found of an attempt made before the machine was booted: what processes bear does not
    outlive them.

    :param mark: the value of :data:`~agent_orchestrator.ports.MARK_VARIABLE` that its processes had.
    :param pid: its agent's process, where it was recorded, which led a session and a process group.
    :param born: when that started (:func:`agent_orchestrator.processes.birth_of`); a process of that
        pid that started at another time is a stranger.
    """
    limiter = anyio.CapacityLimiter(1)  # its own: it must not wait for others' work in threads
    killed: dict[int, None] = {}
    patience = anyio.current_time() + PATIENCE
    again = _LOOKS_AGAIN
    while True:
        found, unclear = await run_sync(_look, mark, pid, born, limiter=limiter)
        alive = tuple(seen.pid for seen in found)
        if not found and not (unclear and again):
            return Survivors(tuple(killed))
        if anyio.current_time() > patience:
            return Survivors(tuple(one for one in killed if one not in alive), alive)
        if found:
            killed |= dict.fromkeys(alive)
            await _kill(found)
        else:
            again -= 1
            await anyio.sleep(0.005)


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


def _look(mark: str | None, root: int | None, born: str | None) -> tuple[list[_Seen], bool]:
    """Return the live processes that belong to the attempt, and whether some could not be told."""
    alive = [
        seen
        for name in os.listdir("/proc")  # noqa: PTH208 - names are all it takes
        if name.isdigit() and (seen := _stat(int(name))) is not None
    ]
    own = os.getpid()
    if root is not None and (born is None or birth_of(root) != born):
        root = None
    entry = f"\0{MARK_VARIABLE}={mark}\0".encode() if mark else None
    limit = str(brand(mark)).encode() if mark else None
    ours: set[int] = set()
    unclear = False
    for seen in alive:
        if seen.flags & _KERNEL_THREAD:
            continue
        if root is not None and root in (seen.pid, seen.group, seen.session):
            ours.add(seen.pid)
        elif limit is not None and entry is not None:
            if _lock_limit(seen.pid) == limit:
                ours.add(seen.pid)
            elif (environ := _read(f"/proc/{seen.pid}/environ")) is not None:
                if entry in b"\0" + environ:
                    ours.add(seen.pid)
                elif not environ:
                    unclear = True
    if own in ours:  # it was started by that very agent, and so was what it started
        ours -= _with_descendants({own}, alive)
    alive = [seen for seen in alive if seen.pid != own]
    ours = _with_descendants(ours, alive)
    return [seen for seen in alive if seen.pid in ours], unclear


def _with_descendants(pids: set[int], alive: list[_Seen]) -> set[int]:
    while more := {seen.pid for seen in alive if seen.parent in pids} - pids:
        pids = pids | more
    return pids


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


def _lock_limit(pid: int) -> bytes | None:
    """Return the soft RLIMIT_LOCKS of a process."""
    limits = _read(f"/proc/{pid}/limits")
    if limits is None or (place := limits.find(_LOCKS)) < 0:
        return None
    return limits[place + len(_LOCKS) :].split(None, 1)[0]


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


async def _kill(found: list[_Seen]) -> None:
    pidfds = [fd for seen in found if (fd := _killed(seen)) is not None]
    try:
        with anyio.move_on_after(0.5):
            for fd in pidfds:
                await anyio.wait_readable(fd)
    finally:
        for fd in pidfds:
            os.close(fd)


def _killed(seen: _Seen) -> int | None:
    """Kill the process and return its pidfd; None when it is gone."""
    try:
        pidfd = os.pidfd_open(seen.pid)
    except OSError:
        return None
    again = _stat(seen.pid)
    if again is None or (again.pid, again.started) != (seen.pid, seen.started):
        os.close(pidfd)
        return None
    with suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return pidfd

"""Finds and kills the processes of an attempt whose supervisor was killed.

While a supervisor lives, it knows every process of its agent; see
:mod:`agent_orchestrator.hosts.linux.forkserver`. Without a supervisor, a process belongs to an
attempt if it has the attempt's *tag limit* or tag, or descends from such a process.

The tag limit is a number in the soft limit ``RLIMIT_LOCKS``, which Linux has not enforced since
2.4.25. Every child and every ``execve`` inherits it. A new session, a second fork, a clean
environment and closed descriptors do not remove it; only setting the limit does.

A process is identified by its pid and start tick, and killed through a pidfd, so a reused pid is
never hit.
"""

import os
import signal
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Final

import anyio
from anyio.to_thread import run_sync

from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import ReapResult
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import (
    Process,
    live_process,
    live_processes,
    lock_limit_of,
    process_start_id,
    read_proc,
    with_descendants,
)

KILL_TIMEOUT_S: Final = 5.0
"""Seconds after which processes that do not die are given up."""

_RESCANS: Final = 4
"""Maximum number of repeated searches because a process showed no environment. In the middle of ``execve``
a process shows none for a moment."""

_RESCAN_S: Final = 0.005
"""Seconds until such a search is repeated."""

_TAG_LIMIT: Final = 2**61


def tag_limit(tag: str) -> int:
    """Return the tag limit for a tag. Only processes with this tag have it."""
    return _TAG_LIMIT | int.from_bytes(blake2b(tag.encode(), digest_size=8).digest()) >> 3


def is_tag_limit(limit: bytes | None) -> bool:
    """Return whether a soft RLIMIT_LOCKS is the tag limit of any daemon's agent."""
    return limit is not None and limit.isdigit() and int(limit) >> 61 == _TAG_LIMIT >> 61


async def kill_orphans(
    tag: str | None, pid: int | None = None, start_id: str | None = None
) -> ReapResult:
    """Kill the remaining processes of an attempt, and return when they are gone.

    :param tag: the value of :data:`~agent_orchestrator.ports.runner.TAG_VARIABLE` that its processes had.
    :param pid: the pid of its agent, if it was recorded. The agent led a session and a process group.
    :param start_id: the start of that process (:func:`agent_orchestrator.processes.process_start_id`). A
        process with the same pid and another start is not the agent.
    """
    entries = [_entry(TAG_VARIABLE, tag)] if tag else []
    limit = str(tag_limit(tag)).encode() if tag else None
    return await _kill_all(partial(_scan, entries, limit, pid, start_id))


async def tags_with_processes(attempts: Collection[Attempt]) -> set[str]:
    """Return the tags of the attempts that have processes. Each process is read once, for all attempts.

    The others need no search. :func:`kill_orphans` searches for the processes of one attempt.
    """
    limiter = anyio.CapacityLimiter(1)  # the default limiter's threads may all be busy
    found: set[str] = set()
    for _ in range(1 + _RESCANS):
        tags, unclear = await run_sync(_tags_of_processes, attempts, limiter=limiter)
        found |= tags
        if not unclear:
            break
        await anyio.sleep(_RESCAN_S)
    return found


async def kill_by_variable(name: str, values: Collection[str]) -> Sequence[int]:
    """See :meth:`agent_orchestrator.host.Host.kill_by_variable`."""
    entries = [_entry(name, value) for value in values]
    return (await _kill_all(partial(_scan, entries))).ended


def _entry(name: str, value: str) -> bytes:
    return f"\0{name}={value}\0".encode()


async def _kill_all(scan: Callable[[], tuple[list[Process], bool]]) -> ReapResult:
    limiter = anyio.CapacityLimiter(1)  # the default limiter's threads may all be busy
    killed: dict[int, None] = {}
    give_up_at = anyio.current_time() + KILL_TIMEOUT_S
    rescans_left = _RESCANS
    while True:
        processes, unclear = await run_sync(scan, limiter=limiter)
        alive = tuple(process.pid for process in processes)
        if not processes and not (unclear and rescans_left):
            return ReapResult("gone", tuple(killed))
        if anyio.current_time() > give_up_at:
            ended = tuple(pid for pid in killed if pid not in alive)
            return ReapResult("alive" if alive else "gone", ended, alive)
        if processes:
            killed |= dict.fromkeys(alive)
            await _kill(processes)
        else:
            rescans_left -= 1
            await anyio.sleep(_RESCAN_S)


def _tags_of_processes(attempts: Collection[Attempt]) -> tuple[set[str], bool]:
    """Return the tags of the attempts that have processes, as :func:`_scan` finds them, without descendants. Also
    return whether some other process showed no environment.
    """
    tags = {attempt.tag.encode(): attempt.tag for attempt in attempts}
    limits = {str(tag_limit(tag)).encode(): tag for tag in tags.values()}
    roots: dict[int, set[str]] = {}
    for attempt in attempts:  # several of them, if one process serves several sessions
        pid, start_id = attempt.pid, attempt.process_start_id
        if pid is not None and start_id is not None and process_start_id(pid) == start_id:
            roots.setdefault(pid, set()).add(attempt.tag)
    variable = f"{TAG_VARIABLE}=".encode()
    found: set[str] = set()
    unclear = False
    for process in live_processes():
        if process.is_kernel_thread:
            continue
        ours = set[str]()
        for pid in (process.pid, process.group, process.session):
            ours |= roots.get(pid, set())
        if (tag := limits.get(lock_limit_of(process.pid) or b"")) is not None:
            ours.add(tag)
        if (environ := read_proc(f"/proc/{process.pid}/environ")) is not None:
            unclear |= not environ and not ours
            for entry in environ.split(b"\0"):
                if entry.startswith(variable) and entry.removeprefix(variable) in tags:
                    ours.add(tags[entry.removeprefix(variable)])
        found |= ours
    return found, unclear


def _scan(
    entries: Collection[bytes],
    limit: bytes | None = None,
    root: int | None = None,
    start_id: str | None = None,
) -> tuple[list[Process], bool]:
    """Return the live processes with one of these variables, this tag limit or this root, and their
    descendants. Also return whether some process showed no environment.
    """
    alive = live_processes()
    own_pid = os.getpid()
    if root is not None and (start_id is None or process_start_id(root) != start_id):
        root = None
    ours: set[int] = set()
    unclear = False
    for process in alive:
        if process.is_kernel_thread:
            continue
        if (root is not None and root in (process.pid, process.group, process.session)) or (
            limit is not None and lock_limit_of(process.pid) == limit
        ):
            ours.add(process.pid)
        elif entries and (environ := read_proc(f"/proc/{process.pid}/environ")) is not None:
            if any(entry in b"\0" + environ for entry in entries):
                ours.add(process.pid)
            elif not environ:
                unclear = True
    if own_pid in ours:  # that agent started this process
        ours -= with_descendants({own_pid}, alive)
    alive = [process for process in alive if process.pid != own_pid]
    ours = with_descendants(ours, alive)
    return [process for process in alive if process.pid in ours], unclear


async def _kill(processes: list[Process]) -> None:
    pidfds = [fd for process in processes if (fd := _kill_process(process)) is not None]
    try:
        with anyio.move_on_after(0.5):
            for fd in pidfds:
                await anyio.wait_readable(fd)
    finally:
        for fd in pidfds:
            os.close(fd)


def _kill_process(process: Process) -> int | None:
    """Kill the process and return its pidfd; None if it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    current = live_process(process.pid)
    if current is None or (current.pid, current.started) != (process.pid, process.started):
        os.close(pidfd)
        return None
    with suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return pidfd

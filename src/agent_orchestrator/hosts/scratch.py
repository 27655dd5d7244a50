"""Private files for an agent's program during a run.

Each run has a directory, locked during the run. An unlocked directory belongs to a killed daemon.
"""

import fcntl
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
from anyio.to_thread import run_sync

from agent_orchestrator.hosts import trees
from agent_orchestrator.processes import flock_holder
from agent_orchestrator.user_state import make_private_directory, user_state

_PREFIX: Final = "run-"


_LOCK_TIMEOUT_S: Final = 5.0
"""Seconds to wait for the lock of the directory of all runs. A starting daemon holds it briefly, to
remove old directories."""

_LOCK_PAUSE_S: Final = 0.05


@asynccontextmanager
async def private_directory() -> AsyncIterator[Path]:
    """Create a directory that only this user may use. Remove it and its contents at the end.

    It is in the user's state directory. If there is none, it is in the directory for temporary
    files, and remains if this process is killed.

    :raises OSError: if it cannot be created, or the directory of all runs stays locked for 5 s.
    """
    stack = ExitStack()
    try:
        yield await _enter_directory(stack)
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(stack.close)


async def _enter_directory(stack: ExitStack) -> Path:
    give_up_at = anyio.current_time() + _LOCK_TIMEOUT_S
    while True:
        try:
            return await run_sync(stack.enter_context, _directory())
        except BlockingIOError:
            # A thread that waits for a lock cannot be cancelled, so each try returns at once.
            if anyio.current_time() >= give_up_at:
                raise
        await anyio.sleep(_LOCK_PAUSE_S)


@contextmanager
def _directory() -> Iterator[Path]:
    """Create a locked directory, and remove it on leaving.

    :raises BlockingIOError: if another process has locked the directory of all runs.
    :raises OSError: if it cannot be created.
    """
    state = user_state()
    if state is None:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            yield path
        finally:
            trees.remove(path)
        return
    base = state.runs
    make_private_directory(base)
    # No clean-up may run before the new directory is locked.
    with _locked(base, fcntl.LOCK_SH):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        try:
            held = _lock(path, fcntl.LOCK_EX)
        except OSError:
            trees.remove(path)
            raise
    try:
        yield path
    finally:
        trees.remove(path)
        os.close(held)


def write(path: Path, data: bytes) -> None:
    """Write a new file that only this user may read.

    :raises OSError: if it cannot be written, or exists.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123
        file.write(data)


def remove_stale() -> None:
    """Remove the directories of runs whose daemon is gone. If a run is creating its directory at the same
    moment, do nothing; the next start removes them.
    """
    state = user_state()
    if state is None:
        return
    with suppress(OSError), _locked(state.runs, fcntl.LOCK_EX):
        for path in state.runs.glob(f"{_PREFIX}*"):
            with suppress(OSError), trees.opened(path), _locked(path, fcntl.LOCK_EX):
                trees.remove(path)


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    held = _lock(path, mode)
    try:
        yield
    finally:
        os.close(held)


def _lock(path: Path, mode: int) -> int:
    """Lock a directory without waiting, and return the descriptor that holds the lock.

    :raises BlockingIOError: if another process has locked it.
    :raises OSError: if there is no such directory.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError as error:
        status = os.fstat(descriptor)
        os.close(descriptor)
        holder = flock_holder(status.st_dev, status.st_ino)
        owner = f"process {holder}" if holder else "another process"
        raise BlockingIOError(error.errno, f"{owner} has locked it", str(path)) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

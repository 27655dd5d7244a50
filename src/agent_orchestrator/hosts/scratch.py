"""Private files that an agent's program reads, for as long as its run.

Each run has its own directory, locked for as long as the run lasts. A directory that is not locked was
left by a daemon that was killed.
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
"""How long another program may have the directory of all runs locked. A daemon that starts needs it for a
moment, to remove what is left there."""

_LOCK_PAUSE_S: Final = 0.05


@asynccontextmanager
async def private_directory() -> AsyncIterator[Path]:
    """Make a directory that only this user may use; remove it and all that is in it afterwards.

    It is in the user's state directory. Where there is no place for one, it is in the directory for
    temporary files, and stays there if this process is killed.

    :raises OSError: if it cannot be made, or others keep the directory of all runs locked for 5 s.
    """
    made = ExitStack()
    try:
        yield await _made(made)
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(made.close)


async def _made(made: ExitStack) -> Path:
    give_up_at = anyio.current_time() + _LOCK_TIMEOUT_S
    while True:
        try:
            return await run_sync(made.enter_context, _directory())
        except BlockingIOError:
            # A thread that waits for a lock cannot be stopped. So no try waits.
            if anyio.current_time() >= give_up_at:
                raise
        await anyio.sleep(_LOCK_PAUSE_S)


@contextmanager
def _directory() -> Iterator[Path]:
    """Make a directory, and remove it afterwards.

    :raises BlockingIOError: if others have a directory locked that is needed.
    :raises OSError: if it cannot be made.
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
    # Nobody looks for what is left while the new one is not locked yet.
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

    :raises OSError: if it cannot be written, or is there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123
        file.write(data)


def remove_stale() -> None:
    """Remove the directories of runs whose daemon is gone.

    Where a run makes its own at that moment, they are left to the next start.
    """
    state = user_state()
    if state is None:
        return
    with suppress(OSError), _locked(state.runs, fcntl.LOCK_EX):
        for path in state.runs.glob(f"{_PREFIX}*"):
            with suppress(OSError), trees.opened(path), _locked(path, fcntl.LOCK_EX):
                trees.remove(path)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    held = _lock(path, how)
    try:
        yield
    finally:
        os.close(held)


def _lock(path: Path, how: int) -> int:
    """Return a descriptor that holds the lock of a directory. Never wait for it.

    :raises BlockingIOError: if others have it locked.
    :raises OSError: if there is no such directory.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        found = os.fstat(descriptor)
        os.close(descriptor)
        holder = flock_holder(found.st_dev, found.st_ino)
        caller = f"process {holder}" if holder else "another process"
        raise BlockingIOError(error.errno, f"{caller} has it locked", str(path)) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

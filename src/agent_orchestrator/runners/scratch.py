"""Private files that an agent's program reads, for as long as its run.

Each run has its own directory, locked for as long as the run lasts. A directory that is not locked was
left by a daemon that was killed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agent_orchestrator.user_state import make_private_directory, user_state

_PREFIX: Final = "run-"


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory that only this user may use; remove it and all that is in it afterwards.

    It is in the user's state directory. Where there is no place for one, it is in the directory for
    temporary files, and stays there if this process is killed.

    :raises OSError: if it cannot be made.
    """
    state = user_state()
    if state is None:
        with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    base = state.runs
    make_private_directory(base)
    with _locked(base, fcntl.LOCK_SH):  # nobody looks for what is left while it is not locked yet
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        held = _lock(path, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def write(path: Path, data: bytes) -> None:
    """Write a new file that only this user may read.

    :raises OSError: if it cannot be written, or is there.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123
        file.write(data)


def remove_leftovers() -> None:
    """Remove the directories of runs whose daemon is gone.

    Where a run makes its own at that moment, they are left to the next start.
    """
    state = user_state()
    if state is None:
        return
    with suppress(OSError), _locked(state.runs, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for path in state.runs.glob(f"{_PREFIX}*"):
            with suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    held = _lock(path, how)
    try:
        yield
    finally:
        os.close(held)


def _lock(path: Path, how: int) -> int:
    """Return a descriptor that holds the lock of a directory.

    :raises OSError: if there is no such directory, or it is locked and not to be waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

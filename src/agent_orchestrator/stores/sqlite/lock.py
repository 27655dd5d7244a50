"""One process (and one store in it) at a time: an exclusive lock on a file beside the database."""

import fcntl
import os
from pathlib import Path
from typing import Self

from agent_orchestrator.domain.errors import StoreLocked


class FileLock:
    """An exclusive ``flock``, held until it is released or the process ends however it ends.

    The database file itself is not locked so: closing any descriptor of it would drop the locks
    SQLite holds (a property of POSIX locks).
    """

    def __init__(self, path: Path, descriptor: int, *, created: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._created = created

    @classmethod
    def take(cls, path: Path, what: str) -> Self:
        """Lock the file, made if need be, and write our pid into it for others to name.

        :param what: what the lock stands for, for the message.
        :raises StoreLocked: if somebody has it.
        :raises OSError: if the file cannot be made or opened.
        """
        while True:
            created = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _lock(descriptor, what)
                if _is_still(path, descriptor):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                    return cls(path, descriptor, created=created)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        os.close(self._descriptor)

    def release_unused(self) -> None:
        """Release it, and take the file away again if it was not there before."""
        if self._created:
            self._path.unlink()
        os.close(self._descriptor)


def _lock(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        holder = f"process {pid}" if pid else "another process"
        raise StoreLocked(f"{what} is in use by {holder}; only one may have it open") from None


def _is_still(path: Path, descriptor: int) -> bool:
    """Tell whether the file we locked is the one at the path: its holder may have unlinked it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

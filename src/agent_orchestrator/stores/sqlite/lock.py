"""One process (and one store in it) at a time: an exclusive lock on a file beside the database."""

import fcntl
import os
from pathlib import Path
from typing import Self

from agent_orchestrator.domain.errors import StoreLocked


class FileLock:
    """An exclusive ``flock``, held until it is released or the process ends however it ends.

    The database file itself is not locked so: closing any descriptor of it would drop the locks
    SQLite holds (a property of POSIX locks). The file stays when the lock is released: to remove it
    would let two processes lock two files of one name.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, what: str) -> Self:
        """Lock the file, made if need be.

        :param what: what the lock stands for, for the message.
        :raises StoreLocked: if somebody has it.
        :raises OSError: if the file cannot be made or opened.
        """
        # Python opens files so that child processes do not inherit them, and with them the lock.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            holder = f"process {pid}" if pid else "another process"
            raise StoreLocked(f"{what} is in use by {holder}; only one may have it open") from None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def sign(self) -> None:
        """Write our pid into the file, for others to name."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.close(self._descriptor)

"""An exclusive lock on an open file: one process, and one store in it, at a time."""

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Final, Self

from agent_orchestrator.domain.errors import StoreLocked
from agent_orchestrator.processes import flock_holder

FileId = tuple[int, int]
"""Device and inode: the same for every name of a file, in every mount namespace."""

_GUARD: Final = threading.Lock()
"""Held while a file is opened or closed here, and during a fork."""

_HELD: Final[dict[FileId, "FileLock"]] = {}
"""The locks of this process."""


def file_id(path: Path) -> FileId:
    """Return the identity of the file at a path.

    :raises OSError: if ``stat`` fails.
    """
    status = path.stat()
    return status.st_dev, status.st_ino


class FileLock:
    """An exclusive ``flock``. It ends when its owner releases it or when the process ends.

    The lock belongs to the file, not to its path. SQLite's own locks are POSIX locks. They do not
    conflict with this one, but a process loses its POSIX locks on a file when it closes any
    descriptor of that file. Therefore a locked file is never opened here a second time.

    A forked child inherits the descriptor and with it the lock. The child closes it at once; only
    the process that took the lock can release it.
    """

    def __init__(self, descriptor: int, file_id: FileId) -> None:
        self.descriptor = descriptor
        self.file_id = file_id
        self._owner = os.getpid()

    @classmethod
    def take(
        cls, path: Path, subject: str, *, create: bool = False, signed: Path | None = None
    ) -> Self:
        """Lock a file.

        :param subject: what is locked, for error messages.
        :param create: create the file if it does not exist.
        :param signed: a file that names the holder (see :meth:`sign`), in case the kernel does not.
        :raises StoreLocked: if the file is already locked.
        :raises OSError: if the file cannot be created or opened.
        """
        with _GUARD:
            with contextlib.suppress(FileNotFoundError):
                if file_id(path) in _HELD:
                    raise _in_use(subject, str(os.getpid()))
            flags = os.O_RDWR | os.O_NONBLOCK | (os.O_CREAT if create else 0)
            # Python opens files close-on-exec, so executed programs do not inherit the descriptor.
            descriptor = os.open(path, flags, 0o600)
            status = os.fstat(descriptor)
            locked_id = status.st_dev, status.st_ino
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                holder = flock_holder(*locked_id) or (_signature(signed) if signed else None)
                raise _in_use(subject, holder) from None
            except BaseException:
                os.close(descriptor)
                raise
            lock = cls(descriptor, locked_id)
            _HELD[locked_id] = lock
            return lock

    def sign(self) -> None:
        """Write this process's pid into the file, for the error messages of others."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Release the lock, even if children still have a copy of the descriptor.

        Does nothing in a forked child.
        """
        with _GUARD:
            if self._owner == os.getpid() and _HELD.pop(self.file_id, None) is self:
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
                os.close(self.descriptor)


def _in_use(subject: str, holder: str | None) -> StoreLocked:
    named = f"process {holder}" if holder else "another process"
    return StoreLocked(f"{subject} is in use by {named}; only one process can open it")


def _signature(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return str(int(path.read_bytes()[:32]))
    return None


def _forget_in_child() -> None:
    for lock in _HELD.values():
        os.close(lock.descriptor)
    _HELD.clear()
    _GUARD.release()


os.register_at_fork(
    before=_GUARD.acquire, after_in_parent=_GUARD.release, after_in_child=_forget_in_child
)

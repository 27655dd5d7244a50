"""Reserved space on the disk. It is freed when the disk is full, so that outcomes can still be
recorded.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Final

SIZE: Final = 4 * 1024 * 1024
"""Reserved bytes: enough for thousands of small outcomes, or a few large ones."""

MARGIN: Final = 1024 * 1024
"""Bytes that must be free besides the ballast. With fewer, the disk counts as full."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Ballast:
    """A file beside the database that only occupies space."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".ballast")

    def fill(self) -> None:
        """Reserve the space, and check that more than that is free. Does nothing more if it is reserved.

        :raises OSError: if that fails. Its errno is one of ``NO_ROOM`` if the disk is full.
        """
        self._take()
        if not self.has_room():
            self.release()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            held = os.fstat(descriptor)
            if held.st_size != SIZE or held.st_blocks * 512 < SIZE:
                _allocate(descriptor)
        except OSError:
            os.ftruncate(descriptor, 0)
            raise
        finally:
            os.close(descriptor)

    def has_room(self) -> bool:
        """Return True if at least ``MARGIN`` bytes are free besides the ballast."""
        status = os.statvfs(self.path.parent)
        return status.f_bavail * status.f_frsize >= MARGIN

    def release(self) -> None:
        """Free the space."""
        self.path.unlink(missing_ok=True)


def _allocate(descriptor: int) -> None:
    if sys.platform == "darwin":  # it has no posix_fallocate
        os.pwrite(descriptor, bytes(SIZE), 0)
    else:
        os.posix_fallocate(descriptor, 0, SIZE)

"""Room on the disk kept for later: given back when there is no other, so that outcomes can still
be recorded.
"""

import errno
import os
from pathlib import Path
from typing import Final

SIZE: Final = 4 * 1024 * 1024
"""Bytes kept: some thousands of small outcomes, or a few large ones."""

MARGIN: Final = 1024 * 1024
"""Bytes that must be free beside the ballast before the disk counts as one with room again."""

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Ballast:
    """A file beside the database that takes up room and says nothing."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".ballast")

    def fill(self) -> None:
        """Take the room up, unless it is, where some more is left then.

        :raises OSError: if that fails, with one of ``NO_ROOM`` where there is none.
        """
        self._take()
        if not self.has_room():
            self.release()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            held = os.fstat(descriptor)
            if held.st_size != SIZE or held.st_blocks * 512 < SIZE:
                os.posix_fallocate(descriptor, 0, SIZE)
        except OSError:
            os.ftruncate(descriptor, 0)
            raise
        finally:
            os.close(descriptor)

    def has_room(self) -> bool:
        """Tell whether more than next to nothing is free beside the ballast."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize >= MARGIN

    def release(self) -> None:
        """Give the room back."""
        self.path.unlink(missing_ok=True)

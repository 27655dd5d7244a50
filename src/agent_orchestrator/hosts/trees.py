"""Removal of directories with arbitrary contents: of any depth, without following links or entering
mounts.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

REMOVE_TIMEOUT_S: Final = 10.0
"""Maximum seconds to remove a tree. A process that keeps adding files must not block the caller."""

_SEARCH: Final[int] = getattr(os, "O_PATH", os.O_RDONLY)
"""The flag to open a directory without permission to read it. Only Linux has one."""

_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: Path) -> None:
    """Remove a directory and its contents, as far as possible within :data:`REMOVE_TIMEOUT_S`.

    It does not recurse: nested directories are first moved to the top. So two descriptors and little memory
    are enough for every depth. Missing permissions are added. Links are removed, not followed. Mounts are
    not entered. An entry that cannot be removed remains.
    """
    give_up_at = time.monotonic() + REMOVE_TIMEOUT_S
    with suppress(OSError), opened(path) as top:
        has_moved = True
        while has_moved and time.monotonic() < give_up_at:
            has_moved = False
            for name in os.listdir(top):  # noqa: PTH208 - of a descriptor
                has_moved |= _removed(top, name, give_up_at)
                if time.monotonic() > give_up_at:
                    break
    with suppress(OSError):
        path.rmdir()


def _removed(top: int, name: str, give_up_at: float) -> bool:
    """Remove an entry of a directory. Return True if anything was removed or moved.

    Directories within the entry are moved to ``top``.

    :param give_up_at: when to stop, in seconds of :func:`time.monotonic`.
    """
    if _is_unlinked(top, name):
        return True
    has_moved = False
    with suppress(OSError):
        with opened(name, top) as directory:
            for inner in os.listdir(directory):  # noqa: PTH208
                if time.monotonic() > give_up_at:
                    return has_moved
                if not (_is_unlinked(directory, inner) or _is_empty_removed(directory, inner)):
                    has_moved |= _is_moved(directory, inner, top)
        os.rmdir(name, dir_fd=top)
        return True
    return has_moved


def _is_unlinked(directory: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:  # a directory, or no permission
        return False
    return True


def _is_empty_removed(directory: int, name: str) -> bool:
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError:
        return False
    return True


def _is_moved(directory: int, name: str, top: int) -> bool:
    try:
        with opened(name, directory):  # moving a directory needs its permissions
            pass
        os.rename(name, f".{secrets.token_hex(8)}", src_dir_fd=directory, dst_dir_fd=top)
    except OSError:
        return False
    return True


@contextmanager
def opened(path: str | Path, directory: int | None = None) -> Iterator[int]:
    """Open a directory, and give its owner all permissions.

    :param directory: what the path is relative to; None means the current directory.
    :raises OSError: if it is not a directory, or a mount point.
    """
    if directory is None:
        parent = os.open(Path(path).parent, _SEARCH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with opened(Path(path).name, parent) as descriptor:
                yield descriptor
        finally:
            os.close(parent)
        return
    child = os.open(path, _SEARCH | _DIRECTORY, dir_fd=directory)
    try:
        if _mount_of(child) != _mount_of(directory):
            raise OSError(errno.EXDEV, "Is on another mount", str(path))
        if _SEARCH == os.O_RDONLY:
            os.fchmod(child, 0o700)
            held = os.dup(child)
        else:
            itself = f"/proc/self/fd/{child}"
            if os.fstat(child).st_mode & 0o700 != 0o700:
                os.chmod(itself, 0o700)  # noqa: PTH101 - follows the link on purpose
            held = os.open(itself, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(child)
    try:
        yield held
    finally:
        os.close(held)


def _mount_of(descriptor: int) -> int | str:
    """Return the mount id of an open file; its device if the system reports no mount id.

    A bind mount has the device of the directory that it shows.
    """
    with suppress(OSError), open(f"/proc/self/fdinfo/{descriptor}") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("mnt_id:"):
                return line
    return os.fstat(descriptor).st_dev

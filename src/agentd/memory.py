"""Settings of the C library's memory allocator."""

import ctypes
from contextlib import suppress
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_LARGE_BLOCK: Final = 2**20


def return_large_blocks() -> None:
    """Return free blocks of 1 MiB or more to the system at once.

    By default glibc keeps free blocks of up to 32 MiB, so that a process can hold several times the
    memory that it uses. Other C libraries ignore this.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)

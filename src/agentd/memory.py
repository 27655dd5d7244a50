"""How the C library keeps memory that is free."""

import ctypes
from contextlib import suppress
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_LARGE_BLOCK: Final = 2**20


def return_large_blocks() -> None:
    """Have blocks of 1 MiB and more go back to the system once they are free.

    Otherwise glibc keeps them for later once it has seen one, up to 32 MiB each, and between them
    the memory of a process grows to several times what it uses. Other C libraries have no such limit.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)

"""Which configuration files found in a directory their user has trusted, in exactly which form."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Final

from attrs import frozen

from agent_orchestrator.user_state import (
    UserState,
    make_private_directory,
    read_private,
    write_private,
)

_LARGEST: Final = 1 << 20
"""Bytes of the largest configuration file."""


@frozen
class FoundFile:
    """A file as it was read: what is judged and what is used are the same bytes.

    :param path: absolute, its directory without symbolic links.
    """

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """The SHA-256 of the content, as hex."""
        return hashlib.sha256(self.content).hexdigest()


def found_file(path: Path) -> FoundFile:
    """Read a file once.

    :raises OSError: if it cannot be read, is no file, or is larger than 1 MiB.
    """
    absolute = Path(os.path.realpath(path.absolute().parent), path.name)
    # Whoever put it there may have made it a pipe, which would be waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with open(os.open(absolute, flags), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Is not a file", str(absolute))
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(absolute))
    return FoundFile(absolute, content)


def is_blank(found: FoundFile) -> bool:
    """Return whether a TOML file holds blank lines and comments only, so that it sets nothing."""
    lines = (line.strip() for line in found.content.splitlines())
    return all(not line or line.startswith(b"#") for line in lines)


def is_trusted(state: UserState | None, found: FoundFile) -> bool:
    """Return whether the user has trusted this path with this content."""
    content = None if state is None else read_private(_record(state, found.path))
    if content is None:
        return False
    try:
        told = json.loads(content)
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("sha256") == found.digest


def trust(state: UserState, found: FoundFile) -> None:
    """Record that the user trusts this path with this content, and with no other.

    :raises OSError: if it cannot be recorded.
    """
    make_private_directory(state.root)
    make_private_directory(state.trusted)
    told = {"path": os.fspath(found.path), "sha256": found.digest}
    write_private(_record(state, found.path), json.dumps(told).encode() + b"\n")


def _record(state: UserState, path: Path) -> Path:
    return state.trusted / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"

"""The configuration files that the user trusts, each with its exact content."""

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
"""Maximum size of a configuration file, in bytes."""


@frozen
class FoundFile:
    """A file and its content. It is read once, so that the checked and the used bytes are the same.

    :param path: absolute, its directory without symbolic links.
    """

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


def found_file(path: Path) -> FoundFile:
    """Read a file once.

    :raises OSError: if it cannot be read, is not a regular file, or is larger than 1 MiB.
    """
    absolute = _absolute(path)
    # It may be a pipe, which would block the open.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with open(os.open(absolute, flags), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Is not a file", str(absolute))
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(absolute))
    return FoundFile(absolute, content)


def is_blank(file: FoundFile) -> bool:
    """Return True if a TOML file has only blank lines and comments."""
    lines = (line.strip() for line in file.content.splitlines())
    return all(not line or line.startswith(b"#") for line in lines)


def is_trusted(state: UserState | None, file: FoundFile) -> bool:
    """Return True if the user trusts this path with this content."""
    content = None if state is None else read_private(_record(state, file.path))
    if content is None:
        return False
    try:
        record = json.loads(content)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("sha256") == file.digest


def trust(state: UserState, file: FoundFile) -> None:
    """Record that the user trusts this path with this content only.

    :raises OSError: if the record cannot be written.
    """
    make_private_directory(state.root)
    make_private_directory(state.trusted)
    record = {"path": os.fspath(file.path), "sha256": file.digest}
    write_private(_record(state, file.path), json.dumps(record).encode() + b"\n")


def forget(state: UserState, path: Path) -> None:
    """Remove the record that the user trusts this path with some content.

    :raises OSError: if it cannot be removed.
    """
    _record(state, _absolute(path)).unlink(missing_ok=True)


def _absolute(path: Path) -> Path:
    return Path(os.path.realpath(path.absolute().parent), path.name)


def _record(state: UserState, path: Path) -> Path:
    return state.trusted / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"

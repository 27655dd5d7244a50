"""Reads a file that an agent wants to change, so that a person sees the difference.

A question must not show the content of a file that the agent cannot read, neither to the agent nor to the person who decides. So only
files are read that an agent reads without asking: those in its working directory, and not through symbolic links.
"""

import os
import stat
from collections.abc import Collection, Sequence
from typing import Final

from attrs import frozen

from agent_orchestrator.runners.paths import upwards

_MAX_SIZE: Final = 2**20
"""Maximum bytes of a file that is read."""


@frozen
class PresentFile:
    """A file before a change.

    :param text: its content; None if it is not read.
    """

    exists: bool
    text: str | None = None


def present_file(path: str, directory: str, secret: Collection[str]) -> PresentFile:
    """Return the file at an absolute path. Blocks.

    :param directory: the working directory of the agent.
    :param secret: paths that it must not read.
    """
    if not path.startswith("/") or "\0" in path:
        return PresentFile(exists=True)  # not known
    real = os.path.realpath(directory)
    wanted = os.path.normpath(path)
    for base in (directory, real):
        if wanted.startswith(f"{base.rstrip('/')}/"):
            below = os.path.relpath(wanted, base)
            if {*upwards(f"{real}/{below}")}.isdisjoint(secret):
                try:
                    return PresentFile(exists=True, text=_read(real, below.split("/")))
                except OSError:
                    break
    return PresentFile(os.path.lexists(wanted))


def _read(directory: str, parts: Sequence[str]) -> str | None:
    """Return the text of a file below a directory; None if it is no text, or too long.

    :raises OSError: if it cannot be read, or a symbolic link leads to it.
    """
    *folders, name = parts
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = below
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    finally:
        os.close(place)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        data = os.read(file, _MAX_SIZE + 1)
    finally:
        os.close(file)
    try:
        return None if len(data) > _MAX_SIZE else data.decode()
    except UnicodeDecodeError:
        return None

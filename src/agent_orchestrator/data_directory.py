"""The directory that is made for a database: private, and out of git's sight."""

from pathlib import Path
from typing import Final

from agent_orchestrator.user_state import make_private_directory

_MARK: Final = "# Made by agent-orchestrator: the daemon's database and log are in here.\n*\n"
"""What keeps the directory out of git, and tells that it holds nothing else."""


def make_data_directory(folder: Path) -> None:
    """Create the directory of a database where it is missing: private, and out of git's sight.

    A directory that exists is left as it is.

    :raises OSError: if it cannot be made.
    """
    if folder.exists():
        return
    make_private_directory(folder)
    ignored = folder / ".gitignore"
    ignored.write_text(_MARK)
    ignored.chmod(0o600)


def is_data_directory(folder: Path) -> bool:
    """Tell whether a directory was made for a database, so that all in it is the daemon's."""
    try:
        with (folder / ".gitignore").open() as file:
            return file.read(len(_MARK)) == _MARK
    except (OSError, ValueError):
        return False

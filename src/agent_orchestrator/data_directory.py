"""The directory of a database: private, and ignored by git."""

from pathlib import Path
from typing import Final

from agent_orchestrator.user_state import make_private_directory

_GITIGNORE: Final = "# Made by agent-orchestrator: the daemon's database and log are in here.\n*\n"
"""The content of the directory's ``.gitignore``. The file also shows that the directory was created for a
database."""


def make_data_directory(folder: Path) -> None:
    """Create the directory of a database, private and ignored by git, if it does not exist.

    :raises OSError: if it cannot be created.
    """
    if folder.exists():
        return
    make_private_directory(folder)
    ignored = folder / ".gitignore"
    ignored.write_text(_GITIGNORE)
    ignored.chmod(0o600)


def is_data_directory(folder: Path) -> bool:
    """Return True if a directory was created for a database, so that all its files are the daemon's."""
    try:
        with (folder / ".gitignore").open() as file:
            return file.read(len(_GITIGNORE)) == _GITIGNORE
    except (OSError, ValueError):
        return False

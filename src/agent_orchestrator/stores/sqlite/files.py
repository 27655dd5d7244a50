"""The files of a database."""

from typing import Final

OWN_FILES: Final = (
    "",
    "-wal",
    "-shm",
    "-journal",
    ".lock",
    ".commits",
    ".commits.new",
    ".ballast",
    "-stopped",
)
"""What the database's files are called besides its name."""

SECRET_FILES: Final = ("", "-wal", "-shm")
"""Those that hold what users and agents said."""

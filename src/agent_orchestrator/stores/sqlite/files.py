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

PARTS: Final = ("", "-wal", "-shm")
"""Those an open database consists of, which must belong together."""

SECRET_FILES: Final = PARTS
"""Those that hold what users and agents said."""

"""Names of the files of a database."""

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
"""Suffixes of all files that belong to a database."""
PARTS: Final = ("", "-wal", "-shm")
"""Suffixes of the files an open database consists of. They must belong together."""
SECRET_FILES: Final = PARTS
"""Suffixes of the files that contain conversations."""

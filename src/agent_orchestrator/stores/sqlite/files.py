"""Names of the files of a database."""

from pathlib import Path
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
    ".push-key",
)
"""Suffixes of all files that belong to a database."""
PARTS: Final = ("", "-wal", "-shm")
"""Suffixes of the files an open database consists of. They must belong together."""
PUSH_KEY: Final = ".push-key"
"""Suffix of the file with the key that signs messages to push services."""

SECRET_FILES: Final = (*PARTS, PUSH_KEY)
"""Suffixes of the files that contain conversations or keys."""


def push_key_file(database: Path | None) -> Path | None:
    """Return the file of a database's key for push services; None if the database has no file."""
    return None if database is None else database.with_name(database.name + PUSH_KEY)

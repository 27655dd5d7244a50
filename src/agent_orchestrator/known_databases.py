"""Records of the databases that a user has used, to refuse one that came with a repository.

Opening a database executes its queued runs and gives access to its tokens. Anyone who can put a file
into a directory could exploit that. So a database at the default path is opened only if its name is
recorded. A database that the settings name needs no record.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent_orchestrator.user_state import (
    UserState,
    make_private_directory,
    read_private,
    write_private,
)

_NAME: Final = re.compile(r"[0-9a-f]{32}")
"""The name in a database: 128 random bits, which cannot be guessed."""


def is_known(state: UserState | None, names: Iterable[str]) -> bool:
    """Return True if the user has used a database with one of these names.

    :param names: the name in a database, and that of the database it is a backup of. Untrusted.
    """
    return state is not None and any(
        _NAME.fullmatch(name) and read_private(_record(state, name)) is not None for name in names
    )


def remember(state: UserState, name: str, path: Path) -> None:
    """Record that the user uses a database.

    :param path: its current path, for information only: a database that moves stays known.
    :raises OSError: if the record cannot be written.
    """
    if is_known(state, [name]):
        return
    make_private_directory(state.root)
    make_private_directory(state.databases)
    record = {"path": os.fspath(path)}
    write_private(_record(state, name), json.dumps(record).encode() + b"\n")


def _record(state: UserState, name: str) -> Path:
    return state.databases / f"{name}.json"

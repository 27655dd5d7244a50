"""Which databases a user has used, so that one that came with a repository is told from his own.

A database holds queued runs, which are executed once it is opened, and the access of others. Whoever
can put a file into a directory could give its user all of that. So a database that is only found, in
the default place, is opened if its name is recorded; one that is named in the settings needs no record.
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
"""What a database calls itself: 128 random bits, which nobody guesses."""


def is_known(state: UserState | None, names: Iterable[str]) -> bool:
    """Return whether the user has used a database of one of these names.

    :param names: what the database says it is called, or is a backup of; may be anything.
    """
    return state is not None and any(
        _NAME.fullmatch(name) and read_private(_record(state, name)) is not None for name in names
    )


def remember(state: UserState, name: str, path: Path) -> None:
    """Record that the user uses a database.

    :param path: where it is, for who reads the record; a database that moves stays known.
    :raises OSError: if it cannot be recorded.
    """
    if is_known(state, [name]):
        return
    make_private_directory(state.root)
    make_private_directory(state.databases)
    told = {"path": os.fspath(path)}
    write_private(_record(state, name), json.dumps(told).encode() + b"\n")


def _record(state: UserState, name: str) -> Path:
    return state.databases / f"{name}.json"

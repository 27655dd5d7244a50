"""What agents are kept from: the files of the engine that runs them, and of the daemons of its user."""

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from agent_orchestrator.data_directory import is_data_directory
from agent_orchestrator.ports import ProtectedPaths
from agent_orchestrator.stores.sqlite.files import OWN_FILES, SECRET_FILES
from agent_orchestrator.user_state import user_state

DEFAULT_DATABASE = ".data/agent-orchestrator.db"
"""Where a daemon keeps its database, from its directory on, unless it is told otherwise."""


@frozen
class Protection:
    """Tells for each directory what an agent that works there is kept from.

    :param database: the file of the engine's SQLite store; None where there is none.
    :param read_only: what agents may not change besides.
    :param secret: what agents may not read either.
    """

    database: Path | None = None
    read_only: tuple[Path, ...] = ()
    secret: tuple[Path, ...] = ()

    def __call__(self, cwd: str) -> ProtectedPaths:
        """Return what an agent that works in a directory is kept from; some dozen looks at files."""
        read_only, secret = list(self.read_only), list(self.secret)
        state = user_state()
        if state is not None and _exists(state.root):
            secret.append(state.root)
        # The second is a daemon's that may not be running, in the default layout.
        databases = [self.database] if self.database is not None else []
        if _exists(other := Path(cwd, DEFAULT_DATABASE)):
            databases.append(other)
        for database in databases:
            kept, hidden = _database(database)
            read_only += kept
            secret += hidden
        return ProtectedPaths(tuple(_resolved(read_only)), tuple(_resolved(secret)))


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises where one may not look


def _database(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a database that must not be changed, and those that must not be read."""
    folder = path.parent
    files = {end: path.with_name(path.name + end) for end in OWN_FILES}
    hidden = [files[end] for end in SECRET_FILES if _exists(files[end])]
    if is_data_directory(folder):
        return [folder], hidden
    return [
        file for end, file in files.items() if end not in SECRET_FILES and _exists(file)
    ], hidden


def _resolved(paths: list[Path]) -> Iterator[str]:
    """Return paths without symbolic links: a sandbox cannot keep what a link leads to by its name."""
    for path in dict.fromkeys(os.path.realpath(path) for path in paths):
        if os.path.isdir(os.path.dirname(path)):  # noqa: PTH112, PTH120 - a path of any bytes
            yield path

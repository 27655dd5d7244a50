"""The files that agents are denied: those of their engine and of its user's daemons."""

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from agent_orchestrator.data_directory import is_data_directory
from agent_orchestrator.ports.runner import ProtectedPaths
from agent_orchestrator.stores.sqlite.files import OWN_FILES, SECRET_FILES
from agent_orchestrator.user_state import user_state

DEFAULT_DATABASE = ".data/agent-orchestrator.db"
"""The default path of a daemon's database, relative to its directory."""


@frozen
class Protection:
    """Finds the paths that an agent in a directory is denied.

    :param database: the file of the engine's SQLite store, if it has one.
    :param read_only: other paths that agents may not change.
    :param secret: other paths that agents may not read or change.
    :param optional: those of these paths that are left out while no file exists. A sandbox
        protects a missing path with a file that it makes for each command and then removes: commands at
        once fail, or the file stays. So do not trust an optional file merely because it exists.
    """

    database: Path | None = None
    read_only: tuple[Path, ...] = ()
    secret: tuple[Path, ...] = ()
    optional: frozenset[Path] = frozenset()

    def __call__(self, cwd: str) -> ProtectedPaths:
        """Return the denied paths for an agent in a directory. Costs some dozen file system calls."""
        # Paths are texts here, because each run computes them, and Path objects are slow.
        read_only, secret = self._present(self.read_only), self._present(self.secret)
        state = user_state()
        if state is not None and _exists(root := str(state.root)):
            secret.append(root)
        # A daemon that does not run now may have its database in the agent's directory.
        databases = [str(self.database)] if self.database is not None else []
        if _exists(other := os.path.join(cwd, DEFAULT_DATABASE)):  # noqa: PTH118
            databases.append(other)
        for database in databases:
            unwritable, unreadable = _database(database)
            read_only += unwritable
            secret += unreadable
        return ProtectedPaths(tuple(_resolved(read_only)), tuple(_resolved(secret)))

    def _present(self, paths: tuple[Path, ...]) -> list[str]:
        return [str(path) for path in paths if path not in self.optional or _exists(str(path))]


def _exists(path: str) -> bool:
    return os.path.exists(path)


def _database(path: str) -> tuple[list[str], list[str]]:
    """Return the files of a database that must not be changed, and those that must not be read."""
    hidden = [file for end in SECRET_FILES if _exists(file := path + end)]
    folder = os.path.dirname(path)  # noqa: PTH120
    if is_data_directory(Path(folder)):
        return [folder], hidden
    others = (path + end for end in OWN_FILES if end not in SECRET_FILES)
    return [file for file in others if _exists(file)], hidden


def _resolved(paths: list[str]) -> Iterator[str]:
    """Yield the paths without symbolic links: a sandbox cannot protect a link's target by the link."""
    folders: dict[str, str] = {}
    """Most of the paths are in the same few directories."""

    def real(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)  # noqa: PTH118

    for path in dict.fromkeys(map(real, paths)):
        if os.path.isdir(os.path.dirname(path)):  # noqa: PTH120
            yield path

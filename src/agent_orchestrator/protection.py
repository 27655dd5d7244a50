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
        read_only, secret = self._present(self.read_only), self._present(self.secret)
        state = user_state()
        if state is not None and _exists(state.root):
            secret.append(state.root)
        # A daemon that does not run now may have its database in the agent's directory.
        databases = [self.database] if self.database is not None else []
        if _exists(other := Path(cwd, DEFAULT_DATABASE)):
            databases.append(other)
        for database in databases:
            unwritable, unreadable = _database(database)
            read_only += unwritable
            secret += unreadable
        return ProtectedPaths(tuple(_resolved(read_only)), tuple(_resolved(secret)))

    def _present(self, paths: tuple[Path, ...]) -> list[Path]:
        return [path for path in paths if path not in self.optional or _exists(path)]


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises without permission


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
    """Yield the paths without symbolic links: a sandbox cannot protect a link's target by the link."""
    folders: dict[str, str] = {}
    """Most of the paths are in the same few directories."""

    def real(path: Path) -> str:
        if os.path.islink(path):  # noqa: PTH114 - Path.is_symlink raises for a long name
            return os.path.realpath(path)
        folder = os.path.dirname(path)  # noqa: PTH120 - a path of any bytes
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], path.name)  # noqa: PTH118

    for path in dict.fromkeys(map(real, paths)):
        if os.path.isdir(os.path.dirname(path)):  # noqa: PTH112, PTH120
            yield path

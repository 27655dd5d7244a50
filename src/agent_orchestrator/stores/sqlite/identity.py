"""The files of an open database, to notice when one is removed, renamed or replaced."""

import os
from pathlib import Path
from typing import Final, Self

from attrs import frozen

from agent_orchestrator.domain.errors import StoreOpenError
from agent_orchestrator.stores.sqlite.files import PARTS
from agent_orchestrator.stores.sqlite.lock import FileId, FileLock, file_id


@frozen
class Files:
    """The files of an open database: the database, its write-ahead log and the index of that log.

    :param known: the device and inode of each path at the opening.
    """

    known: tuple[tuple[Path, FileId], ...]

    @classmethod
    def of(cls, absolute: Path, path: Path, lock: FileLock) -> Self:
        """Return the files of a database that was just opened.

        :param absolute: the absolute path it was opened with, which may contain symbolic links.
        :param path: the same path with all symbolic links resolved.
        :param lock: the lock on the database file.
        :raises StoreOpenError: if the file was replaced meanwhile.
        """
        parts = [path.with_name(path.name + end) for end in PARTS]
        names = dict.fromkeys((absolute, *parts))
        files = cls(tuple((name, file_id(name)) for name in names))
        if (path, lock.file_id) not in files.known or (absolute, lock.file_id) not in files.known:
            raise StoreOpenError(f"{path} was replaced while it was being opened")
        return files

    def moved_file(self) -> str | None:
        """Return a message about a file that was removed, renamed or replaced, else None.

        Calls ``stat`` for each file, which takes some microseconds in all.
        """
        for name, known in self.known:
            try:
                current = file_id(name)
            except (FileNotFoundError, NotADirectoryError):
                event = "was removed or renamed while the database was open"
            except OSError as error:
                event = f"cannot be found while the database is open ({error.strerror})"
            else:
                if current == known:
                    continue
                event = "was replaced by another file while the database was open"
            return f"{name} {event}: nothing is written until you {_ADVICE[name.name.endswith(PARTS[1:])]}"
        return None


_ADVICE: Final = {
    False: "put it back; or copy the open database with `agentctl daemon backup FILE`, stop agentd, and"
    " start it on that copy",
    True: "stop agentd, which completes the database, and start it again",
}
"""Advice, by whether the file is the write-ahead log or its index."""


def refuse_own_mount(path: Path, lock: FileLock) -> None:
    """Raise ``StoreOpenError`` if the file itself is a mount point (``docker run -v FILE:FILE``).

    Its write-ahead log would then be in the directory around the mount, not beside the file. A
    program that opens the file by its other path would not find that log.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mounts = _mount_of(lock.descriptor), _mount_of(directory)
    finally:
        os.close(directory)
    if None not in mounts and mounts[0] != mounts[1]:
        raise StoreOpenError(
            f"{path} is itself a mount point, so its write-ahead log would not be beside it:"
            " mount its directory instead"
        )


def _mount_of(descriptor: int) -> str | None:
    """Return the id of the mount through which a file was opened (proc(5), ``fdinfo``)."""
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    except OSError:
        return None
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    return fields.get("mnt_id", "").strip() or None

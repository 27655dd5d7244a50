"""Which files an open database consists of, so that others under their names are told from them."""

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

    :param known: which file each name stood for at the opening.
    """

    known: tuple[tuple[Path, FileId], ...]

    @classmethod
    def of(cls, given: Path, path: Path, lock: FileLock) -> Self:
        """Return the files of a database that was just opened.

        :param given: the absolute name it was opened by; a symbolic link may be part of it.
        :param path: the same without any symbolic link.
        :param lock: on the database file.
        :raises StoreOpenError: if another file took its place meanwhile.
        """
        parts = [path.with_name(path.name + end) for end in PARTS]
        names = dict.fromkeys((given, *parts))
        files = cls(tuple((name, file_id(name)) for name in names))
        if (path, lock.file_id) not in files.known or (given, lock.file_id) not in files.known:
            raise StoreOpenError(f"{path} was replaced while it was being opened")
        return files

    def misplaced(self) -> str | None:
        """Return what became of the file that is not at its place any more, and what to do about it;
        None while all are.

        Costs a ``stat`` for each file, some microseconds in all.
        """
        for name, known in self.known:
            try:
                found = file_id(name)
            except (FileNotFoundError, NotADirectoryError):
                what = "was removed or renamed while the database was open"
            except OSError as error:
                what = f"cannot be found while the database is open ({error.strerror})"
            else:
                if found == known:
                    continue
                what = "was replaced by another file while the database was open"
            return f"{name} {what}: nothing is written until you {_ADVICE[name.name.endswith(PARTS[1:])]}"
        return None


_ADVICE: Final = {
    False: "put it back; or save what is open with `agentctl daemon backup FILE`, stop agentd, and"
    " start it on that copy",
    True: "stop agentd, which writes what is open into the database, and start it again",
}
"""What to do, by whether it is a file beside the database."""


def refuse_own_mount(path: Path, lock: FileLock) -> None:
    """Refuse a file that is mounted by itself, as a container runtime does with ``-v FILE:FILE``.

    Its write-ahead log would be in the directory around the mount, not beside the file: whoever opens
    the file by its other name lacks what is in that log.

    :raises StoreOpenError: if it is.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mounts = _mount_of(lock.descriptor), _mount_of(directory)
    finally:
        os.close(directory)
    if None not in mounts and mounts[0] != mounts[1]:
        raise StoreOpenError(
            f"{path} is mounted by itself, so that its write-ahead log would not be beside it:"
            " mount its directory instead"
        )


def _mount_of(descriptor: int) -> str | None:
    """Return the number of the mount a file was opened through (proc(5), ``fdinfo``)."""
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    except OSError:
        return None
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    return fields.get("mnt_id", "").strip() or None

"""Files of sessions: written whole or not at all, and read back before anything is deleted."""

import errno
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

from anyio.to_thread import run_sync
from attrs import frozen

from agent_orchestrator.client import Client
from agent_orchestrator.domain.errors import Internal, InvalidRequest, PayloadTooLarge
from agent_orchestrator.wire.session_file import Reader

PART: Final = 64 * 2**10
"""Bytes of a file that are read at once."""


@frozen
class WrittenFile:
    """A file that is complete, on the disk, and was read back.

    :param size: in bytes.
    :param last_seq: the ``seq`` of its last event.
    """

    path: Path
    session_id: str
    title: str | None
    size: int
    runs: int
    messages: int
    requests: int
    events: int
    last_seq: int


async def write_session(client: Client, session_id: str, path: Path) -> WrittenFile:
    """Write a session to a file that only this user may read.

    It is written under a temporary name, synchronized with the disk, read back and checked, and renamed.

    :param path: must not exist: an older file may have events that were deleted since.
    :raises FileExistsError: if it does.
    :raises OSError: if it cannot be written.
    :raises Internal: if the file cannot be read back: the daemon stopped, or the session was pruned meanwhile, or has
        more than a file may have.
    """
    if await run_sync(os.path.lexists, path):
        raise FileExistsError(f"{path} exists")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")
    async with client.export_session(session_id) as parts, AsyncExitStack() as stack:
        file = await run_sync(_create, temporary)
        stack.callback(temporary.unlink, missing_ok=True)
        stack.callback(file.close)
        async for part in parts:
            await run_sync(file.write, part)
        return await run_sync(_complete, file, temporary, path)


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")


def _complete(file: BinaryIO, temporary: Path, path: Path) -> WrittenFile:
    file.flush()
    os.fsync(file.fileno())
    try:
        found = check_file(temporary)
    except (InvalidRequest, PayloadTooLarge) as error:
        raise Internal(f"the file cannot be read back: {error.message}") from None
    _give_name(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return WrittenFile(path, *found)


def _give_name(temporary: Path, path: Path) -> None:
    """Give a file its name.

    :raises FileExistsError: if somebody has created a file with that name meanwhile.
    """
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(path):  # the file system has no hard links
            raise FileExistsError(f"{path} exists") from None
        temporary.rename(path)


def check_file(path: Path) -> tuple[Any, ...]:
    """Read a file from its first line to its last, and return the other fields of :class:`WrittenFile`.

    :raises InvalidRequest: if it is not the complete file of a session.
    :raises PayloadTooLarge: if it has more than a file may have.
    """
    reader, last_seq = Reader(), 0
    with path.open("rb") as file:
        while part := file.read(PART):
            for kind, fields in reader.feed(part):
                if kind == "event":
                    last_seq = fields["event"]["seq"]
    reader.finish()
    assert reader.header is not None
    session, counts = reader.header["session"], reader.counts
    return (
        session["id"],
        session["title"],
        reader.lines.size,
        counts["run"],
        counts["message"],
        counts["request"],
        counts["event"],
        last_seq,
    )


async def read_parts(path: Path) -> AsyncGenerator[bytes]:
    """Yield a file in parts, for :meth:`~agent_orchestrator.client.Client.import_session`.

    :raises OSError: if it cannot be read.
    """
    file = await run_sync(path.open, "rb")
    try:
        while part := await run_sync(file.read, PART):
            yield part
    finally:
        file.close()

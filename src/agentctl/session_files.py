"""Commands on files of sessions: export, archive and import."""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from agent_orchestrator.domain.errors import Conflict, InvalidRequest, PayloadTooLarge
from agent_orchestrator.operations.retention import PRUNE_SESSION
from agent_orchestrator.operations.runs import LIST_RUNS
from agent_orchestrator.operations.session_files import IMPORT_SESSION, ImportReply, ImportSession
from agent_orchestrator.operations.sessions import CLOSE_SESSION, GET_SESSION
from agent_orchestrator.session_files import PART, WrittenFile, read_parts, write_session
from agent_orchestrator.wire.session_file import Reader
from agentctl.call import here
from agentctl.connection import DaemonConnection
from agentctl.failures import CONFLICT, Failure, failure_of, usage_failure
from agentctl.times import counted


async def export_session(connection: DaemonConnection, session_id: str, file: str | None) -> None:
    """Write the file of a session, or print it."""
    whole_id = (await connection.call(GET_SESSION, session_id=session_id)).session.id
    if file in (None, "-"):
        await _print(connection, whole_id)
        return
    written = await _write(connection, whole_id, str(file))
    connection.output.answer(_plain(written), lambda: [_line(written)])


async def archive_session(connection: DaemonConnection, session_id: str, file: str) -> None:
    """Write the file of a session, read it back, then close the session and delete the events that it has."""
    session = (await connection.call(GET_SESSION, session_id=session_id)).session
    # Deletes nothing. Who may not archive the session is refused here, before there is a file.
    await connection.call(PRUNE_SESSION, session_id=session.id, through=0)
    for status in ("queued", "running", "waiting"):
        page = await connection.call(LIST_RUNS, session_id=session.id, status=status, limit=1)
        for run in page.runs:
            raise Failure(
                "session_busy",
                f"run {run.id} of the session is {run.status}: archive the session after its end, or end it "
                f"with `agentctl session close {session.id} --cascade`",
                exit_code=CONFLICT,
            )
    written = await _write(connection, session.id, file)
    if session.status != "closed":
        await connection.call(CLOSE_SESSION, session_id=session.id)
    pruned = await connection.call(PRUNE_SESSION, session_id=session.id, through=written.last_seq)
    reply = {**_plain(written), "deleted_count": pruned.deleted_count, "kept_by": pruned.kept_by}
    deleted = f"{counted(pruned.deleted_count, 'event')} deleted from the database"
    kept = f"; the others stay because of {pruned.kept_by}" if pruned.kept_by else ""
    connection.output.answer(reply, lambda: [_line(written), f"{deleted}{kept}"])


async def import_session(
    connection: DaemonConnection, file: str, *, new_id: bool | None, cwd: str | None
) -> None:
    """Import the file of a session."""
    if cwd is not None and not Path(cwd).is_absolute():
        cwd = str(here() / cwd)
    request = ImportSession(new_id=bool(new_id), cwd=cwd)
    if file == "-" and sys.stdin is None:
        raise usage_failure("standard input is closed")
    parts = _standard_input() if file == "-" else read_parts(_path(file))
    try:
        async with aclosing(parts) as data:
            reply = (await connection.upload(IMPORT_SESSION, request, data)).answer
    except Conflict as error:
        failure = failure_of(error)
        failure.message = error.message.replace("`new_id`", "`--new-id`")
        raise failure from None
    except OSError as error:
        place = "standard input cannot be read" if file == "-" else file
        raise usage_failure(f"{place}: {error.strerror or error}") from None
    connection.output.answer(reply, lambda: _imported(reply))
    connection.output.hint(f"to send messages to it: agentctl session reopen {reply.session.id}")


def _imported(reply: ImportReply) -> list[Any]:
    session = reply.session
    counts = ", ".join(
        counted(number, name)
        for number, name in (
            (reply.runs, "run"),
            (reply.messages, "message"),
            (reply.requests, "request"),
            (reply.events, "event"),
        )
    )
    lines: list[Any] = [f"session {session.id} is imported: {counts}"]
    if reply.canceled:
        lines.append(f"canceled: {counted(len(reply.canceled), 'run')} that had not ended")
    return lines


async def _standard_input() -> AsyncGenerator[bytes]:
    while part := await run_sync(os.read, sys.stdin.fileno(), PART):
        yield part


def _path(file: str) -> Path:
    path = Path(os.path.expanduser(file))  # noqa: PTH111 - a name may begin with `~`
    return path if path.is_absolute() else here() / path


async def _write(connection: DaemonConnection, session_id: str, file: str) -> WrittenFile:
    try:
        return await write_session(connection.client(), session_id, _path(file))
    except FileExistsError:
        raise usage_failure(f"{file} exists: choose another name") from None
    except OSError as error:
        raise usage_failure(f"{file}: {error.strerror or error}") from None


async def _print(connection: DaemonConnection, session_id: str) -> None:
    reader = Reader()
    try:
        async with connection.client().export_session(session_id) as parts:
            async for part in parts:
                for _ in reader.feed(part):
                    pass
                sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        reader.finish()
    except (InvalidRequest, PayloadTooLarge) as error:
        raise Failure("incomplete_file", f"the file cannot be read back: {error}") from None


def _plain(written: WrittenFile) -> dict[str, Any]:
    return {
        "file": str(written.path),
        "session_id": written.session_id,
        "bytes": written.size,
        "runs": written.runs,
        "messages": written.messages,
        "requests": written.requests,
        "events": written.events,
        "last_seq": written.last_seq,
    }


def _line(written: WrittenFile) -> str:
    return (
        f"session {written.session_id} is in {written.path}: {counted(written.events, 'event')}, "
        f"{counted(written.size, 'byte')}"
    )

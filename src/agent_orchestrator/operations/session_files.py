"""The calls that write a session to a file of JSON lines, and read it back."""

from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Session
from agent_orchestrator.fields import command, optional_path, param
from agent_orchestrator.operations.options import OfSession
from agent_orchestrator.operations.table import Operation

LINES: Final = "application/x-ndjson"
"""The media type of a session's file: a JSON object on each line."""


@command
class ExportSession(OfSession):
    pass


@frozen
class SessionFile:
    """The answer of an export is a file. See :mod:`agent_orchestrator.wire.session_file`."""


@command
class ImportSession:
    new_id: bool = param(
        "Give the session, its runs, messages and requests new ids. Default: they keep theirs, and the call "
        "fails with 409 if one is taken.",
        default=False,
    )
    cwd: str | None = optional_path(
        "The working directory of the imported session. Default: the daemon's. The one in the file is not used."
    )


@frozen
class ImportReply:
    session: Session
    """The imported session. It is closed, belongs to the caller, and sends no notices."""
    runs: int
    messages: int
    requests: int
    events: int
    """The number of events that were imported."""
    canceled: tuple[str, ...] = ()
    """The runs that had not ended when the file was made. They are canceled."""


EXPORT_SESSION: Final = Operation(
    "export_session",
    "GET",
    "/sessions/{session_id}/export",
    ExportSession,
    SessionFile,
    "Write a session to a file: its runs, messages, requests and events, one a line. Not for agents.",
    answers_lines=True,
)

IMPORT_SESSION: Final = Operation(
    "import_session",
    "POST",
    "/sessions/import",
    ImportSession,
    ImportReply,
    "Import the file of a session, whole or not at all. Not for agents.",
    scope="write",
    status=201,
    statuses=(201,),
    takes_lines=True,
    takes_long=True,
)

"""Calls that hand a conversation to a person's program, and that take one over from it."""

from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from agent_orchestrator.domain.model import Run
from agent_orchestrator.fields import (
    MAX_INTEGER,
    MAX_NAME,
    command,
    optional_name,
    optional_path,
    param,
    required,
)
from agent_orchestrator.operations.options import Keyed, Labels, OfSession
from agent_orchestrator.operations.sessions import CreateSessionReply
from agent_orchestrator.operations.table import Operation, _made


@command
class AttachSession(Keyed, OfSession):
    pid: int = required(
        "The process that will use the conversation, on the daemon's machine.",
        minimum=1,
        maximum=MAX_INTEGER,
    )
    process_start_id: str = required(
        "The start of that process: on Linux the boot id, `/`, and the clock ticks from boot to its start.",
        max_length=MAX_NAME,
    )
    provider: str | None = optional_name(
        "The provider whose conversation to use. Default: the session's."
    )


@command
class AdoptSession(Labels, Keyed):
    provider: str | None = optional_name(
        "The provider whose agent has the conversation. Default: the default route."
    )
    thread_id: str | None = param(
        "The agent's id of the conversation. Default: its latest in the directory.",
        default=None,
        max_length=MAX_NAME,
        not_blank=True,
    )
    cwd: str | None = optional_path(
        "The directory of the conversation, if there is no `thread_id`. Default: the daemon's."
    )


@frozen
class Program:
    """A program for a person's terminal."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(factory=dict)
    """Variables to set besides those of the terminal."""


@frozen
class AttachReply:
    run: Run
    """It holds the session until the process has ended. Canceling it ends the hold, but not the process."""
    program: Program
    """The program for the process to execute."""


ATTACH_SESSION: Final = _made(
    Operation(
        "attach_session",
        "POST",
        "/sessions/{session_id}/attach",
        AttachSession,
        AttachReply,
        "Hold a session while a person uses its conversation in the agent's own program.",
        scope="write",
    )
)
ADOPT_SESSION: Final = _made(
    Operation(
        "adopt_session",
        "POST",
        "/sessions/adopt",
        AdoptSession,
        CreateSessionReply,
        "Create a session of a conversation that was begun in the agent's own program.",
        scope="admin",
    )
)

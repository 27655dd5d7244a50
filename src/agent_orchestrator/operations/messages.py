"""Calls that send messages and start children."""

from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Message, MessageRole, Run, Session
from agent_orchestrator.fields import command, optional_identifier, optional_name, param
from agent_orchestrator.operations.options import (
    BusyOption,
    ConfinementOptions,
    ImageOptions,
    Keyed,
    ModelOptions,
    OfRun,
    OfSession,
    Page,
    SendOptions,
    SpawnOptions,
    Text,
)
from agent_orchestrator.operations.table import Operation, _made


@command
class SendMessage(
    BusyOption, ConfinementOptions, ModelOptions, ImageOptions, Keyed, Text, OfSession
):
    role: MessageRole = param("Only a message of `user` starts a run.", default="user")
    provider: str | None = optional_name("The provider for this message only.")


@command
class ListMessages(Page, OfSession):
    pass


@command
class SpawnFromSession(SpawnOptions, OfSession):
    pass


@command
class SpawnFromRun(SpawnOptions, OfRun):
    pass


@command
class SpawnArguments(SpawnOptions):
    """The parameters of the client's method: a child of a run or of a session."""

    run_id: str | None = optional_identifier("The run that spawns the child.")
    session_id: str | None = optional_identifier("The parent session, if no run spawns the child.")


@command
class SendToSession(SendOptions):
    from_run_id: str | None = optional_identifier("The run that sends the message.")


@frozen
class MessageReply:
    message: Message
    run: Run | None


@frozen
class SpawnReply:
    session: Session
    message: Message
    run: Run


@frozen
class MessagePage:
    messages: tuple[Message, ...]
    next_cursor: str | None


SEND_MESSAGE: Final = _made(
    Operation(
        "send_message",
        "POST",
        "/sessions/{session_id}/messages",
        SendMessage,
        MessageReply,
        "Send a message to a session. One of role `user` starts a run.",
        scope="write",
    )
)
LIST_MESSAGES: Final = Operation(
    "list_messages",
    "GET",
    "/sessions/{session_id}/messages",
    ListMessages,
    MessagePage,
    "List a session's messages, oldest first.",
    shared=True,
)
SPAWN_FROM_SESSION: Final = _made(
    Operation(
        "spawn_from_session",
        "POST",
        "/sessions/{session_id}/spawn",
        SpawnFromSession,
        SpawnReply,
        "Create a child of a session and send it its task.",
        scope="write",
    )
)
SPAWN_FROM_RUN: Final = _made(
    Operation(
        "spawn_from_run",
        "POST",
        "/runs/{run_id}/spawn",
        SpawnFromRun,
        SpawnReply,
        "Create a child of a run's session and send it its task.",
        scope="write",
    )
)
SEND_TO_SESSION: Final = _made(
    Operation(
        "send_to_session",
        "POST",
        "/sessions/{session_id}/send",
        SendToSession,
        MessageReply,
        "Send a message from one agent to another.",
        scope="write",
    )
)

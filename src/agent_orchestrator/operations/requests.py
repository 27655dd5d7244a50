"""Calls about the questions of agents."""

from typing import Final

from attrs import frozen

from agent_orchestrator.domain.model import Message, Request, RequestStatus
from agent_orchestrator.fields import (
    MAX_TEXT,
    command,
    optional_identifier,
    optional_name,
    param,
    required,
)
from agent_orchestrator.operations.options import (
    MAX_OPEN_S,
    MIN_OPEN_S,
    Keyed,
    OfRequest,
    OfRun,
    QuestionOptions,
    RequestOrder,
    ResolveOptions,
    Searched,
)
from agent_orchestrator.operations.table import Operation, _made


@command
class ReplyParent(QuestionOptions, Keyed, OfRun):
    text: str = required(
        "The message or question. A question has at most 65,536 characters.",
        kw_only=False,
        max_length=MAX_TEXT,
        not_blank=True,
    )
    wait: bool = param("Keep the run in `waiting` until the question is resolved.", default=False)


@command
class ListRequests(Searched):
    order: RequestOrder = param(
        "`newest` lists the newest first; `deadline` lists only open requests, those that expire first "
        "before the others.",
        default="oldest",
    )
    status: RequestStatus | None = param("Only requests with this status.", default=None)
    provider: str | None = optional_name(
        "Only requests of this provider's agents. Searched like `q`."
    )
    session_id: str | None = optional_identifier("Only requests of this session.")
    root_session_id: str | None = optional_identifier("Only requests of this tree.")
    resolvable: bool | None = param(
        "`true`: only requests that the caller may resolve. `false`: all that it may read. Default: "
        "`false` if a session or tree is named, else `true`.",
        default=None,
    )


@command
class GetRequest(OfRequest):
    wait_s: float = param(
        "Maximum seconds to wait for its resolution.", default=0.0, minimum=0, maximum=86_400
    )


@command
class ResolveRequest(ResolveOptions, Keyed, OfRequest):
    pass


@command
class ExtendRequest(Keyed, OfRequest):
    expires_in_s: float = required(
        "Seconds from now that it stays open. Never shortens its time.",
        kw_only=False,
        minimum=MIN_OPEN_S,
        maximum=MAX_OPEN_S,
        alias="timeout_s",
    )


@frozen
class ReplyParentReply:
    message: Message | None
    """The message to the parent; None if the session has no parent."""
    parent_session_id: str | None
    request: Request | None


@frozen
class RequestReply:
    request: Request


@frozen
class ResolveReply:
    request: Request
    decided_now: bool = True
    """Whether this call decided the request. False if it was decided in the same way before."""


@frozen
class RequestPage:
    requests: tuple[Request, ...]
    next_cursor: str | None


REPLY_PARENT: Final = _made(
    Operation(
        "reply_parent",
        "POST",
        "/runs/{run_id}/reply-parent",
        ReplyParent,
        ReplyParentReply,
        "Send a message or a question to a run's parent.",
        scope="write",
    )
)
LIST_REQUESTS: Final = Operation(
    "list_requests",
    "GET",
    "/requests",
    ListRequests,
    RequestPage,
    "List requests (the inbox).",
    shared=True,
)
GET_REQUEST: Final = Operation(
    "get_request",
    "GET",
    "/requests/{request_id}",
    GetRequest,
    RequestReply,
    "Read a request.",
    shared=True,
)
RESOLVE_REQUEST: Final = Operation(
    "resolve_request",
    "POST",
    "/requests/{request_id}/resolve",
    ResolveRequest,
    ResolveReply,
    "Approve, deny or answer a request. The first decision counts.",
    scope="approve",
)
EXTEND_REQUEST: Final = Operation(
    "extend_request",
    "POST",
    "/requests/{request_id}/extend",
    ExtendRequest,
    RequestReply,
    "Extend the time of an open request. Only for those who may resolve it.",
    scope="approve",
)

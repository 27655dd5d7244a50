"""Calls about share links: tokens that read one session, for a time."""

from typing import Final

from agent_orchestrator.fields import command, identifier, optional_name, param
from agent_orchestrator.operations.access import NewToken, TokenPage, TokenReply
from agent_orchestrator.operations.options import OfSession, Page
from agent_orchestrator.operations.table import Operation, _made

_DAY_S: Final = 86_400.0


@command
class CreateLink(OfSession):
    expires_in_s: float = param(
        "Seconds until the link expires.", default=7 * _DAY_S, minimum=1, maximum=30 * _DAY_S
    )
    name: str | None = optional_name("The link's name in lists. Default: the session's title.")


@command
class ListLinks(Page, OfSession):
    pass


@command
class RevokeLink(OfSession):
    token_id: str = identifier("The link.", kw_only=False)


CREATE_LINK: Final = _made(
    Operation(
        "create_link",
        "POST",
        "/sessions/{session_id}/links",
        CreateLink,
        NewToken,
        "Create a token that reads a session and its descendants. Only for the session's owners.",
        scope="write",
    )
)
LIST_LINKS: Final = Operation(
    "list_links",
    "GET",
    "/sessions/{session_id}/links",
    ListLinks,
    TokenPage,
    "List the share links of a session, oldest first. Only for its owners.",
)
REVOKE_LINK: Final = Operation(
    "revoke_link",
    "POST",
    "/sessions/{session_id}/links/{token_id}/revoke",
    RevokeLink,
    TokenReply,
    "Revoke a share link. Its streams end. Only for the session's owners.",
    scope="write",
)

"""Calls about tokens and the audit trail."""

from collections.abc import Sequence
from typing import Final

from attrs import field, frozen

from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import MAX_NAME, command, identifier, param, required
from agent_orchestrator.operations.options import InOrder, Ordered, Page
from agent_orchestrator.operations.table import Operation, _made

MAX_PRINCIPAL: Final = 64
PRINCIPAL_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._@-]*"
"""The names that a principal can be given."""


@command
class CreateToken:
    name: str = required(
        "The token's name in lists.", kw_only=False, max_length=MAX_NAME, not_blank=True
    )
    principal: str | None = param(
        "The principal that calls with the token, and that owns its sessions. Default: its name.",
        default=None,
        max_length=MAX_PRINCIPAL,
        pattern=PRINCIPAL_PATTERN,
    )
    scopes: Sequence[str] = param(
        "What the token allows: `read`, `write`, `approve`, `admin` (everything).",
        default=("read", "write", "approve"),
        flag="--scope",
    )
    expires_in_s: float | None = param(
        "Seconds until the token expires. Default: never.",
        default=None,
        minimum=1,
        maximum=10 * 366 * 86_400,
    )


@command
class ListTokens(Ordered):
    pass


@command
class RevokeToken:
    token_id: str = identifier("The token.", kw_only=False)


@command
class ListAudit(InOrder, Page):
    cursor: str | None = param(
        "`next_cursor` of the previous page.", default=None, max_length=18, pattern=r"[0-9]+"
    )


@frozen
class NewToken:
    token: AccessToken
    secret: str = field(repr=False)
    """The bearer token. No other answer contains it."""


@frozen
class TokenReply:
    token: AccessToken


@frozen
class TokenPage:
    tokens: tuple[AccessToken, ...]
    next_cursor: str | None


@frozen
class AuditPage:
    entries: tuple[AuditEntry, ...]
    next_cursor: str | None


CREATE_TOKEN: Final = _made(
    Operation(
        "create_token",
        "POST",
        "/tokens",
        CreateToken,
        NewToken,
        "Create a named token. No other answer contains its secret.",
        scope="admin",
    )
)
LIST_TOKENS: Final = Operation(
    "list_tokens",
    "GET",
    "/tokens",
    ListTokens,
    TokenPage,
    "List named tokens.",
    scope="admin",
)
REVOKE_TOKEN: Final = Operation(
    "revoke_token",
    "POST",
    "/tokens/{token_id}/revoke",
    RevokeToken,
    TokenReply,
    "Revoke a named token. Streams and waits that it opened end.",
    scope="admin",
)
LIST_AUDIT: Final = Operation(
    "list_audit",
    "GET",
    "/daemon/audit",
    ListAudit,
    AuditPage,
    "Read the audit trail.",
    scope="admin",
)

"""The calls for named tokens: create, list, revoke."""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from attrs import evolve

from agent_orchestrator.domain.access import ANONYMOUS, LOCAL, SCOPES, Principal, Scope
from agent_orchestrator.domain.errors import InvalidRequest, NotFound
from agent_orchestrator.domain.tokens import (
    NAMED_TOKEN_PREFIX,
    AccessToken,
    new_token,
    token_hash,
)
from agent_orchestrator.engine.access import require_admin
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, has_words, page
from agent_orchestrator.engine.push_devices import forget_devices_of
from agent_orchestrator.fields import specs
from agent_orchestrator.operations.access import (
    CreateToken,
    ListTokens,
    NewToken,
    RevokeToken,
    TokenPage,
    TokenReply,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

MADE_TOPIC: Final = "tokens"
"""Notified when a token was created."""

LINK_PREFIX: Final = "link-"

_RESERVED: Final = ("run_", "token-", LINK_PREFIX)
"""Prefixes of the names of other principals: runs, configured tokens, and share links."""


async def create(core: Core, caller: Principal, command: CreateToken) -> Change[NewToken]:
    principal = _principal(command)
    scopes = check_scopes(command.scopes)
    secret = new_token(NAMED_TOKEN_PREFIX)

    def change(tx: Transaction) -> NewToken:
        require_admin(tx, caller)
        now = core.now()
        lasts = command.expires_in_s
        token = AccessToken(
            id=core.config.ids("tok"),
            name=command.name,
            principal=principal,
            scopes=scopes,
            created_by=caller.id,
            created_at=now,
            expires_at=None if lasts is None else now + timedelta(seconds=lasts),
        )
        tx.add_token(token, token_hash(secret))
        tx.notify(MADE_TOPIC)
        return NewToken(token, secret)

    return change


def _principal(command: CreateToken) -> str:
    name = command.principal or command.name
    limits = specs(CreateToken)["principal"].limits
    field = "principal" if command.principal else "name"
    if not re.fullmatch(str(limits.pattern), name) or len(name) > (limits.max_length or 0):
        raise InvalidRequest.of(
            {field: "is not a valid name of a principal: set `principal` to one"}
        )
    require_nameable(field, name)
    return name


def require_nameable(field: str, name: str) -> None:
    """Raise ``InvalidRequest`` if the name is that of a principal that has no named tokens."""
    if name in (LOCAL.id, ANONYMOUS.id) or name.startswith(_RESERVED):
        raise InvalidRequest.of({field: f"{name} is a reserved name"})


def check_scopes(scopes: Sequence[str]) -> tuple[Scope, ...]:
    """Return the scopes of a new token in their usual order.

    :raises InvalidRequest: if there are none, or unknown ones.
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidRequest.of({"scopes": f"must be some of {', '.join(SCOPES)}"})
    return tuple(scope for scope in SCOPES if scope in scopes)


async def list_(core: Core, caller: Principal, command: ListTokens) -> TokenPage:
    def query(view: View) -> TokenPage:
        require_admin(view, caller)

        def tokens(after: str | None, limit: int) -> list[AccessToken]:
            return view.tokens(order=command.order, after=after, limit=limit, size=PAGE_SIZE)

        def matches(token: AccessToken) -> bool:
            return has_words(command.q or "", (token.id, token.name, token.principal))

        return TokenPage(
            *page(tokens, command.cursor, command.limit, matches=matches if command.q else None)
        )

    return await core.store.read(query)


async def revoke(core: Core, caller: Principal, command: RevokeToken) -> Change[TokenReply]:
    def change(tx: Transaction) -> TokenReply:
        require_admin(tx, caller)
        token = tx.token(command.token_id)
        if token is None:
            raise NotFound(f"no token {command.token_id}", {"token_id": command.token_id})
        if token.revoked_at is None:
            token = evolve(token, revoked_at=core.now())
            tx.put_token(token)
            forget_devices_of(tx, token)
        return TokenReply(token)

    return change

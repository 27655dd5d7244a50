"""The calls for share links: create, list, revoke."""

from datetime import timedelta

from attrs import evolve

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import NotFound
from agent_orchestrator.domain.tokens import (
    NAMED_TOKEN_PREFIX,
    AccessToken,
    new_token,
    token_hash,
)
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, page
from agent_orchestrator.engine.tokens import LINK_PREFIX, MADE_TOPIC
from agent_orchestrator.operations.access import NewToken, TokenPage, TokenReply
from agent_orchestrator.operations.links import CreateLink, ListLinks, RevokeLink
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View


async def create(core: Core, caller: Principal, command: CreateLink) -> Change[NewToken]:
    secret = new_token(NAMED_TOKEN_PREFIX)

    def change(tx: Transaction) -> NewToken:
        session = session_for(tx, caller, Action.SHARE, command.session_id)
        now, token_id = core.now(), core.config.ids("tok")
        token = AccessToken(
            id=token_id,
            name=command.name or session.title or "link",
            principal=f"{LINK_PREFIX}{token_id}",
            scopes=("read",),
            created_by=caller.id,
            created_at=now,
            expires_at=now + timedelta(seconds=command.expires_in_s),
            purpose="link",
            session_id=session.id,
        )
        tx.add_token(token, token_hash(secret))
        tx.notify(MADE_TOPIC)
        return NewToken(token, secret)

    return change


async def list_(core: Core, caller: Principal, command: ListLinks) -> TokenPage:
    def query(view: View) -> TokenPage:
        session = session_for(view, caller, Action.SHARE, command.session_id)

        def tokens(after: str | None, limit: int) -> list[AccessToken]:
            return view.tokens(after=after, limit=limit, size=PAGE_SIZE)

        def matches(token: AccessToken) -> bool:
            return token.purpose == "link" and token.session_id == session.id

        return TokenPage(*page(tokens, command.cursor, command.limit, matches=matches))

    return await core.store.read(query)


async def revoke(core: Core, caller: Principal, command: RevokeLink) -> Change[TokenReply]:
    def change(tx: Transaction) -> TokenReply:
        session = session_for(tx, caller, Action.SHARE, command.session_id)
        token = tx.token(command.token_id)
        if token is None or token.purpose != "link" or token.session_id != session.id:
            raise NotFound(f"no link {command.token_id}", {"token_id": command.token_id})
        if token.revoked_at is None:
            token = evolve(token, revoked_at=core.now())
            tx.put_token(token)
        return TokenReply(token)

    return change

"""``agentctl token``: named tokens."""

from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations.access import (
    CREATE_TOKEN,
    LIST_TOKENS,
    REVOKE_TOKEN,
    CreateToken,
    ListTokens,
)
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.fields import ALL, options_of
from agentctl.options import Group, identified

_SCOPES = ["read", "write", "approve", "admin"]


@click.group(
    cls=Group,
    examples="""
    agentctl token create ann --scope read --scope write
    agentctl token list
    agentctl token revoke tok_01k0
    """,
)
def token() -> None:
    """Create, list and revoke tokens. Needs the scope admin."""


@token.command(
    examples="""
    agentctl token create ann
    agentctl token create phone --principal ann --scope read --scope approve --expires-in-s 604800
    agentctl token create ci --scope read --field secret
    agentctl --url https://desk.example:8765 token create phone --principal ann --qr
    """
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(_SCOPES),
    multiple=True,
    help="What the token allows; repeatable.  [default: read, write, approve]",
)
@options_of(CreateToken, only=("principal", "expires_in_s"))
@click.option("--qr", is_flag=True, help="Also show the URL and the token as a QR code.")
def create(scopes: tuple[str, ...], qr: bool, **values: Any) -> None:
    """Create a token. Its secret is shown only once, as agentd stores only its hash.

    Once a token was created, agentd refuses all calls without a token, even after that token was
    revoked. On agentd's machine, agentctl of the same user finds a token by itself.
    """
    call = Call.current()
    if qr and call.settings.structured:
        raise usage_failure("--qr prints a picture: leave out --format json and --field")

    async def body(connection: Any) -> None:
        from agentctl.access import token_card

        is_first = not (await connection.call(LIST_TOKENS, limit=1)).tokens
        reply = await connection.call(CREATE_TOKEN, scopes=scopes or None, **values)
        if is_first:
            call.output.note(
                "agentctl: this is the first token. From now on calls without a token are refused. "
                "On agentd's machine, agentctl of the same user finds a token by itself."
            )
        if not qr:
            call.output.answer(reply, lambda style: token_card(reply, style))
            return
        from agentctl.qr import access_text, code

        text = access_text(call.settings.url, reply.secret)
        call.output.answer(reply, lambda style: [*token_card(reply, style), "", *code(text, style)])
        if call.settings.is_local:
            call.output.note(
                f"agentctl: the code contains {call.settings.url}, which only this machine can reach: "
                "use --url with an address that other machines can reach"
            )

    call.run(body)


@token.command(
    "list",
    examples="""
    agentctl token list
    agentctl --format json token list --field tokens
    """,
)
@options_of(ListTokens, limit=ALL)
def list_(**values: Any) -> None:
    """List tokens, oldest first, including expired and revoked ones."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.access import token_table
        from agentctl.paging import pages

        page = await pages(connection, LIST_TOKENS, "tokens", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: token_table(page.tokens, style, now))
        call.output.note_next_page(page.next_cursor)

    call.run(body)


@token.command(
    examples="""
    agentctl token revoke tok_01k0
    agentctl token revoke --token-id tok_01k0
    """
)
@identified("token")
def revoke(token_id: str) -> None:
    """Revoke a token. Streams and waits that use it end."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.access import token_table

        reply = await connection.call(REVOKE_TOKEN, token_id=token_id)
        now = datetime.now(UTC)
        call.output.answer(reply, lambda style: token_table([reply.token], style, now))

    call.run(body)

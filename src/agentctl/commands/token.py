"""``agentctl token``: named tokens."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations.access import (
    CREATE_TOKEN,
    LIST_TOKENS,
    REVOKE_TOKEN,
    CreateToken,
)
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import F, Group
from agentctl.rows import row

_SCOPES = ["read", "write", "approve", "admin"]


def scope_option(doc: str) -> Callable[[F], F]:
    """Add the scopes of a new token or device to a command."""
    help_ = f"{doc}; repeatable.  [default: read, write, approve]"
    return click.option("--scope", "scopes", type=click.Choice(_SCOPES), multiple=True, help=help_)


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
@scope_option("What the token allows")
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
        from agentctl.views import token_card

        is_first = not (await connection.call(LIST_TOKENS, limit=1)).tokens
        reply = await connection.call(CREATE_TOKEN, scopes=scopes or None, **values)
        if is_first:
            call.output.note(
                "agentctl: this is the first token. From now on calls without a token are refused. "
                "On agentd's machine, agentctl of the same user finds a token by itself."
            )
        call.output.answer(reply, lambda: token_card(reply, datetime.now(UTC)))
        if qr:
            from agentctl.qr import access_text, draw, note_local

            draw(call.output, access_text(call.settings.url, reply.secret), always=True)
            note_local(call.output)

    call.run(body)


row(
    token,
    "list",
    LIST_TOKENS,
    "views:token_table:tokens",
    "List tokens, including expired and revoked ones.",
    """
    agentctl token list
    agentctl --format json token list --field tokens
    """,
)
row(
    token,
    "revoke",
    REVOKE_TOKEN,
    "views:token_table:token",
    "Revoke a token. Streams and waits that use it end.",
    """
    agentctl token revoke tok_01k0
    agentctl token revoke --token-id tok_01k0
    """,
)

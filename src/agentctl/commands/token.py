"""``agentctl token``: named tokens."""

import shutil
import sys
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
from agentctl.options import Group
from agentctl.rows import row

SCOPES = ["read", "write", "approve", "admin"]


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
    type=click.Choice(SCOPES),
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
        from agentctl.views import token_card

        is_first = not (await connection.call(LIST_TOKENS, limit=1)).tokens
        reply = await connection.call(CREATE_TOKEN, scopes=scopes or None, **values)
        if is_first:
            call.output.note(
                "agentctl: this is the first token. From now on calls without a token are refused. "
                "On agentd's machine, agentctl of the same user finds a token by itself."
            )
        call.output.answer(reply, lambda: token_card(reply, datetime.now(UTC)))
        if not qr:
            return
        from agentctl.qr import access_text, code
        from agentctl.terminal import is_unicode

        columns = shutil.get_terminal_size().columns if call.output.on_terminal else None
        drawn = code(
            access_text(call.settings.url, reply.secret),
            colour=call.output.colour,
            unicode=is_unicode(sys.stdout),
            columns=columns,
        )
        call.output.lines(["", *drawn])
        if call.settings.is_local:
            call.output.note(
                f"agentctl: the code contains {call.settings.url}, which only this machine can reach: "
                "use --url with an address that other machines can reach"
            )

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
    "views:revoked_token:token",
    "Revoke a token. Streams and waits that use it end.",
    """
    agentctl token revoke tok_01k0
    agentctl token revoke --token-id tok_01k0
    """,
)

"""``agentctl device``: the browsers and phones that are let in."""

import shutil
import sys
from typing import Any

import click

from agent_orchestrator.operations.access import LIST_TOKENS
from agent_orchestrator.operations.devices import (
    ADD_DEVICE,
    LIST_DEVICES,
    REVOKE_DEVICE,
    AddDevice,
)
from agentctl.call import Call
from agentctl.commands.token import SCOPES
from agentctl.fields import options_of
from agentctl.options import Group
from agentctl.rows import row


@click.group(
    cls=Group,
    examples="""
    agentctl device add
    agentctl device list
    agentctl device revoke tok_01k0
    """,
)
def device() -> None:
    """Let browsers and phones in, list them, and revoke them."""


@device.command(
    examples="""
    agentctl device add
    agentctl device add --name phone --scope read --scope approve
    agentctl --url https://desk.example:8765 device add
    agentctl --format json device add --field code
    """
)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help="What the device may do; repeatable.  [default: read, write, approve]",
)
@options_of(AddDevice, only=("name", "principal"))
def add(scopes: tuple[str, ...], **values: Any) -> None:
    """Invite a device: show a code that lets it in, also as a QR code. Needs the scope admin.

    The code is valid once, for five minutes. Open the address on the device, or scan the picture.
    Once a device or a token exists, agentd refuses calls without a token. On agentd's machine, agentctl
    of the same user finds a token by itself.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.qr import code, device_url
        from agentctl.terminal import is_unicode
        from agentctl.views import invitation_card

        is_first = not (await connection.call(LIST_TOKENS, limit=1)).tokens
        reply = await connection.call(ADD_DEVICE, scopes=scopes or None, **values)
        if is_first:
            call.output.note("agentctl: from now on calls without a token are refused.")
        url = device_url(call.settings.url, reply.code)
        call.output.answer(reply, lambda: invitation_card(reply, url))
        if call.settings.structured:
            return
        columns = shutil.get_terminal_size().columns if call.output.on_terminal else None
        drawn = code(
            url, colour=call.output.colour, unicode=is_unicode(sys.stdout), columns=columns
        )
        call.output.lines(["", *drawn])
        if call.settings.is_local:
            call.output.note(
                f"agentctl: only this machine can reach {call.settings.url}: for another device, use "
                "--url with an address that it can reach"
            )

    call.run(body)


row(
    device,
    "list",
    LIST_DEVICES,
    "views:device_table:devices",
    "List your devices, revoked ones too. An administrator sees those of all principals.",
    """
    agentctl device list
    agentctl --format json device list --field devices
    """,
)
row(
    device,
    "revoke",
    REVOKE_DEVICE,
    "device {device.id} is revoked",
    "Revoke a device. Its streams end.",
    """
    agentctl device revoke tok_01k0
    """,
)

"""``agentctl device``: browsers and phones with access."""

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
from agentctl.commands.token import scope_option
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
    """Give browsers and phones access, list them, and revoke them."""


@device.command(
    examples="""
    agentctl device add
    agentctl device add --name phone --scope read --scope approve
    agentctl --url https://desk.example:8765 device add
    agentctl --format json device add --field code
    """
)
@scope_option("What the device may do")
@options_of(AddDevice, only=("name", "principal"))
def add(scopes: tuple[str, ...], **values: Any) -> None:
    """Invite a device: show a code that gives it access, also as a QR code. Needs the scope admin.

    The code is valid once, for five minutes. Open the address on the device, or scan the QR code, which is
    shown on a terminal only. The address comes from link_base in the settings of notices, or from --url.
    Once a device or a token exists, agentd refuses calls without a token. On agentd's machine, agentctl
    of the same user finds a token by itself.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.qr import device_url, draw, note_local
        from agentctl.views import invitation_card

        is_first = not (await connection.call(LIST_TOKENS, limit=1)).tokens
        reply = await connection.call(ADD_DEVICE, scopes=scopes or None, **values)
        if is_first:
            call.output.note("agentctl: from now on calls without a token are refused.")
        base = reply.page if call.settings.is_local and reply.page else call.settings.url
        url = device_url(base, reply.code)
        call.output.answer(reply, lambda: invitation_card(reply, url))
        draw(call.output, url)
        if reply.page is None:
            note_local(call.output)

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

"""``agentctl session link``: an address that shows a session."""

import shutil
import sys
from typing import Any

from agent_orchestrator.operations.links import CREATE_LINK
from agentctl.connection import DaemonConnection
from agentctl.document import Block, Card, Text
from agentctl.qr import code, link_url
from agentctl.terminal import is_unicode
from agentctl.times import clock


async def show_link(connection: DaemonConnection, **values: Any) -> None:
    """Create a share link, and print its address, also as a QR code."""
    reply = await connection.call(CREATE_LINK, **values)
    output = connection.output
    url = link_url(connection.url, reply.secret)

    def view() -> list[Block]:
        ends = reply.token.expires_at
        pairs = [("address", url), ("until", None if ends is None else clock(ends))]
        return [Card(Text(f"link {reply.token.id}", "bold"), pairs)]

    output.answer(reply, view)
    if output.structured:
        return
    columns = shutil.get_terminal_size().columns if output.on_terminal else None
    drawn = code(url, colour=output.colour, unicode=is_unicode(sys.stdout), columns=columns)
    output.lines(["", *drawn])
    if output.settings.is_local:
        output.note(
            f"agentctl: only this machine can reach {connection.url}: use --url with an address that "
            "others can reach"
        )

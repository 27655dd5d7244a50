"""Commands on one session: its tree, its changes, its grants and its share links."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agent_orchestrator.domain.access import Grant
from agent_orchestrator.operations.links import CREATE_LINK
from agent_orchestrator.operations.sessions import (
    GET_ACCESS,
    GET_DIFF,
    GET_SESSION,
    SET_ACCESS,
    SessionDiff,
    SetAccess,
)
from agentctl.connection import DaemonConnection
from agentctl.diffs import Change, diff_blocks
from agentctl.document import Block, Card, Text
from agentctl.paging import tree_pages
from agentctl.qr import draw, link_url, note_local
from agentctl.terminal import one_line
from agentctl.times import ago, clock
from agentctl.views import grant_table, tree_table


def _now() -> datetime:
    return datetime.now(UTC)


async def show_tree(connection: DaemonConnection, **values: Any) -> None:
    """Print a session and its descendants."""
    reply = await tree_pages(connection, **values)
    connection.output.answer(reply, lambda: tree_table(reply, _now()))
    connection.output.note_next_page(reply.next_cursor)


async def share_session(
    connection: DaemonConnection,
    session_id: str,
    chosen: Mapping[str, str],
    idempotency_key: str | None,
) -> None:
    """Grant or remove access, and print who has it.

    :param chosen: a role, or ``remove``, by principal.
    """
    whole_id = (await connection.call(GET_SESSION, session_id=session_id)).session.id
    reply = await connection.call(GET_ACCESS, session_id=whole_id)
    if chosen:
        roles: dict[str, Any] = {one.principal: one.role for one in reply.grants} | dict(chosen)
        grants = tuple(Grant(name, role) for name, role in roles.items() if role != "remove")
        request = SetAccess(whole_id, grants, idempotency_key=idempotency_key)
        reply = (await connection.perform(SET_ACCESS, request)).answer
    connection.output.answer(reply, lambda: grant_table(reply.grants, _now()))


async def show_diff(connection: DaemonConnection, session_id: str, *, whole: bool) -> None:
    """Print what was changed.

    :param whole: also show long changes in full.
    """
    session = (await connection.call(GET_SESSION, session_id=session_id)).session
    diff: SessionDiff = await connection.call(GET_DIFF, session_id=session.id)
    since = f"since {diff.base[:12]}" if diff.base else "according to its events"
    since = "since the first commit" if diff.source == "git" and not diff.base else since
    head = Text(f"{diff.cwd}, {since}, {ago(session.created_at, _now())}", "dim")
    changes = [Change(one_line(one.path), one.kind, one.diff) for one in diff.changes]

    def view() -> list[Block]:
        cut: list[Block] = [Text("more was changed than is shown", "dim")]
        return [
            head,
            *(diff_blocks(changes, folded=not whole) or ["no changes"]),
            *(cut if diff.is_truncated else []),
        ]

    connection.output.answer(diff, view)


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
    draw(output, url, always=True)
    note_local(output)

"""``agentctl top``: a live display."""

from typing import Any

import click

from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.call import Call
from agentctl.options import ID_HELP, Command, IdType, read_id
from agentctl.screens import require_terminal


@click.command(
    cls=Command,
    examples="""
    agentctl top
    agentctl top --session-id ses_01k0
    agentctl --url http://127.0.0.1:9000 top
    """,
)
@click.option(
    "--session-id",
    metavar="ID",
    type=IdType("session"),
    help=f"Only this session's tree.  [default: everything] {ID_HELP}",
)
def top(session_id: str | None) -> None:
    """Watch requests and runs, and answer, cancel or look into them, on a full screen.

    Keys: up and down select; space scrolls a long request, and the keys under it answer it; enter
    opens the conversation, escape closes it; c cancels a run; f shows finished runs; t shows only the
    selected tree; q quits.
    """
    call = Call.current()
    require_terminal(call.settings, "top", "`run list`, `request list` and `events tail`")
    session_id = read_id(session_id) if session_id else None

    async def body(connection: Any) -> None:
        from agentctl.screens.app import show
        from agentctl.screens.top import TopApp

        root = None
        if session_id is not None:
            root = (await connection.call(GET_SESSION, session_id=session_id)).session
        await show(TopApp(connection, call.output, root))

    call.run(body)

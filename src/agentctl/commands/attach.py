"""``agentctl attach``: the agent's own program on a session's conversation."""

from typing import Any

import click

from agent_orchestrator.operations.takeovers import AttachSession
from agentctl.call import Call
from agentctl.fields import options_of
from agentctl.options import Command, identified


@click.command(
    cls=Command,
    examples="""
    agentctl attach ses_01k0
    agentctl attach --session-id ses_01k0
    """,
)
@identified("session")
@options_of(AttachSession, only=("provider",))
def attach(**values: Any) -> None:
    """Open the agent's own program on a session's conversation.

    Until you leave it, the session is held: its messages wait. Then what was said is recorded in the
    session, and the next message goes on from there. It works on the daemon's own machine only.
    """
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl import takeover

        return await takeover.attach(connection, call.output, **values)

    call.run(body)

"""``agentctl attach`` and ``adopt``: conversations in an agent's own program."""

from typing import Any

import click

from agent_orchestrator.operations.takeovers import ADOPT_SESSION, AdoptSession, AttachSession
from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.failures import usage_failure
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

    Until you leave the program, the session's messages wait. Then the conversation is recorded in the
    session, and the next message continues it. This works only on the daemon's machine.
    """
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl import takeover

        return await takeover.attach(connection, call.output, **values)

    call.run(body)


@click.command(
    cls=Command,
    examples="""
    agentctl adopt codex --last
    agentctl adopt codex 0199f3a0-5d1e-7c40-9a55-1f6f3f7b8c21
    """,
)
@click.argument("provider")
@click.argument("thread_id", metavar="[THREAD]", required=False)
@click.option("--last", is_flag=True, help="The latest conversation in the directory.")
@options_of(
    AdoptSession,
    without=("provider", "thread_id"),
    cwd="The directory for --last.  [default: this directory]",
)
def adopt(thread_id: str | None, last: bool, cwd: str | None, **values: Any) -> None:
    """Make a session of a conversation that was begun in the agent's own program.

    THREAD is the agent's id of the conversation. The conversation so far is recorded in the session.
    Needs a token with the scope admin, because the daemon reads its own user's conversations.
    """
    call = Call.current()
    if last == (thread_id is not None):
        raise usage_failure("name either the conversation's THREAD or --last")
    values["cwd"] = working_directory(cwd, local=call.settings.is_local) if last else None

    async def body(connection: Any) -> int:
        from agentctl.takeover import show_recorded

        adopted = await connection.call(ADOPT_SESSION, thread_id=thread_id, **values)
        return await show_recorded(connection, call.output, adopted.run, 0)

    call.run(body)

"""``agentctl message``: the messages of a session."""

from typing import Any

import click

from agent_orchestrator.operations.messages import LIST_MESSAGES, SendMessage
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import Group, identified
from agentctl.rows import row


@click.group(
    cls=Group,
    examples="""
    agentctl message send --session-id ses_01k0 --text "Now run the tests" --wait
    agentctl message list --session-id ses_01k0
    """,
)
def message() -> None:
    """Send and list messages."""


@message.command(
    examples="""
    agentctl message send --session-id ses_01k0 --text "Now run the tests" --follow
    git diff | agentctl message send --session-id ses_01k0 --text - --wait --field run.result.text
    """
)
@identified("session")
@options_of(SendMessage, without=("session_id",))
@click.option("--wait", is_flag=True, help="Wait for the run's end.")
@click.option("--follow", is_flag=True, help="Show the run live until it ends.")
def send(*, wait: bool, follow: bool, **values: Any) -> None:
    """Send a message to a session. A message with the role user starts a run.

    With --wait or --follow, the exit code is 0 if the run completed, and 1 if it did not.
    """
    call = Call.current()
    if wait and follow:
        raise usage_failure("give only one of --wait and --follow")

    async def body(connection: Any) -> int:
        from agentctl.follow import send_message

        return await send_message(connection, call.output, values, wait=wait, follow=follow)

    call.run(body)


row(
    message, "list", LIST_MESSAGES, "views:message_table:messages",
    "List a session's messages, oldest first.",
    """
    agentctl message list --session-id ses_01k0
    """,
)  # fmt: skip

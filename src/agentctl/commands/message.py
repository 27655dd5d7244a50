"""``agentctl message``: the messages of a session."""

from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations.messages import LIST_MESSAGES, ListMessages, SendMessage
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.fields import ALL, options_of
from agentctl.options import Group, identified


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
        from agentctl.run_commands import send_message

        return await send_message(connection, call.output, values, wait=wait, follow=follow)

    call.run(body)


@message.command(
    "list",
    examples="""
    agentctl message list --session-id ses_01k0
    """,
)
@identified("session")
@options_of(ListMessages, without=("session_id",), limit=ALL)
def list_(**values: Any) -> None:
    """List a session's messages, oldest first."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.views import message_table

        page = await pages(connection, LIST_MESSAGES, "messages", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: message_table(page.messages, style, now))
        call.output.note_next_page(page.next_cursor)

    call.run(body)

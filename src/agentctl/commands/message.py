"""``agentctl message``: the messages of a session."""

from collections.abc import Mapping
from typing import Any

import click

from agent_orchestrator.operations.messages import LIST_MESSAGES, SEND_MESSAGE
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.options import Group
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


def _one_way(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if values["wait"] and values["follow"]:
        raise usage_failure("give only one of --wait and --follow")
    return values


row(
    message,
    "send",
    SEND_MESSAGE,
    "!follow:send_message",
    """Send a message to a session. A message with the role user starts a run.

    With --wait or --follow, the exit code is 0 if the run completed, and 1 if it did not. With
    --follow on a terminal, you answer requests with keys.
    """,
    """
    agentctl message send --session-id ses_01k0 --text "Now run the tests" --follow
    git diff | agentctl message send --session-id ses_01k0 --text - --wait --field run.result.text
    """,
    prepare=_one_way,
    extra=(
        click.option("--wait", is_flag=True, help="Wait for the run's end."),
        click.option("--follow", is_flag=True, help="Show the run live until it ends."),
    ),
)
row(
    message,
    "list",
    LIST_MESSAGES,
    "views:message_table:messages",
    "List a session's messages, oldest first.",
    """
    agentctl message list --session-id ses_01k0
    """,
)

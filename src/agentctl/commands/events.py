"""``agentctl events``: the log of a session."""

import click

from agent_orchestrator.operations.events import LIST_EVENTS
from agentctl.options import Group
from agentctl.rows import row


@click.group(
    cls=Group,
    examples="""
    agentctl events tail --session-id ses_01k0 --follow
    agentctl events list --session-id ses_01k0 --cursor 40 --format json
    """,
)
def events() -> None:
    """List and follow the events of a session."""


row(
    events,
    "list",
    LIST_EVENTS,
    "!follow:list_events",
    "List one page of events after a cursor.",
    """
    agentctl events list --session-id ses_01k0
    agentctl events list --session-id ses_01k0 --cursor 100 --limit 50
    """,
    without=("wait_s",),
)
row(
    events,
    "tail",
    LIST_EVENTS,
    "!follow:tail_events",
    """Print a session's events in order.

    On a terminal it begins with the last 200, otherwise with the oldest one that is kept;
    `--cursor 0` always begins with that.

    With --follow, a lost connection is opened again, also after a restart of agentd. Printing
    resumes after the last event, so that no event is lost or repeated. On a terminal, you answer
    requests of the session and its descendants with keys.
    """,
    """
    agentctl events tail --session-id ses_01k0 --follow
    agentctl events tail ses_01k0 --lines 20
    agentctl events tail --session-id ses_01k0 --follow --format json | jq .event_type
    """,
    only=("cursor", "epoch"),
    cursor="Start after the event with this `seq`.",
    extra=(
        click.option(
            "--follow", "-f", is_flag=True, help="Continue with new events, until interrupted."
        ),
        click.option(
            "--lines", "-n", type=click.IntRange(min=0), help="Start with the last N events."
        ),
    ),
)

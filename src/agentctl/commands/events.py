"""``agentctl events``: the log of a session."""

from collections.abc import Iterator
from typing import Any

import click

from agent_orchestrator.operations.events import LIST_EVENTS, ListEvents
from agentctl.call import Call
from agentctl.fields import options_of
from agentctl.options import Group, identified


@click.group(
    cls=Group,
    examples="""
    agentctl events tail --session-id ses_01k0 --follow
    agentctl events list --session-id ses_01k0 --cursor 40 --format json
    """,
)
def events() -> None:
    """List and follow the events of a session."""


@events.command(
    "list",
    examples="""
    agentctl events list --session-id ses_01k0
    agentctl events list --session-id ses_01k0 --cursor 100 --limit 50
    """,
)
@identified("session")
@options_of(ListEvents, without=("session_id", "wait_s"))
def list_(**values: Any) -> None:
    """List one page of events after a cursor."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.times import today
        from agentctl.transcript import Transcript

        page = await connection.call(LIST_EVENTS, **values)

        def view() -> Iterator[Any]:
            transcript = Transcript(today=today(), diffs=call.output.on_terminal)
            has_output = False
            for event in page.events:
                for block in transcript.entries(event):
                    has_output = True
                    yield block
            if not has_output:
                yield "no events"

        call.output.answer(page, view)
        if page.has_more:
            call.output.note_next_page(page.next_cursor)

    call.run(body)


@events.command(
    examples="""
    agentctl events tail --session-id ses_01k0 --follow
    agentctl events tail ses_01k0 --lines 20
    agentctl events tail --session-id ses_01k0 --follow --format json | jq .event_type
    """
)
@identified("session")
@click.option("--follow", "-f", is_flag=True, help="Continue with new events, until interrupted.")
@options_of(ListEvents, only=("cursor", "epoch"), cursor="Start after the event with this `seq`.")
@click.option("--lines", "-n", type=click.IntRange(min=0), help="Start with the last N events.")
def tail(session_id: str, *, follow: bool, **options: Any) -> None:
    """Print a session's events in order, from the start or from a cursor.

    With --follow, a lost connection is opened again, also after a restart of agentd. Printing
    resumes after the last event, so that no event is lost or repeated. On a terminal, keys answer
    what the session and its descendants ask.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.follow import tail_events

        await tail_events(connection, call.output, session_id, follow=follow, **options)

    call.run(body)

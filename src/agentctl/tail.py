"""Printing the events of a session."""

from collections.abc import Callable

from agent_orchestrator.domain.model import Event
from agent_orchestrator.operations.events import LIST_EVENTS
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import DaemonConnection
from agentctl.output import Output
from agentctl.times import today
from agentctl.transcript import Transcript

_PAGE = 1000


async def tail_events(
    connection: DaemonConnection,
    output: Output,
    session_id: str,
    *,
    follow: bool,
    cursor: int | None,
    lines: int | None,
    epoch: str | None = None,
) -> None:
    """Print the events after a cursor.

    :param follow: wait for new events, forever.
    :param cursor: the ``seq`` to begin after; None for the first event.
    :param lines: begin at most this many events before the end.
    :param epoch: the epoch of the cursor, if known.
    """
    start = cursor or 0
    if lines is not None:
        session = (await connection.call(GET_SESSION, session_id=session_id)).session
        start = max(start, session.last_seq - lines)
    take = _event_writer(output)
    if follow:
        await connection.follow(session_id, start, take, retry_s=None, epoch=epoch)
        return
    while True:
        page = await connection.call(
            LIST_EVENTS, session_id=session_id, cursor=start, limit=_PAGE, epoch=epoch
        )
        epoch = page.epoch
        for event in page.events:
            take(event)
        start = page.next_cursor
        if not page.has_more:
            break
    output.end_of_stream()


def _event_writer(output: Output) -> Callable[[Event], bool]:
    transcript = Transcript(output.style, today=today())

    def take(event: Event) -> bool:
        if output.structured:
            output.stream_item(event)
        else:
            output.lines(transcript.lines(event))
        return False

    return take

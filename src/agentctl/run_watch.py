"""Following a run on the terminal: its transcript and an activity line."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, Literal, TextIO

import anyio

from agent_orchestrator.domain.errors import OrchestratorError, Unreachable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Event, Run
from agent_orchestrator.operations.runs import GET_RUN, WAIT_RUN, WaitReply
from agent_orchestrator.operations.sessions import GET_SESSION
from agentctl.connection import FOLLOW_RETRY_S, DaemonConnection
from agentctl.event_text import concerns_run, ends_run, file_changes, tool_text
from agentctl.output import Output
from agentctl.terminal import one_line, put, truncated
from agentctl.times import elapsed, today
from agentctl.transcript import Transcript

_FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES: Final = "|/-\\"
_FRAME_S: Final = 0.1
_LONGEST: Final = 2_000
"""Maximum characters of an activity text to process. The line is redrawn ten times a second."""

Until = Literal["terminal", "attention"]

ONE_WAIT_S: Final = 60.0
"""Maximum seconds of one waiting request. Longer waits use several."""


class ActivityLine:
    """An animated last line of the terminal. It is erased before other output.

    :param shown: whether to draw it.
    """

    def __init__(self, output: Output, text: str, *, shown: bool) -> None:
        self._output = output
        self._shown = shown
        self._text = text
        self._at_line_start = True
        self._drawn = False

    def set(self, text: str) -> None:
        """Set the text of the line."""
        self._text = one_line(text[:_LONGEST])

    def write(self, stream: TextIO, text: str) -> None:
        """Write output in place of the line, which is redrawn below."""
        if not text:
            return
        self._wipe()
        put(stream, text)
        self._at_line_start = text.endswith("\n")

    def _wipe(self) -> None:
        if self._drawn:
            put(sys.stderr, "\r\x1b[K")
            self._drawn = False

    @asynccontextmanager
    async def animate(self) -> AsyncIterator[None]:
        """Animate the line while the body runs."""
        if not self._shown:
            yield
            return
        self._output.before_note = self._wipe
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._animate)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self._output.before_note = None
            self._wipe()

    async def _animate(self) -> None:
        style = self._output.error_style
        frames = style.symbol(_FRAMES, _PLAIN_FRAMES)
        started = anyio.current_time()
        frame = 0
        while True:
            if self._at_line_start:
                passed = elapsed(anyio.current_time() - started)
                room = (style.columns or 80) - 4 - len(passed)
                text = truncated(f"{self._text}", room, ellipsis=style.symbol("…", "..."))
                line = style.paint(f"{frames[frame % len(frames)]} {passed}  {text}", "dim")
                put(sys.stderr, f"\r{line}\x1b[K")
                self._drawn = True
            frame += 1
            await anyio.sleep(_FRAME_S)


def activity_of(event: Event) -> str | None:
    """Return the activity an event shows, or None."""
    match event.event_type:
        case EventType.RUN_QUEUED:
            return "queued"
        case EventType.RUN_STARTED | EventType.RUN_RESUMED:
            return "working"
        case EventType.RUN_WAITING:
            return "waiting for an answer"
        case EventType.TOOL_STARTED:
            return tool_text(event.data)
        case EventType.FILE_CHANGED:
            return file_changes(event.data)[0]
        case EventType.AGENT_MESSAGE | EventType.SUBAGENT_MESSAGE | EventType.AGENT_REASONING:
            return str(event.data.get("text", ""))[:500] or None
    return None


async def follow_run(
    connection: DaemonConnection,
    output: Output,
    run: Run,
    cursor: int,
    *,
    show: Callable[[Event], str],
    stream: TextIO,
) -> Run:
    """Show the events of a run until it ends. Return the finished run.

    :param cursor: a position in the session's log before the run's first event.
    :param show: returns the text for an event.
    :param stream: the stream to write to.
    """
    activity = ActivityLine(output, f"{run.provider}: {run.status}", shown=output.interactive)

    def take(event: Event) -> bool:
        if not concerns_run(event, run.id):
            return False
        activity.write(stream, show(event))
        if text := activity_of(event):
            activity.set(f"{run.provider}: {text}")
        return ends_run(event, run.id)

    async with activity.animate():
        await connection.follow(run.session_id, cursor, take)
    return (await connection.call(GET_RUN, run_id=run.id)).run


def transcript_writer(output: Output, stream: TextIO) -> Callable[[Event], str]:
    """Return a function that renders the events of a run, except its first message."""
    is_stdout = stream is sys.stdout
    style = output.style if is_stdout else output.error_style
    transcript = Transcript(style, streaming=style.columns is not None, today=today())

    def show(event: Event) -> str:
        return "" if event.event_type == EventType.MESSAGE_CREATED else transcript.render(event)

    return show


@contextmanager
def note_still_running(output: Output, run_id: str) -> Iterator[None]:
    """When the body is interrupted, print that the run continues and how to cancel it."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        output.announce(f"agentctl: the run continues; end it with `agentctl run cancel {run_id}`")
        raise


async def wait_for_run(
    connection: DaemonConnection,
    output: Output,
    run_id: str,
    timeout_s: float | None,
    **options: Any,
) -> WaitReply:
    """Wait until a run ends, with an activity line if a person watches.

    :param timeout_s: maximum seconds to wait; None for no limit.
    :param options: further fields of the request.
    """
    wait_call = partial(connection.call, WAIT_RUN, run_id=run_id, **options)
    connection.retry_s = FOLLOW_RETRY_S
    run = (await connection.call(GET_RUN, run_id=run_id)).run
    if is_terminal(run.status) or not output.interactive:
        return await _wait(wait_call, timeout_s)
    activity = ActivityLine(output, f"{run.provider}: {run.status}", shown=True)
    async with activity.animate(), anyio.create_task_group() as tasks:
        tasks.start_soon(_note_activity, connection, run, activity)
        reply = await _wait(wait_call, timeout_s)
        tasks.cancel_scope.cancel()
    return reply


async def _wait(ask: Callable[..., Awaitable[WaitReply]], timeout_s: float | None) -> WaitReply:
    end = None if timeout_s is None else anyio.current_time() + timeout_s
    while True:
        remaining_s = ONE_WAIT_S if end is None else max(end - anyio.current_time(), 0.0)
        wait_s = min(remaining_s, ONE_WAIT_S)
        reply = await ask(timeout_s=wait_s)
        if not reply.timed_out or (end is not None and anyio.current_time() >= end):
            return reply


async def _note_activity(connection: DaemonConnection, run: Run, activity: ActivityLine) -> None:
    def take(event: Event) -> bool:
        if event.run_id == run.id and (text := activity_of(event)):
            activity.set(f"{run.provider}: {text}")
        return ends_run(event, run.id)

    try:
        session = (await connection.call(GET_SESSION, session_id=run.session_id)).session
        await connection.follow(run.session_id, max(session.last_seq - 20, 0), take)
    except (OrchestratorError, Unreachable):
        # The concurrent wait encounters the same error and reports it.
        return

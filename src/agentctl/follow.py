"""Commands that follow a session or wait for a run."""

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any, Final, TextIO

import anyio

from agent_orchestrator.domain.errors import Gone, OrchestratorError, Unreachable
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
from agent_orchestrator.domain.model import Event, Run, Session
from agent_orchestrator.operations.events import LIST_EVENTS
from agent_orchestrator.operations.messages import (
    LIST_MESSAGES,
    SEND_MESSAGE,
    SPAWN_FROM_RUN,
    SPAWN_FROM_SESSION,
    MessageReply,
)
from agent_orchestrator.operations.requests import GET_REQUEST, REPLY_PARENT
from agent_orchestrator.operations.runs import CANCEL_RUN, GET_RUN, WAIT_RUN, WaitReply
from agent_orchestrator.operations.sessions import (
    CREATE_SESSION,
    GET_SESSION,
    CreateSessionReply,
)
from agent_orchestrator.ports.transport import Reply
from agentctl.connection import FOLLOW_RETRY_S, DaemonConnection
from agentctl.document import Block, Text
from agentctl.event_text import concerns_run, ends_run
from agentctl.failures import DONE, FAILED, TIMED_OUT, Failure
from agentctl.live import Answers, Display, ask_person, note_still_running
from agentctl.paging import pages
from agentctl.questions import GRANTED, answering, request_card
from agentctl.terminal import clean, one_line, takes_keys
from agentctl.times import today
from agentctl.transcript import Transcript
from agentctl.views import ended, sent_line

_CANCEL_S = 10.0
"""Seconds an interrupted ``ask`` tries to cancel its run."""

_TITLE_CHARACTERS = 60
_PAGE = 1000
_LAST = 200
"""Number of events that `events tail` begins with on a terminal, so that a long log does not run past."""

ONE_WAIT_S: Final = 60.0
"""Maximum seconds of one waiting request. Longer waits use several."""


def _now() -> datetime:
    return datetime.now(UTC)


def exit_code(run: Run) -> int:
    """Return the exit code for a finished run."""
    return DONE if run.status is RunStatus.COMPLETED else FAILED


async def follow_run(connection: DaemonConnection, run: Run, cursor: int, stream: TextIO) -> Run:
    """Show the events of a run until it ends. Return the finished run.

    :param cursor: a position in the session's log before the run's first event.
    """
    display = Display(connection.output, stream)
    answers = Answers(connection, display, run.session_id)

    def take(event: Event) -> bool:
        answers.note(event)
        if not concerns_run(event, run.id):
            return False
        if event.event_type != EventType.MESSAGE_CREATED:
            display.event(event)
        return ends_run(event, run.id)

    async with display.live(f"{run.provider}: {run.status}"), anyio.create_task_group() as tasks:
        tasks.start_soon(answers.run)
        await connection.follow(
            run.session_id, cursor, take, has_ended=partial(_has_ended, connection, run)
        )
        tasks.cancel_scope.cancel()
    return (await connection.call(GET_RUN, run_id=run.id)).run


async def _has_ended(connection: DaemonConnection, run: Run) -> bool:
    return is_terminal((await connection.call(GET_RUN, run_id=run.id)).run.status)


async def wait_for_run(
    connection: DaemonConnection,
    run_id: str,
    timeout_s: float | None,
    **options: Any,
) -> WaitReply:
    """Wait until a run ends; a person sees what its agent does, and can answer what it asks.

    :param timeout_s: maximum seconds to wait; None for no limit.
    :param options: further fields of the request.
    """
    wait_call = partial(connection.call, WAIT_RUN, run_id=run_id, **options)
    connection.retry_s = FOLLOW_RETRY_S
    run = (await connection.call(GET_RUN, run_id=run_id)).run
    if is_terminal(run.status) or not connection.output.interactive:
        return await _wait(wait_call, timeout_s)
    display = Display(connection.output, sys.stderr)
    answers = Answers(connection, display, run.session_id, with_text=True)

    def take(event: Event) -> bool:
        if options.get("until") != "attention":
            answers.note(event)
        if event.run_id == run.id:
            display.note_activity(event)
        return ends_run(event, run.id)

    async def watch() -> None:
        try:
            session = (await connection.call(GET_SESSION, session_id=run.session_id)).session
            await connection.follow(run.session_id, max(session.last_seq - 20, 0), take)
        except (OrchestratorError, Unreachable):
            return  # the concurrent wait encounters the same error and reports it

    async with display.live(f"{run.provider}: {run.status}"), anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        if options.get("until") != "attention":
            tasks.start_soon(answers.run)
        reply = await _wait(wait_call, timeout_s)
        tasks.cancel_scope.cancel()
    return reply


async def _wait(ask: Callable[..., Awaitable[WaitReply]], timeout_s: float | None) -> WaitReply:
    end = None if timeout_s is None else anyio.current_time() + timeout_s
    while True:
        remaining_s = ONE_WAIT_S if end is None else max(end - anyio.current_time(), 0.0)
        reply = await ask(timeout_s=min(remaining_s, ONE_WAIT_S))
        if not reply.timed_out or (end is not None and anyio.current_time() >= end):
            return reply


async def finish_run(
    connection: DaemonConnection,
    run_id: str,
    timeout_s: float | None,
    **options: Any,
) -> int:
    """Wait until a run ends or asks a question, and print that. Return the exit code."""
    with note_still_running(connection.output, run_id):
        reply = await wait_for_run(connection, run_id, timeout_s, **options)
    if (question := reply.request) is not None:
        connection.output.answer(reply, lambda: request_card(question, _now()))
        connection.output.hint(f"next: {answering(question.kind, question.id)}")
        return DONE
    connection.output.answer(reply, lambda: ended(reply.run, _now()))
    if reply.timed_out:
        connection.output.note(
            f"agentctl: the run has not ended after {timeout_s:g} s; see `agentctl run diagnose {run_id}`"
        )
        return TIMED_OUT
    return exit_code(reply.run)


async def _finish(connection: DaemonConnection, run: Run, before: Mapping[str, Any]) -> int:
    """Wait for the end of a run, and print it with what is known before. Return the exit code."""
    with note_still_running(connection.output, run.id):
        found = (await wait_for_run(connection, run.id, None)).run
    connection.output.answer({**before, "run": found}, lambda: ended(found, _now()))
    return exit_code(found)


async def spawn(connection: DaemonConnection, *, wait: bool, **values: Any) -> int:
    """Create a child session and optionally wait for its run. Return the exit code."""
    operation: Any = SPAWN_FROM_RUN if "run_id" in values else SPAWN_FROM_SESSION
    spawned = await connection.call(operation, **values)
    if wait:
        before = {"session": spawned.session, "message": spawned.message}
        return await _finish(connection, spawned.run, before)
    connection.output.answer(spawned, lambda: sent_line(spawned, _now()))
    connection.output.hint(f"next: agentctl tool session-wait --run-id {spawned.run.id}")
    return DONE


async def reply_parent(
    connection: DaemonConnection, *, wait: bool, timeout_s: float | None, **values: Any
) -> int:
    """Send a message or question to a run's parent, and optionally wait. Return the exit code.

    :param timeout_s: maximum seconds to wait; None to wait until the question is closed.
    """
    sent = await connection.call(REPLY_PARENT, wait=wait, **values)
    message, request = sent.message, sent.request
    if request is None or not wait:
        lines: list[Block] = (
            [] if message is None else [f"message {message.id} to {sent.parent_session_id}"]
        )
        if request is not None:
            lines.append(f"request {request.id} is open: {answering(request.kind, request.id)}")
        connection.output.answer(sent, lambda: lines)
        return DONE
    connection.output.note(f"agentctl: waiting; {answering(request.kind, request.id)}")
    connection.retry_s = FOLLOW_RETRY_S
    try:
        end = inf if timeout_s is None else anyio.current_time() + timeout_s
        while request.is_open and (remaining_s := end - anyio.current_time()) > 0:
            reply = await connection.call(
                GET_REQUEST, request_id=request.id, wait_s=min(remaining_s, ONE_WAIT_S)
            )
            request = reply.request
    except anyio.get_cancelled_exc_class():
        connection.output.announce(
            f"agentctl: the question stays open; see `agentctl request show {request.id}`"
        )
        raise
    found = request
    answer = {"request": found, "timed_out": found.is_open}
    connection.output.answer(answer, lambda: request_card(found, _now()))
    if found.is_open:
        connection.output.note(f"agentctl: no answer yet; see `agentctl request show {found.id}`")
        return TIMED_OUT
    return DONE if found.status in GRANTED else FAILED


async def send_message(
    connection: DaemonConnection, *, wait: bool, follow: bool, **values: Any
) -> int:
    """Send a message, and optionally wait for its run or show its events. Return the exit code."""
    cursor = 0
    if follow:
        reply = await connection.call(GET_SESSION, session_id=values["session_id"])
        cursor = reply.session.last_seq
    sent = await connection.reply(SEND_MESSAGE, **values)
    run = sent.answer.run
    if run is None or not (wait or follow):
        connection.output.answer(sent.answer, lambda: sent_line(sent.answer, _now()))
        if run is not None:
            connection.output.hint(f"next: agentctl run wait --run-id {run.id}")
        return DONE
    if not follow:
        return await _finish(connection, run, {"message": sent.answer.message})
    # The run of a replayed message may have begun, or ended, long ago.
    cursor = 0 if sent.replayed else cursor
    with note_still_running(connection.output, run.id):
        if connection.output.structured:
            return await _documents(connection, run, cursor)
        connection.output.show(sent_line(sent.answer, _now()))
        return exit_code(await follow_run(connection, run, cursor, sys.stdout))


async def _documents(connection: DaemonConnection, run: Run, cursor: int) -> int:
    """Print the events of a run as JSON, one per line."""
    completed = False

    def take(event: Event) -> bool:
        nonlocal completed
        if event.run_id != run.id:
            return False
        connection.output.stream_item(event)
        completed = event.event_type == "run.completed"
        return ends_run(event, run.id)

    await connection.follow(
        run.session_id, cursor, take, has_ended=partial(_has_ended, connection, run)
    )
    connection.output.end_of_stream()
    return DONE if completed else FAILED


async def ask(
    connection: DaemonConnection,
    text: str,
    *,
    session_id: str | None,
    detach: bool,
    new: Mapping[str, Any],
    **values: Any,
) -> int:
    """Send a task to an agent, show the run's events and print the result. Return the exit code.

    If standard output is a terminal, everything is printed there. Otherwise it gets only the result,
    and standard error the events.

    :param new: the fields of a new session.
    :param values: the fields of the message.
    """
    sent: Reply[CreateSessionReply] | Reply[MessageReply]
    # Shielded: interrupting the call could leave a run whose id is not known.
    if session_id is None:
        # A single call, so that a refused message leaves no session.
        fields = {"title": one_line(text[:1000])[:_TITLE_CHARACTERS] or None}
        fields |= {name: value for name, value in new.items() if value is not None}
        with anyio.CancelScope(shield=True):
            created = await connection.reply(CREATE_SESSION, text=text, **fields, **values)
        sent, session, cursor = created, created.answer.session, 0
    else:
        session = (await connection.call(GET_SESSION, session_id=session_id)).session
        with anyio.CancelScope(shield=True):
            sent = await connection.reply(SEND_MESSAGE, session_id=session.id, text=text, **values)
        cursor = 0 if sent.replayed else session.last_seq
    message, run = sent.answer.message, sent.answer.run
    assert run is not None  # messages of role user create runs
    head = Text(f"session {session.id}  run {run.id}", "dim")
    if detach:
        answer = {"session": session, "message": message, "run": run}
        connection.output.answer(answer, lambda: [head])
        connection.output.hint(f"see it with: agentctl events tail {session.id} --follow")
        return DONE
    try:
        if connection.output.structured:
            found = (await wait_for_run(connection, run.id, None)).run
        else:
            stream = sys.stdout if connection.output.on_terminal else sys.stderr
            Display(connection.output, stream).show([head])
            found = await follow_run(connection, run, cursor, stream)
    except anyio.get_cancelled_exc_class():
        await _interrupted(connection, run)
        raise
    if connection.output.structured:
        connection.output.answer({"session": session, "message": message, "run": found}, lambda: ())
    elif not connection.output.on_terminal and found.result is not None:
        connection.output.lines([found.result.text])
    connection.output.hint(_next_hint(session, found))
    return exit_code(found)


async def _interrupted(connection: DaemonConnection, run: Run) -> None:
    """Cancel the run of an interrupted ``ask``, unless the person wants to leave it running."""
    with anyio.CancelScope(shield=True):
        if connection.output.interactive and takes_keys():
            question = "agentctl: c cancels the run, l leaves it running: "
            if await ask_person(question, "cl") == "l":
                connection.output.note(
                    f"agentctl: run {run.id} continues; see `agentctl run wait {run.id}`"
                )
                return
    with anyio.move_on_after(_CANCEL_S, shield=True):
        reply = await connection.call(CANCEL_RUN, run_id=run.id, reason="interrupted")
        state = "has ended" if is_terminal(reply.run.status) else "is being canceled"
        connection.output.note(f"agentctl: interrupted; run {run.id} {state}")
        return
    connection.output.note(
        f"agentctl: run {run.id} may continue; end it with `agentctl run cancel {run.id}`"
    )


def _next_hint(session: Session, run: Run) -> str:
    if run.status is RunStatus.COMPLETED:
        return f"continue with: agentctl ask --session-id {session.id} …"
    return f"to see why: agentctl run diagnose {clean(run.id)}"


async def tail_events(
    connection: DaemonConnection,
    session_id: str,
    *,
    follow: bool,
    cursor: int | None,
    lines: int | None,
    epoch: str | None = None,
) -> None:
    """Print the events after a cursor.

    :param follow: wait for new events, forever.
    :param cursor: the ``seq`` to begin after; None for the oldest event, but on a terminal for the last 200.
    :param lines: begin at most this many events before the end.
    :param epoch: the epoch of the cursor, if known.
    """
    session = (await connection.call(GET_SESSION, session_id=session_id)).session
    if cursor is None and lines is None and connection.output.for_people:
        lines = _LAST
        if (earlier := session.last_seq - lines - session.oldest_cursor) > 0:
            all_of_it = f"agentctl events tail {clean(session.id)} --cursor {session.oldest_cursor}"
            connection.output.hint(f"{earlier:,} earlier events; all: {all_of_it}")
    if (cursor or 0) < session.oldest_cursor:
        if cursor is not None:
            connection.output.announce(
                f"agentctl: the events up to {session.oldest_cursor:,} are no longer kept"
            )
        cursor = session.oldest_cursor
    start = max(cursor or 0, 0 if lines is None else session.last_seq - lines)
    display = Display(connection.output, sys.stdout)
    answers = Answers(connection, display, session.id)

    def take(event: Event) -> bool:
        answers.note(event)
        if connection.output.structured:
            connection.output.stream_item(event)
        else:
            display.show(display.transcript.entries(event))
        return False

    if follow:
        if connection.output.structured or display.screen is None:
            await connection.follow(session.id, start, take, retry_s=None, epoch=epoch)
            return
        async with display.live(""), anyio.create_task_group() as tasks:
            tasks.start_soon(answers.run)
            await connection.follow(session.id, start, take, retry_s=None, epoch=epoch)
    await _read_log(connection, session.id, start, epoch, take)
    connection.output.end_of_stream()


async def _read_log(
    connection: DaemonConnection,
    session_id: str,
    start: int,
    epoch: str | None,
    take: Callable[[Event], bool],
) -> None:
    """Pass the events after a cursor to ``take``, up to the last one."""
    while True:
        try:
            page = await connection.call(
                LIST_EVENTS, session_id=session_id, cursor=start, limit=_PAGE, epoch=epoch
            )
        except Gone as error:  # they were deleted since the session was read
            start = int(error.details["oldest"])
            connection.announce_gone()
            continue
        epoch = page.epoch
        for event in page.events:
            take(event)
        start = page.next_cursor
        if not page.has_more:
            return


async def retry_run(connection: DaemonConnection, run_id: str, idempotency_key: str | None) -> None:
    """Send the message of a run again with the same settings."""
    run = (await connection.call(GET_RUN, run_id=run_id)).run
    page = await pages(connection, LIST_MESSAGES, session_id=run.session_id)
    message = next((one for one in page.messages if one.id == run.message_id), None)
    if message is None or message.images:
        reason = "has images, which are no longer stored" if message else "is not stored"
        raise Failure("not_repeatable", f"the message of run {run.id} {reason}")
    names = ("provider", "model", "effort", "sandbox", "approval_policy", "output_schema")
    sent = await connection.call(
        SEND_MESSAGE,
        session_id=run.session_id,
        text=message.text,
        idempotency_key=idempotency_key,
        **{name: getattr(run, name) for name in names},
    )
    connection.output.answer(sent, lambda: sent_line(sent, _now()))
    if sent.run is not None:
        connection.output.hint(f"next: agentctl run wait --run-id {sent.run.id}")


async def list_events(connection: DaemonConnection, **values: Any) -> None:
    """Print one page of events."""
    page = await connection.call(LIST_EVENTS, **values)
    transcript = Transcript(today=today(), diffs=connection.output.on_terminal)

    def view() -> Iterator[Block]:
        blocks = (block for event in page.events for block in transcript.entries(event))
        first = next(blocks, None)
        yield first or "no events"
        yield from blocks

    connection.output.answer(page, view)
    if page.has_more:
        connection.output.note_next_page(page.next_cursor)

"""Commands that start a run and wait for it."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import chain
from math import inf
from typing import Any

import anyio

from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
from agent_orchestrator.domain.model import Event, Run, Session
from agent_orchestrator.operations.messages import (
    SEND_MESSAGE,
    SPAWN_FROM_RUN,
    SPAWN_FROM_SESSION,
    MessageReply,
)
from agent_orchestrator.operations.requests import GET_REQUEST, REPLY_PARENT, ReplyParentReply
from agent_orchestrator.operations.runs import CANCEL_RUN
from agent_orchestrator.operations.sessions import CREATE_SESSION, GET_SESSION, CreateSessionReply
from agent_orchestrator.ports.transport import Reply
from agentctl.connection import FOLLOW_RETRY_S, DaemonConnection
from agentctl.event_text import ends_run
from agentctl.failures import DONE, FAILED, TIMED_OUT
from agentctl.output import Output
from agentctl.questions import GRANTED, answering, request_card
from agentctl.run_watch import (
    ONE_WAIT_S,
    follow_run,
    note_still_running,
    transcript_writer,
    wait_for_run,
)
from agentctl.terminal import Style, clean, one_line, put, truncated
from agentctl.views import end_line, outcome_lines, sent_lines

_CANCEL_S = 10.0
"""Seconds an interrupted ``ask`` tries to cancel its run."""

_TITLE_COLUMNS = 60


def exit_code(run: Run) -> int:
    """Return the exit code for a finished run."""
    return DONE if run.status is RunStatus.COMPLETED else FAILED


async def finish_run(
    connection: DaemonConnection,
    output: Output,
    run_id: str,
    timeout_s: float | None,
    **options: Any,
) -> int:
    """Wait until a run ends or asks a question, and print that. Return the exit code."""
    with note_still_running(output, run_id):
        reply = await wait_for_run(connection, output, run_id, timeout_s, **options)
    now, ended = datetime.now(UTC), reply.run
    if (question := reply.request) is not None:
        output.answer(reply, lambda style: request_card(question, style, now))
        output.hint(f"next: {answering(question.kind, question.id)}")
        return DONE
    output.answer(
        reply, lambda style: chain([end_line(ended, style, now)], outcome_lines(ended, style))
    )
    if reply.timed_out:
        output.note(
            f"agentctl: the run has not ended after {timeout_s:g} s; see `agentctl run diagnose {run_id}`"
        )
        return TIMED_OUT
    return exit_code(ended)


async def spawn(
    connection: DaemonConnection, output: Output, values: Mapping[str, Any], *, wait: bool
) -> int:
    """Create a child session and optionally wait for its run. Return the exit code."""
    if "run_id" in values:
        spawned = await connection.call(SPAWN_FROM_RUN, **values)
    else:
        spawned = await connection.call(SPAWN_FROM_SESSION, **values)
    session, message, run = spawned.session, spawned.message, spawned.run
    if not wait:
        output.answer(
            spawned,
            lambda style: [
                f"session {style.paint(session.id, 'bold')}, {line}"
                for line in sent_lines(message, run, style)
            ],
        )
        output.hint(f"next: agentctl tool session-wait --run-id {run.id}")
        return DONE
    with note_still_running(output, run.id):
        ended = (await wait_for_run(connection, output, run.id, None)).run
    now = datetime.now(UTC)
    output.answer(
        {"session": session, "message": message, "run": ended},
        lambda style: chain([end_line(ended, style, now)], outcome_lines(ended, style)),
    )
    return exit_code(ended)


async def reply_parent(
    connection: DaemonConnection,
    output: Output,
    values: Mapping[str, Any],
    *,
    wait: bool,
    timeout_s: float | None,
) -> int:
    """Send a message or question to a run's parent, and optionally wait. Return the exit code.

    :param timeout_s: maximum seconds to wait; None to wait until the question is closed.
    """
    sent = await connection.call(REPLY_PARENT, wait=wait, **values)
    request = sent.request
    if request is None or not wait:
        output.answer(sent, lambda style: _reply_lines(sent, style))
        return DONE
    output.note(f"agentctl: waiting; {answering(request.kind, request.id)}")
    connection.retry_s = FOLLOW_RETRY_S
    try:
        end = inf if timeout_s is None else anyio.current_time() + timeout_s
        while request.is_open and (remaining_s := end - anyio.current_time()) > 0:
            reply = await connection.call(
                GET_REQUEST, request_id=request.id, wait_s=min(remaining_s, ONE_WAIT_S)
            )
            request = reply.request
    except anyio.get_cancelled_exc_class():
        output.announce(
            f"agentctl: the question stays open; see `agentctl request show {request.id}`"
        )
        raise
    found = request
    output.answer(
        {"request": found, "timed_out": found.is_open},
        lambda style: request_card(found, style, datetime.now(UTC)),
    )
    if found.is_open:
        output.note(f"agentctl: no answer yet; see `agentctl request show {found.id}`")
        return TIMED_OUT
    return DONE if found.status in GRANTED else FAILED


def _reply_lines(reply: ReplyParentReply, style: Style) -> list[str]:
    lines = []
    if reply.message is not None:
        lines.append(
            f"message {style.paint(reply.message.id, 'bold')} to {reply.parent_session_id}"
        )
    if reply.request is not None:
        lines.append(
            f"request {style.paint(reply.request.id, 'bold')} is open: "
            f"{answering(reply.request.kind, reply.request.id)}"
        )
    return lines


async def send_message(
    connection: DaemonConnection,
    output: Output,
    values: Mapping[str, Any],
    *,
    wait: bool,
    follow: bool,
) -> int:
    """Send a message, and optionally wait for its run or show its events. Return the exit code."""
    cursor = 0
    if follow:
        cursor = await _end_of_log(connection, values["session_id"])
    sent = await connection.reply(SEND_MESSAGE, **values)
    message, run = sent.answer.message, sent.answer.run
    if run is None or not (wait or follow):
        output.answer(sent.answer, lambda style: sent_lines(message, run, style))
        if run is not None:
            output.hint(f"next: agentctl run wait --run-id {run.id}")
        return DONE
    # The run of a replayed message may have begun, or ended, long ago.
    cursor = 0 if sent.replayed else cursor
    with note_still_running(output, run.id):
        if not follow:
            ended = (await wait_for_run(connection, output, run.id, None)).run
            now = datetime.now(UTC)
            output.answer(
                {"message": message, "run": ended},
                lambda style: chain([end_line(ended, style, now)], outcome_lines(ended, style)),
            )
            return exit_code(ended)
        if output.structured:
            return await _documents(connection, output, run, cursor)
        output.lines(sent_lines(message, run, output.style))
        show = transcript_writer(output, sys.stdout)
        return exit_code(
            await follow_run(connection, output, run, cursor, show=show, stream=sys.stdout)
        )


async def _end_of_log(connection: DaemonConnection, session_id: str) -> int:
    return (await connection.call(GET_SESSION, session_id=session_id)).session.last_seq


async def _documents(connection: DaemonConnection, output: Output, run: Run, cursor: int) -> int:
    """Print the events of a run as JSON, one per line."""
    completed = False

    def take(event: Event) -> bool:
        nonlocal completed
        if event.run_id != run.id:
            return False
        output.stream_item(event)
        completed = event.event_type == "run.completed"
        return ends_run(event, run.id)

    await connection.follow(run.session_id, cursor, take)
    output.end_of_stream()
    return DONE if completed else FAILED


async def ask(
    connection: DaemonConnection,
    output: Output,
    text: str,
    *,
    session_id: str | None,
    cwd: str | None,
    provider: str | None,
    idempotency_key: str | None,
    **options: Any,
) -> int:
    """Send a task to an agent, show the run's events and print the result. Return the exit code.

    If standard output is a terminal, everything is printed there. Otherwise it gets only the result,
    and standard error the events.
    """
    values = {"text": text, "provider": provider, "idempotency_key": idempotency_key, **options}
    sent: Reply[CreateSessionReply] | Reply[MessageReply]
    # Shielded: interrupting the call could leave a run whose id is not known.
    if session_id is None:
        # A single call, so that a refused message leaves no session.
        title = truncated(one_line(text[:1000]), _TITLE_COLUMNS) or None
        with anyio.CancelScope(shield=True):
            created = await connection.reply(CREATE_SESSION, cwd=cwd, title=title, **values)
        sent, session, cursor = created, created.answer.session, 0
    else:
        session = (await connection.call(GET_SESSION, session_id=session_id)).session
        with anyio.CancelScope(shield=True):
            sent = await connection.reply(SEND_MESSAGE, session_id=session_id, **values)
        cursor = 0 if sent.replayed else session.last_seq
    message, run = sent.answer.message, sent.answer.run
    assert run is not None  # messages of role user create runs
    stream = sys.stdout if output.on_terminal else sys.stderr
    style = output.style if output.on_terminal else output.error_style
    try:
        if output.structured:
            ended = (await wait_for_run(connection, output, run.id, None)).run
        else:
            put(stream, style.paint(f"session {session.id}  run {run.id}", "dim") + "\n")
            show = transcript_writer(output, stream)
            ended = await follow_run(connection, output, run, cursor, show=show, stream=stream)
    except anyio.get_cancelled_exc_class():
        await _cancel(connection, output, run)
        raise
    if output.structured:
        output.answer({"session": session, "message": message, "run": ended}, lambda _: ())
    elif not output.on_terminal and ended.result is not None:
        output.lines([ended.result.text])
    output.hint(_next_hints(session, ended))
    return exit_code(ended)


async def _cancel(connection: DaemonConnection, output: Output, run: Run) -> None:
    """Cancel the run of an interrupted ``ask``."""
    with anyio.move_on_after(_CANCEL_S, shield=True):
        reply = await connection.call(CANCEL_RUN, run_id=run.id, reason="interrupted")
        state = "has ended" if is_terminal(reply.run.status) else "is being canceled"
        output.note(f"agentctl: interrupted; run {run.id} {state}")
        return
    output.note(f"agentctl: run {run.id} may continue; end it with `agentctl run cancel {run.id}`")


def _next_hints(session: Session, run: Run) -> str:
    if run.status is RunStatus.COMPLETED:
        return f'continue with: agentctl ask --session-id {session.id} "…"'
    return f"to see why: agentctl run diagnose {clean(run.id)}"

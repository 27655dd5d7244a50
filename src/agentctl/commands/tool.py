"""``agentctl tool``: what agents do with each other. Answers are JSON: programs read them."""

import os
from datetime import UTC, datetime
from typing import Any, Final

import click

from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.failures import usage
from agentctl.options import (
    Group,
    approvals,
    attention,
    idempotency_key,
    identified,
    limits,
    read_id,
    read_object,
    read_text,
    turn_options,
)

RUN_VARIABLE: Final = "AGENTCTL_RUN_ID"
SESSION_VARIABLE: Final = "AGENTCTL_SESSION_ID"
"""What tells an agent which run it is, and of which session."""


@click.group(
    cls=Group,
    examples="""
    agentctl tool session-spawn --parent-run-id run_01k0 --task "Write the tests"
    agentctl tool session-send --session-id ses_01k1 --text "Also cover the errors"
    agentctl tool session-wait --run-id run_01k1
    agentctl tool session-reply-parent --run-id run_01k1 --text "Halfway through"
    """,
)
def tool() -> None:
    """Let agents work together: spawn children, send to them, wait for them, ask.

    Answers are JSON without --format json; --format text gives text. Inside a run its own ids come
    from the environment.
    """


def _own(variable: str) -> str | None:
    """Return an id of the run this call is made in; None outside of runs."""
    return os.environ.get(variable) or None


def _given_or_own(value: str | None, variable: str) -> str | None:
    return read_id(value) if value else _own(variable)


@tool.command(
    "session-spawn",
    examples="""
    agentctl tool session-spawn --parent-run-id run_01k0 --task "Write the tests"
    agentctl tool session-spawn --task "Review the change" --provider review --notify-parent wake
    agentctl tool session-spawn --task - --wait --field run.result.text < task.md
    """,
)
@click.option("--parent-run-id", metavar="ID", help=f"The run that spawns.  [env: {RUN_VARIABLE}]")
@click.option("--parent-session-id", metavar="ID", help="The parent, without a run of it.")
@click.option("--task", required=True, help="What the child shall do; - reads standard input.")
@click.option("--provider", help="The child's agent; its parent's without one.")
@click.option("--cwd", metavar="DIR", help="Where the child works; where its parent does without.")
@click.option("--title", help="A name for people.")
@click.option(
    "--notify-parent",
    type=click.Choice(["record", "wake"]),
    help="wake: hand the outcome to the parent's agent as its next message.  [default: record]",
)
@approvals("the child asks for: its parent's policy, or a stricter one")
@limits("the child")
@turn_options
@idempotency_key
@click.option("--wait", is_flag=True, help="Wait for the end of the child's run.")
def session_spawn(
    parent_run_id: str | None,
    parent_session_id: str | None,
    task: str,
    cwd: str | None,
    *,
    wait: bool,
    **values: Any,
) -> None:
    """Make a child session and give it a task.

    The answer holds the child's "session", the "message" with its task and the "run" that works on
    it. With --wait the exit code is the run's: 0 it completed, 1 it did not.
    """
    call = Call.current(default_format="json")
    if parent_run_id and parent_session_id:
        raise usage("--parent-run-id and --parent-session-id: give one of them")
    if parent_session_id:
        parent = {"session_id": read_id(parent_session_id)}
    elif run_id := _given_or_own(parent_run_id, RUN_VARIABLE):
        parent = {"run_id": run_id}
    else:
        raise usage("say which parent: --parent-run-id or --parent-session-id ID")
    if cwd is not None:
        cwd = working_directory(cwd, local=call.settings.is_local)
    values |= parent | {"task": read_text(task), "cwd": cwd}

    async def body(connection: Any) -> int:
        from agentctl.sending import spawn

        return await spawn(connection, call.output, values, wait=wait)

    call.run(body)


@tool.command(
    "session-send",
    examples="""
    agentctl tool session-send --session-id ses_01k1 --text "Also cover the errors"
    agentctl tool session-send --session-id ses_01k1 --text "Stop that" --when-busy interrupt
    """,
)
@identified("session")
@click.option("--text", required=True, help="What to tell its agent; - reads standard input.")
@click.option("--from-run-id", metavar="ID", help=f"The run that sends.  [env: {RUN_VARIABLE}]")
@click.option(
    "--when-busy",
    type=click.Choice(["queue", "steer", "interrupt", "reject"]),
    help="What to do while a run of the session is active.  [default: queue]",
)
@turn_options
@idempotency_key
def session_send(text: str, from_run_id: str | None, **values: Any) -> None:
    """Send a message to the agent of another session."""
    call = Call.current(default_format="json")
    values["from_run_id"] = _given_or_own(from_run_id, RUN_VARIABLE)
    values["text"] = read_text(text)

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import SEND_TO_SESSION
        from agentctl.views import sent_lines

        reply = await connection.call(SEND_TO_SESSION, **values)
        call.output.answer(reply, lambda look: sent_lines(reply.message, reply.run, look))

    call.run(body)


@tool.command(
    "session-wait",
    examples="""
    agentctl tool session-wait --run-id run_01k1
    agentctl tool session-wait --run-id run_01k1 --timeout-s 60 --field run.result.text
    agentctl tool session-wait --run-id run_01k1 --until attention --ignore req_01k0
    """,
)
@identified("run")
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0),
    help="Seconds to wait at most; exit code 7 after them.  [default: no limit]",
)
@attention
def session_wait(run_id: str, timeout_s: float | None, until: Any, ignore: tuple[str, ...]) -> None:
    """Wait until a child's run has ended: exit code 0 when it completed, 1 when it did not.

    The answer holds the "run" with its result, and whether the wait has "timed_out". With --until
    attention it may hold a "request" instead, which the run or one below it asks: the exit code is
    0. Answer it, or leave it to a person, and wait again with --ignore REQUEST_ID.
    """
    call = Call.current(default_format="json")

    async def body(connection: Any) -> int:
        from agentctl.sending import see_run_end

        return await see_run_end(
            connection, call.output, run_id, timeout_s, until=until, ignore=ignore
        )

    call.run(body)


@tool.command(
    "session-reply-parent",
    examples="""
    agentctl tool session-reply-parent --text "Halfway through"
    agentctl tool session-reply-parent --request-kind approval_request --text "May I: rm -rf ./tmp-cache" --wait
    agentctl tool session-reply-parent --request-kind input_request --text - --wait --field request.answer < question.md
    """,
)
@click.option("--run-id", metavar="ID", help=f"The run that speaks.  [env: {RUN_VARIABLE}]")
@click.option("--text", required=True, help="What to tell or ask; - reads standard input.")
@click.option(
    "--request-kind",
    type=click.Choice(["approval_request", "permission_request", "input_request"]),
    help="Ask: it stands in the inbox until it is answered.",
)
@click.option(
    "--detail", metavar="JSON", help="An object: what exactly is asked for; - reads standard input."
)
@click.option("--option", "options", multiple=True, help="An answer to choose from; repeatable.")
@click.option(
    "--expires-in-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until the question expires, which is a denial.  [default: 3600]",
)
@click.option("--wait", is_flag=True, help="Wait for the answer; the run is `waiting` until then.")
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0),
    help="With --wait: seconds to wait at most; exit code 7 after them.  [default: no limit]",
)
@idempotency_key
def session_reply_parent(
    run_id: str | None,
    text: str,
    detail: str | None,
    options: tuple[str, ...],
    *,
    wait: bool,
    timeout_s: float | None,
    **values: Any,
) -> None:
    """Tell or ask the parent of a run, whichever that is.

    The answer holds the "message" to the parent, its "parent_session_id" and the "request". With
    --wait it holds the "request" as it was resolved, and the exit code tells how: 0 approved or
    answered, 1 denied, expired or canceled. After --timeout-s the wait ends, not the question: the
    answer holds "timed_out", and the exit code is 7.
    """
    call = Call.current(default_format="json")
    if values["request_kind"] is None and (detail is not None or options or wait):
        raise usage("--detail, --option and --wait go with --request-kind")
    if values["expires_in_s"] is not None and values["request_kind"] is None:
        raise usage("--expires-in-s goes with --request-kind")
    if timeout_s is not None and not wait:
        raise usage("--timeout-s goes with --wait; --expires-in-s says when the question expires")
    values["run_id"] = _given_or_own(run_id, RUN_VARIABLE)
    if values["run_id"] is None:
        raise usage("say which run speaks: --run-id ID")
    values["text"] = read_text(text)
    values["detail"] = None if detail is None else read_object(detail, "--detail")
    values["options"] = list(options) or None

    async def body(connection: Any) -> int:
        from agentctl.sending import reply_parent

        return await reply_parent(connection, call.output, values, wait=wait, timeout_s=timeout_s)

    call.run(body)


@tool.command(
    "session-list",
    examples="""
    agentctl tool session-list
    agentctl tool session-list --parent-session-id ses_01k0 --field sessions.0.id
    """,
)
@click.option(
    "--parent-session-id", metavar="ID", help=f"Whose children.  [env: {SESSION_VARIABLE}]"
)
@click.option("--limit", type=int, help="How many at most.  [default: all]")
@click.option("--cursor", help="`next_cursor` of the page before.")
def session_list(parent_session_id: str | None, **values: Any) -> None:
    """List the children of a session, oldest first."""
    call = Call.current(default_format="json")
    parent_id = _given_or_own(parent_session_id, SESSION_VARIABLE)
    if parent_id is None:
        raise usage("say whose children: --parent-session-id ID")

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import LIST_SESSIONS
        from agentctl.paging import pages
        from agentctl.views import session_table

        page = await pages(
            connection, LIST_SESSIONS, "sessions", parent_session_id=parent_id, **values
        )
        now = datetime.now(UTC)
        call.output.answer(page, lambda look: session_table(page.sessions, look, now))
        call.output.more(page.next_cursor)

    call.run(body)

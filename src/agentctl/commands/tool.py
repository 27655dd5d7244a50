"""``agentctl tool``: the tools for agents. Answers are JSON by default, because programs read them."""

import os
from datetime import UTC, datetime
from typing import Any, Final

import click

from agent_orchestrator.operations.messages import SEND_TO_SESSION, SendToSession
from agent_orchestrator.operations.options import Keyed, SpawnOptions
from agent_orchestrator.operations.requests import ReplyParent
from agent_orchestrator.operations.runs import WaitRun
from agent_orchestrator.operations.sessions import LIST_SESSIONS, ListSessions
from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.failures import usage_failure
from agentctl.fields import ALL, options_of
from agentctl.options import MAX_WAIT_S, Group, Number, identified, read_id

RUN_VARIABLE: Final = "AGENTCTL_RUN_ID"
SESSION_VARIABLE: Final = "AGENTCTL_SESSION_ID"
"""Variables with an agent's own run id and session id."""


def _env(help_: str, variable: str) -> str:
    return f"{help_}  [env: {variable}]"


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
    """Spawn child agents, send to them, wait for them, and ask your parent.

    The output is JSON; for text use --format text. Inside a run, its ids come from the environment.
    """


def _own_id(variable: str) -> str | None:
    """Return the id of the calling agent's run or session; None outside of runs."""
    return os.environ.get(variable) or None


def _required_id(value: str | None, variable: str) -> str | None:
    return read_id(value) if value else _own_id(variable)


@tool.command(
    "session-spawn",
    examples="""
    agentctl tool session-spawn --parent-run-id run_01k0 --task "Write the tests"
    agentctl tool session-spawn --task "Review the change" --provider review --notify-parent wake
    agentctl tool session-spawn --task - --wait --field run.result.text < task.md
    """,
)
@click.option("--parent-run-id", metavar="ID", help=f"The run that spawns.  [env: {RUN_VARIABLE}]")
@click.option(
    "--parent-session-id", metavar="ID", help="The parent session, if no run spawns the child."
)
@options_of(SpawnOptions)
@click.option("--wait", is_flag=True, help="Wait for the end of the child's run.")
def session_spawn(
    parent_run_id: str | None,
    parent_session_id: str | None,
    cwd: str | None,
    *,
    wait: bool,
    **values: Any,
) -> None:
    """Create a child session with a task.

    The answer has the child's "session", the "message" with its task, and the "run" that works on
    it. With --wait, the exit code is 0 if the run completed, and 1 if it did not.
    """
    call = Call.current(default_format="json")
    if parent_run_id and parent_session_id:
        raise usage_failure("give only one of --parent-run-id and --parent-session-id")
    if parent_session_id:
        parent = {"session_id": read_id(parent_session_id)}
    elif run_id := _required_id(parent_run_id, RUN_VARIABLE):
        parent = {"run_id": run_id}
    else:
        raise usage_failure("name the parent: --parent-run-id or --parent-session-id ID")
    if cwd is not None:
        cwd = working_directory(cwd, local=call.settings.is_local)
    values |= parent | {"cwd": cwd}

    async def body(connection: Any) -> int:
        from agentctl.run_commands import spawn

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
@options_of(
    SendToSession,
    without=("session_id",),
    from_run_id=_env("The run that sends the message.", RUN_VARIABLE),
)
def session_send(**values: Any) -> None:
    """Send a message to the agent of another session."""
    call = Call.current(default_format="json")
    values["from_run_id"] = values["from_run_id"] or _own_id(RUN_VARIABLE)

    async def body(connection: Any) -> None:
        from agentctl.views import sent_lines

        reply = await connection.call(SEND_TO_SESSION, **values)
        call.output.answer(reply, lambda style: sent_lines(reply.message, reply.run, style))

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
    type=Number(0, MAX_WAIT_S),
    help="Maximum seconds to wait. After that, the exit code is 7.  [default: no limit]",
)
@options_of(WaitRun, only=("until", "ignore"))
def session_wait(run_id: str, timeout_s: float | None, **values: Any) -> None:
    """Wait until a child's run has ended. The exit code is 0 if it completed, and 1 if it did not.

    The answer has the "run" with its result, and "timed_out". With --until attention, it may have a
    "request" of the run or a descendant instead. Then the exit code is 0. Answer the request, or
    leave it to a person, and wait again with --ignore REQUEST_ID.
    """
    call = Call.current(default_format="json")

    async def body(connection: Any) -> int:
        from agentctl.run_commands import finish_run

        return await finish_run(connection, call.output, run_id, timeout_s, **values)

    call.run(body)


@tool.command(
    "session-reply-parent",
    examples="""
    agentctl tool session-reply-parent --text "Halfway through"
    agentctl tool session-reply-parent --request-kind approval_request --text "May I: rm -rf ./tmp-cache" --wait
    agentctl tool session-reply-parent --request-kind input_request --text - --wait --field request.answer < question.md
    """,
)
@options_of(
    ReplyParent,
    without=("wait", "idempotency_key"),
    run_id=_env("The run that sends the message.", RUN_VARIABLE),
    optional=("run_id",),
)
@click.option("--wait", is_flag=True, help="Wait for the answer; the run is `waiting` until then.")
@click.option(
    "--timeout-s",
    type=Number(0, MAX_WAIT_S),
    help=("Maximum seconds for --wait. After that, the exit code is 7.  [default: no limit]"),
)
@options_of(Keyed)
def session_reply_parent(
    *,
    wait: bool,
    timeout_s: float | None,
    **values: Any,
) -> None:
    """Send a message or a question to the parent of a run.

    The answer has the "message" to the parent, its "parent_session_id", and the "request". With
    --wait, the answer has the resolved "request". Then the exit code is 0 if it was approved or
    answered, and 1 if it was denied, expired or canceled. After --timeout-s the wait ends, but the
    question stays open. Then the answer has "timed_out", and the exit code is 7.
    """
    call = Call.current(default_format="json")
    if values["request_kind"] is None and (
        values["detail"] is not None or values["options"] or wait
    ):
        raise usage_failure("--detail, --option and --wait need --request-kind")
    if values["expires_in_s"] is not None and values["request_kind"] is None:
        raise usage_failure("--expires-in-s needs --request-kind")
    if timeout_s is not None and not wait:
        raise usage_failure(
            "--timeout-s needs --wait; to set when the question expires, use --expires-in-s"
        )
    values["run_id"] = values["run_id"] or _own_id(RUN_VARIABLE)
    if values["run_id"] is None:
        raise usage_failure("name the run that sends the message: --run-id ID")

    async def body(connection: Any) -> int:
        from agentctl.run_commands import reply_parent

        return await reply_parent(connection, call.output, values, wait=wait, timeout_s=timeout_s)

    call.run(body)


@tool.command(
    "session-list",
    examples="""
    agentctl tool session-list
    agentctl tool session-list --parent-session-id ses_01k0 --field sessions.0.id
    """,
)
@options_of(
    ListSessions,
    without=("status",),
    limit=ALL,
    parent_session_id=_env("The session whose children to list.", SESSION_VARIABLE),
)
def session_list(parent_session_id: str | None, **values: Any) -> None:
    """List the children of a session, oldest first."""
    call = Call.current(default_format="json")
    parent_id = parent_session_id or _own_id(SESSION_VARIABLE)
    if parent_id is None:
        raise usage_failure("name the parent session: --parent-session-id ID")

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.views import session_table

        page = await pages(
            connection, LIST_SESSIONS, "sessions", parent_session_id=parent_id, **values
        )
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: session_table(page.sessions, style, now))
        call.output.note_next_page(page.next_cursor)

    call.run(body)

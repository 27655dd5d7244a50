"""``agentctl tool``: the tools for agents. Answers are JSON by default, because programs read them."""

import os
from collections.abc import Mapping
from typing import Any, Final

import click

from agent_orchestrator.operations.messages import SEND_TO_SESSION
from agent_orchestrator.operations.options import Keyed, SpawnOptions
from agent_orchestrator.operations.requests import ReplyParent
from agent_orchestrator.operations.runs import WaitRun
from agent_orchestrator.operations.sessions import LIST_SESSIONS
from agentctl.call import Call
from agentctl.commands.session import working_directory
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import Group, identified, read_id, timeout_option
from agentctl.rows import row

RUN_VARIABLE: Final = "AGENTCTL_RUN_ID"
SESSION_VARIABLE: Final = "AGENTCTL_SESSION_ID"
"""Variables with an agent's own run id and session id."""


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


def _own(value: str | None, variable: str) -> str | None:
    """Return an id, by default the one of the calling agent's run or session."""
    return (read_id(value) if value else os.environ.get(variable)) or None


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
        values["session_id"] = read_id(parent_session_id)
    elif run_id := _own(parent_run_id, RUN_VARIABLE):
        values["run_id"] = run_id
    else:
        raise usage_failure("name the parent: --parent-run-id or --parent-session-id ID")
    if cwd is not None:
        values["cwd"] = working_directory(cwd, local=call.settings.is_local)

    async def body(connection: Any) -> int:
        from agentctl.follow import spawn

        return await spawn(connection, call.output, values, wait=wait)

    call.run(body)


def _from_own_run(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    return values | {"from_run_id": _own(values["from_run_id"], RUN_VARIABLE)}


row(
    tool, "session-send", SEND_TO_SESSION, "views:sent_line",
    "Send a message to the agent of another session.",
    """
    agentctl tool session-send --session-id ses_01k1 --text "Also cover the errors"
    agentctl tool session-send --session-id ses_01k1 --text "Stop that" --when-busy interrupt
    """,
    default_format="json", prepare=_from_own_run,
    from_run_id=f"The run that sends the message.  [env: {RUN_VARIABLE}]",
)  # fmt: skip


@tool.command(
    "session-wait",
    examples="""
    agentctl tool session-wait --run-id run_01k1
    agentctl tool session-wait --run-id run_01k1 --timeout-s 60 --field run.result.text
    agentctl tool session-wait --run-id run_01k1 --until attention --ignore req_01k0
    """,
)
@identified("run")
@timeout_option("Maximum seconds to wait.")
@options_of(WaitRun, only=("until", "ignore"))
def session_wait(run_id: str, timeout_s: float | None, **values: Any) -> None:
    """Wait until a child's run has ended. The exit code is 0 if it completed, and 1 if it did not.

    The answer has the "run" with its result, and "timed_out". With --until attention, it may have a
    "request" of the run or a descendant instead. Then the exit code is 0. Answer the request, or
    leave it to a person, and wait again with --ignore REQUEST_ID.
    """
    call = Call.current(default_format="json")

    async def body(connection: Any) -> int:
        from agentctl.follow import finish_run

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
    run_id=f"The run that sends the message.  [env: {RUN_VARIABLE}]",
    optional=("run_id",),
)
@click.option("--wait", is_flag=True, help="Wait for the answer; the run is `waiting` until then.")
@timeout_option("Maximum seconds for --wait.")
@options_of(Keyed)
def session_reply_parent(*, wait: bool, timeout_s: float | None, **values: Any) -> None:
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
    values["run_id"] = _own(values["run_id"], RUN_VARIABLE)
    if values["run_id"] is None:
        raise usage_failure("name the run that sends the message: --run-id ID")

    async def body(connection: Any) -> int:
        from agentctl.follow import reply_parent

        return await reply_parent(connection, call.output, values, wait=wait, timeout_s=timeout_s)

    call.run(body)


def _of_own_session(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (parent_id := _own(values["parent_session_id"], SESSION_VARIABLE)) is None:
        raise usage_failure("name the parent session: --parent-session-id ID")
    return values | {"parent_session_id": parent_id}


row(
    tool, "session-list", LIST_SESSIONS, "views:session_table:sessions",
    "List the children of a session, oldest first.",
    """
    agentctl tool session-list
    agentctl tool session-list --parent-session-id ses_01k0 --field sessions.0.id
    """,
    without=("status",), default_format="json", prepare=_of_own_session,
    parent_session_id=f"The session whose children to list.  [env: {SESSION_VARIABLE}]",
)  # fmt: skip

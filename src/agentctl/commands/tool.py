"""``agentctl tool``: the tools for agents. Answers are JSON by default, because programs read them."""

import os
from collections.abc import Mapping
from typing import Any, Final

import click

from agent_orchestrator.operations.messages import SEND_TO_SESSION, SPAWN_FROM_RUN
from agent_orchestrator.operations.requests import REPLY_PARENT
from agent_orchestrator.operations.runs import WAIT_RUN
from agent_orchestrator.operations.sessions import LIST_SESSIONS
from agentctl.call import Call
from agentctl.commands.session import require_absolute, require_here, working_directory
from agentctl.failures import usage_failure
from agentctl.options import Group, read_id, timeout_option
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


def _with_parent(call: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    run_id, session_id = values.pop("parent_run_id"), values.pop("parent_session_id")
    if run_id and session_id:
        raise usage_failure("give only one of --parent-run-id and --parent-session-id")
    if session_id:
        values["session_id"] = read_id(session_id)
    elif (own := _own(run_id, RUN_VARIABLE)) is not None:
        values["run_id"] = own
    else:
        raise usage_failure("name the parent: --parent-run-id or --parent-session-id ID")
    if values["cwd"] is not None and not require_absolute(values):
        if session_id:
            require_here(call, values["cwd"], session_id=values["session_id"])
        elif run_id:  # not one of the environment: an agent is on the host of its daemon
            require_here(call, values["cwd"], run_id=values["run_id"])
        values["cwd"] = working_directory(values["cwd"], local=call.settings.is_local)
    return values


session_spawn = row(
    tool,
    "session-spawn",
    SPAWN_FROM_RUN,
    "!follow:spawn",
    """Create a child session with a task.

    The answer has the child's "session", the "message" with its task, and the "run" that works on
    it. With --wait, the exit code is 0 if the run completed, and 1 if it did not.
    """,
    """
    agentctl tool session-spawn --parent-run-id run_01k0 --task "Write the tests"
    agentctl tool session-spawn --task "Review the change" --provider review --notify-parent wake
    agentctl tool session-spawn --task - --wait --field run.result.text < task.md
    """,
    of="",
    without=("run_id",),
    default_format="json",
    prepare=_with_parent,
    extra=(
        click.option(
            "--parent-run-id", metavar="ID", help=f"The run that spawns.  [env: {RUN_VARIABLE}]"
        ),
        click.option(
            "--parent-session-id",
            metavar="ID",
            help="The parent session, if no run spawns the child.",
        ),
        click.option("--wait", is_flag=True, help="Wait for the end of the child's run."),
    ),
)


def _from_own_run(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    return values | {"from_run_id": _own(values["from_run_id"], RUN_VARIABLE)}


row(
    tool,
    "session-send",
    SEND_TO_SESSION,
    "views:sent_line",
    "Send a message to the agent of another session.",
    """
    agentctl tool session-send --session-id ses_01k1 --text "Also cover the errors"
    agentctl tool session-send --session-id ses_01k1 --text "Stop that" --when-busy interrupt
    """,
    default_format="json",
    prepare=_from_own_run,
    from_run_id=f"The run that sends the message.  [env: {RUN_VARIABLE}]",
)


row(
    tool,
    "session-wait",
    WAIT_RUN,
    "!follow:finish_run",
    """Wait until a child's run has ended. The exit code is 0 if it completed, and 1 if it did not.

    The answer has the "run" with its result, and "timed_out". With --until attention, it may have a
    "request" of the run or a descendant instead. Then the exit code is 0. Answer the request, or
    leave it to a person, and wait again with --ignore REQUEST_ID.
    """,
    """
    agentctl tool session-wait --run-id run_01k1
    agentctl tool session-wait --run-id run_01k1 --timeout-s 60 --field run.result.text
    agentctl tool session-wait --run-id run_01k1 --until attention --ignore req_01k0
    """,
    default_format="json",
    only=("until", "ignore"),
    extra=(timeout_option("Maximum seconds to wait."),),
)


def _as_question(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if values["request_kind"] is None:
        if values["detail"] is not None or values["options"] or values["wait"]:
            raise usage_failure("--detail, --option and --wait need --request-kind")
        if values["expires_in_s"] is not None:
            raise usage_failure("--expires-in-s needs --request-kind")
    if values["timeout_s"] is not None and not values["wait"]:
        raise usage_failure(
            "--timeout-s needs --wait; to set when the question expires, use --expires-in-s"
        )
    if (run_id := _own(values["run_id"], RUN_VARIABLE)) is None:
        raise usage_failure("name the run that sends the message: --run-id ID")
    return values | {"run_id": run_id}


session_reply_parent = row(
    tool,
    "session-reply-parent",
    REPLY_PARENT,
    "!follow:reply_parent",
    """Send a message or a question to the parent of a run.

    The answer has the "message" to the parent, its "parent_session_id", and the "request". With
    --wait, the answer has the resolved "request". Then the exit code is 0 if it was approved or
    answered, and 1 if it was denied, expired or canceled. After --timeout-s the wait ends, but the
    question stays open. Then the answer has "timed_out", and the exit code is 7.
    """,
    """
    agentctl tool session-reply-parent --text "Halfway through"
    agentctl tool session-reply-parent --request-kind approval_request --text "May I: rm -rf ./tmp-cache" --wait
    agentctl tool session-reply-parent --request-kind input_request --text - --wait --field request.answer < question.md
    """,
    of="",
    without=("wait",),
    optional=("run_id",),
    default_format="json",
    prepare=_as_question,
    run_id=f"The run that sends the message.  [env: {RUN_VARIABLE}]",
    extra=(
        click.option(
            "--wait", is_flag=True, help="Wait for the answer; the run is `waiting` until then."
        ),
        timeout_option("Maximum seconds for --wait."),
    ),
)


def _of_own_session(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (parent_id := _own(values["parent_session_id"], SESSION_VARIABLE)) is None:
        raise usage_failure("name the parent session: --parent-session-id ID")
    return values | {"parent_session_id": parent_id}


row(
    tool,
    "session-list",
    LIST_SESSIONS,
    "views:session_table:sessions",
    "List the children of a session, oldest first.",
    """
    agentctl tool session-list
    agentctl tool session-list --parent-session-id ses_01k0 --field sessions.0.id
    """,
    without=("status",),
    default_format="json",
    prepare=_of_own_session,
    parent_session_id=f"The session whose children to list.  [env: {SESSION_VARIABLE}]",
)

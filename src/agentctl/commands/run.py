"""``agentctl run``: runs of agents."""

from collections.abc import Mapping
from typing import Any

import click

from agent_orchestrator.operations.options import Keyed
from agent_orchestrator.operations.runs import (
    CANCEL_RUN,
    CREATE_RUN,
    DIAGNOSE_RUN,
    GET_RUN,
    LIST_RUNS,
    TRANSITION_RUN,
    WAIT_RUN,
)
from agentctl.call import Call
from agentctl.fields import options_of
from agentctl.options import Group, read_text, timeout_option
from agentctl.rows import row


@click.group(
    cls=Group,
    examples="""
    agentctl run list --status running
    agentctl run wait --run-id run_01k0 --timeout-s 60
    agentctl run diagnose run_01k0
    """,
)
def run() -> None:
    """Start, show, await, cancel, repeat and diagnose runs."""


row(
    run,
    "create",
    CREATE_RUN,
    "views:run_card:run",
    "Queue a run.",
    """
    agentctl run create --session-id ses_01k0 --text "Run the tests"
    agentctl run create --session-id ses_01k0 --provider manual --field run.id
    """,
    of="session_id",
)
row(
    run,
    "get",
    GET_RUN,
    "views:run_card:run",
    "Show a run.",
    """
    agentctl run get run_01k0
    agentctl run get @last --field run.result.text
    """,
)
row(
    run,
    "list",
    LIST_RUNS,
    "views:run_table:runs",
    "List runs: the newest first on a terminal, otherwise the oldest.",
    """
    agentctl run list
    agentctl run list --session-id ses_01k0 --status failed
    """,
)


row(
    run,
    "wait",
    WAIT_RUN,
    "!follow:finish_run",
    """Wait until a run has ended. The exit code is 0 if it completed, and 1 if it did not.

    With --until attention, also return if the run or a descendant asks something. Then the exit
    code is 0 and the answer has the "request". Otherwise, on a terminal, you answer requests with keys.
    """,
    """
    agentctl run wait --run-id run_01k0
    agentctl run wait run_01k0 --timeout-s 60 --field run.status
    agentctl run wait run_01k0 --until attention --field request.id
    """,
    extra=(timeout_option("Maximum seconds to wait."),),
    only=("until", "ignore"),
)
row(
    run,
    "cancel",
    CANCEL_RUN,
    "views:canceled_line",
    "Cancel a run and the runs that it started.",
    """
    agentctl run cancel run_01k0
    agentctl run cancel --run-id run_01k0 --reason "not needed any more"
    """,
)


row(
    run,
    "retry",
    GET_RUN,
    "!follow:retry_run",
    """Send the message of a run again, with the same settings. This starts a new run of the session.

    A message with images cannot be sent again, because its images are no longer stored.
    """,
    """
    agentctl run retry run_01k0
    agentctl run retry @last --field run.id
    """,
    extra=(options_of(Keyed),),
)


def _with_outcome(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    result, error, code = (values.pop(name) for name in ("result_text", "error_text", "error_code"))
    if result is not None:
        values["result"] = {"text": read_text(result)}
    if error is not None or code is not None:
        message = "" if error is None else read_text(error)
        values["error"] = {"code": code or "provider_error", "message": message}
    return values


row(
    run,
    "transition",
    TRANSITION_RUN,
    "run {run.id} is {run.status}",
    "Change the state of a manual run, or cancel any run.",
    """
    agentctl run transition --run-id run_01k0 --to-status running
    agentctl run transition --run-id run_01k0 --to-status completed --result "Done by hand"
    agentctl run transition --run-id run_01k0 --to-status failed --error "No access"
    """,
    without=("result", "error"),
    prepare=_with_outcome,
    extra=(
        click.option(
            "--result",
            "result_text",
            metavar="TEXT",
            help="The result, for completed. Use - for standard input.",
        ),
        click.option(
            "--error",
            "error_text",
            metavar="TEXT",
            help="The error message, for failed. Use - for standard input.",
        ),
        click.option(
            "--error-code",
            metavar="CODE",
            help="The error code, for failed.  [default: provider_error]",
        ),
    ),
)
row(
    run,
    "diagnose",
    DIAGNOSE_RUN,
    "views:diagnosis",
    "Explain a run's state, with evidence.",
    """
    agentctl run diagnose run_01k0
    agentctl run diagnose --run-id run_01k0 --field diagnostics.likely_issue.code
    """,
)

"""``agentctl run``: runs of agents."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations.runs import (
    CANCEL_RUN,
    CREATE_RUN,
    DIAGNOSE_RUN,
    GET_RUN,
    LIST_RUNS,
    TRANSITION_RUN,
    CancelRun,
    CreateRun,
    ListRuns,
    TransitionRun,
    WaitRun,
)
from agentctl.call import Call
from agentctl.failures import DONE
from agentctl.fields import ALL, options_of
from agentctl.options import MAX_WAIT_S, Group, Number, identified, read_text


@click.group(
    cls=Group,
    examples="""
    agentctl run list --status running
    agentctl run wait --run-id run_01k0 --timeout-s 60
    agentctl run diagnose run_01k0
    """,
)
def run() -> None:
    """Start, show, await, cancel and diagnose runs."""


@run.command(
    examples="""
    agentctl run create --session-id ses_01k0 --text "Run the tests"
    agentctl run create --session-id ses_01k0 --provider manual --field run.id
    """
)
@identified("session")
@options_of(CreateRun, without=("session_id",))
def create(**values: Any) -> None:
    """Queue a run."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.views import run_card

        reply = await connection.call(CREATE_RUN, **values)
        call.output.answer(reply, lambda style: run_card(reply.run, style, datetime.now(UTC)))

    call.run(body)


@run.command(
    examples="""
    agentctl run get run_01k0
    agentctl run get --run-id run_01k0 --field run.result.text
    """
)
@identified("run")
def get(run_id: str) -> None:
    """Show a run."""
    call = Call.current()

    async def body(connection: Any) -> None:

        reply = await connection.call(GET_RUN, run_id=run_id)

        def rendering(style: Any) -> Iterator[str]:
            from agentctl.views import run_card

            return run_card(reply.run, style, datetime.now(UTC))

        call.output.answer(reply, rendering)

    call.run(body)


@run.command(
    "list",
    examples="""
    agentctl run list
    agentctl run list --session-id ses_01k0 --status failed
    """,
)
@options_of(ListRuns, limit=ALL)
def list_(session_id: str | None, **values: Any) -> None:
    """List runs, oldest first."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.views import run_table

        page = await pages(connection, LIST_RUNS, "runs", session_id=session_id, **values)
        now, several = datetime.now(UTC), session_id is None
        call.output.answer(
            page, lambda style: run_table(page.runs, style, now, with_session=several)
        )
        call.output.note_next_page(page.next_cursor)

    call.run(body)


@run.command(
    examples="""
    agentctl run wait --run-id run_01k0
    agentctl run wait run_01k0 --timeout-s 60 --field run.status
    agentctl run wait run_01k0 --until attention --field request.id
    """
)
@identified("run")
@click.option(
    "--timeout-s",
    type=Number(0, MAX_WAIT_S),
    help="Maximum seconds to wait. After that, the exit code is 7.  [default: no limit]",
)
@options_of(WaitRun, only=("until", "ignore"))
def wait(run_id: str, timeout_s: float | None, **values: Any) -> None:
    """Wait until a run has ended. The exit code is 0 if it completed, and 1 if it did not.

    With --until attention, also return if the run or a descendant asks something. Then the exit
    code is 0 and the answer has the "request".
    """
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl.run_commands import finish_run

        return await finish_run(connection, call.output, run_id, timeout_s, **values)

    call.run(body)


@run.command(
    examples="""
    agentctl run cancel run_01k0
    agentctl run cancel --run-id run_01k0 --reason "not needed any more"
    """
)
@identified("run")
@options_of(CancelRun, without=("run_id",))
def cancel(**values: Any) -> None:
    """Cancel a run and the runs that it started."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.times import counted

        reply = await connection.call(CANCEL_RUN, **values)
        ended = reply.run
        below = len(set(reply.canceled) - {ended.id})
        also = counted(below, "descendant") if below else ""
        if ended.id not in reply.canceled:
            line = f"run {ended.id} had ended before: {ended.status}"
            line += f"; ended now: {also}" if also else ""
        else:
            outcome = "is canceled" if ended.status == "canceled" else "is being canceled"
            if ended.id in reply.pending:
                outcome = (
                    "is to be canceled, but no worker of this daemon executes it: see run diagnose"
                )
            line = f"run {ended.id} {outcome}" + (f", with {also}" if also else "")
        call.output.answer(reply, lambda _: [line])

    call.run(body)


@run.command(
    examples="""
    agentctl run transition --run-id run_01k0 --to-status running
    agentctl run transition --run-id run_01k0 --to-status completed --result "Done by hand"
    agentctl run transition --run-id run_01k0 --to-status failed --error "No access"
    """
)
@identified("run")
@options_of(TransitionRun, without=("run_id", "result", "error"))
@click.option(
    "--result", metavar="TEXT", help="The result, for completed. Use - for standard input."
)
@click.option(
    "--error", metavar="TEXT", help="The error message, for failed. Use - for standard input."
)
@click.option(
    "--error-code", metavar="CODE", help="The error code, for failed.  [default: provider_error]"
)
def transition(
    result: str | None, error: str | None, error_code: str | None, **values: Any
) -> None:
    """Change the state of a manual run, or cancel any run."""
    call = Call.current()
    if result is not None:
        values["result"] = {"text": read_text(result)}
    if error is not None or error_code is not None:
        message = "" if error is None else read_text(error)
        values["error"] = {"code": error_code or "provider_error", "message": message}

    async def body(connection: Any) -> None:

        reply = await connection.call(TRANSITION_RUN, **values)
        call.output.answer(reply, lambda _: [f"run {reply.run.id} is {reply.run.status}"])

    call.run(body)


@run.command(
    examples="""
    agentctl run diagnose run_01k0
    agentctl run diagnose --run-id run_01k0 --field diagnostics.likely_issue.code
    """
)
@identified("run")
def diagnose(run_id: str) -> None:
    """Explain a run's state, with evidence."""
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl.views import diagnosis

        reply = await connection.call(DIAGNOSE_RUN, run_id=run_id)
        now = datetime.now(UTC)
        call.output.answer(reply, lambda style: diagnosis(reply.run, reply.diagnostics, style, now))
        return DONE

    call.run(body)

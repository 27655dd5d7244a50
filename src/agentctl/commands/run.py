"""``agentctl run``: executions of an agent."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from agentctl.call import Call
from agentctl.failures import DONE
from agentctl.options import (
    Group,
    attention,
    idempotency_key,
    identified,
    images,
    read_id,
    read_text,
    turn_options,
)

_STATUSES = ["queued", "running", "waiting", "completed", "failed", "canceled"]


@click.group(
    cls=Group,
    examples="""
    agentctl run list --status running
    agentctl run wait --run-id run_01k0 --timeout-s 60
    agentctl run diagnose run_01k0
    """,
)
def run() -> None:
    """Start, read, await, cancel and diagnose runs."""


@run.command(
    examples="""
    agentctl run create --session-id ses_01k0 --text "Run the tests"
    agentctl run create --session-id ses_01k0 --provider manual --field run.id
    """
)
@identified("session")
@click.option("--text", help="What to tell the agent; - reads standard input.")
@click.option("--provider", help="The agent; `manual` leaves the run to whoever holds it.")
@turn_options
@images
@idempotency_key
def create(text: str | None, **values: Any) -> None:
    """Queue a run."""
    call = Call.current()
    values["text"] = None if text is None else read_text(text)

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import CREATE_RUN
        from agentctl.views import run_card

        reply = await connection.call(CREATE_RUN, **values)
        call.output.answer(reply, lambda look: run_card(reply.run, look, datetime.now(UTC)))

    call.run(body)


@run.command(
    examples="""
    agentctl run get run_01k0
    agentctl run get --run-id run_01k0 --field run.result.text
    """
)
@identified("run")
def get(run_id: str) -> None:
    """Read a run."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import GET_RUN

        reply = await connection.call(GET_RUN, run_id=run_id)

        def rendering(look: Any) -> Iterator[str]:
            from agentctl.views import run_card

            return run_card(reply.run, look, datetime.now(UTC))

        call.output.answer(reply, rendering)

    call.run(body)


@run.command(
    "list",
    examples="""
    agentctl run list
    agentctl run list --session-id ses_01k0 --status failed
    """,
)
@click.option("--session-id", metavar="ID", help="Only runs of this session.")
@click.option("--status", type=click.Choice(_STATUSES), help="Only runs in this state.")
@click.option("--limit", type=int, help="How many at most.  [default: all]")
@click.option("--cursor", help="`next_cursor` of the page before.")
def list_(session_id: str | None, **values: Any) -> None:
    """List runs, oldest first."""
    call = Call.current()
    session_id = read_id(session_id) if session_id else None

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import LIST_RUNS
        from agentctl.paging import pages
        from agentctl.views import run_table

        page = await pages(connection, LIST_RUNS, "runs", session_id=session_id, **values)
        now, several = datetime.now(UTC), session_id is None
        call.output.answer(page, lambda look: run_table(page.runs, look, now, with_session=several))
        call.output.more(page.next_cursor)

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
    type=click.FloatRange(min=0),
    help="Seconds to wait at most; exit code 7 after them.  [default: no limit]",
)
@attention
def wait(run_id: str, timeout_s: float | None, until: Any, ignore: tuple[str, ...]) -> None:
    """Wait until a run has ended: exit code 0 when it completed, 1 when it did not.

    With --until attention also until it, or one below it, asks something: then the exit code is 0
    and the answer holds the "request".
    """
    call = Call.current()

    async def body(connection: Any) -> int:
        from agentctl.sending import see_run_end

        return await see_run_end(
            connection, call.output, run_id, timeout_s, until=until, ignore=ignore
        )

    call.run(body)


@run.command(
    examples="""
    agentctl run cancel run_01k0
    agentctl run cancel --run-id run_01k0 --reason "not needed any more"
    """
)
@identified("run")
@click.option("--reason", help="Why, for the log; - reads standard input.")
@click.option("--cascade/--no-cascade", default=True, help="Its descendants too.  [default: yes]")
@idempotency_key
def cancel(**values: Any) -> None:
    """Cancel a run and the runs that came of it."""
    call = Call.current()
    if values["reason"] is not None:
        values["reason"] = read_text(values["reason"])

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import CANCEL_RUN
        from agentctl.times import counted

        reply = await connection.call(CANCEL_RUN, **values)
        ended = reply.run
        below = len(set(reply.canceled) - {ended.id})
        also = counted(below, "descendant") if below else ""
        if ended.id not in reply.canceled:
            line = f"run {ended.id} had ended before: {ended.status}"
            line += f"; ended now: {also}" if also else ""
        else:
            how = "is canceled" if ended.status == "canceled" else "is asked to end"
            line = f"run {ended.id} {how}" + (f", with {also}" if also else "")
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
@click.option(
    "--to-status", type=click.Choice(_STATUSES), required=True, help="The state to go to."
)
@click.option("--reason", help="Why, for the log; - reads standard input.")
@click.option(
    "--result", metavar="TEXT", help="With completed: its result; - reads standard input."
)
@click.option(
    "--error", metavar="TEXT", help="With failed: what went wrong; - reads standard input."
)
@click.option(
    "--error-code", metavar="CODE", help="With failed: which kind.  [default: provider_error]"
)
@idempotency_key
def transition(
    result: str | None, error: str | None, error_code: str | None, **values: Any
) -> None:
    """Drive a manual run, or cancel any."""
    call = Call.current()
    if values["reason"] is not None:
        values["reason"] = read_text(values["reason"])
    if result is not None:
        values["result"] = {"text": read_text(result)}
    if error is not None or error_code is not None:
        message = "" if error is None else read_text(error)
        values["error"] = {"code": error_code or "provider_error", "message": message}

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import TRANSITION_RUN

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
    """Tell why a run is as it is, from evidence."""
    call = Call.current()

    async def body(connection: Any) -> int:
        from agent_orchestrator.operations import DIAGNOSE_RUN
        from agentctl.views import diagnosis

        reply = await connection.call(DIAGNOSE_RUN, run_id=run_id)
        now = datetime.now(UTC)
        call.output.answer(reply, lambda look: diagnosis(reply.run, reply.diagnostics, look, now))
        return DONE

    call.run(body)

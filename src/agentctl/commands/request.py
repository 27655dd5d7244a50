"""``agentctl request``: the inbox of what agents ask."""

import shlex
import shutil
from datetime import UTC, datetime
from typing import Any

import click

from agentctl.call import Call
from agentctl.failures import usage
from agentctl.options import Group, idempotency_key, identified, read_id, read_text

_STATUSES = ["pending", "approved", "denied", "answered", "expired", "canceled"]


@click.group(
    cls=Group,
    examples="""
    agentctl request list
    agentctl request watch
    agentctl request show req_01k0
    agentctl request approve req_01k0
    """,
)
def request() -> None:
    """See what agents ask, and answer it."""


@request.command(
    "list",
    examples="""
    agentctl request list
    agentctl request list --root-session-id ses_01k0 --all
    agentctl request list --field requests.0.id
    """,
)
@click.option(
    "--status", type=click.Choice(_STATUSES), help="Only those in this state.  [default: pending]"
)
@click.option("--all", "every", is_flag=True, help="Also those that are closed.")
@click.option("--session-id", metavar="ID", help="Only those of this session's runs.")
@click.option("--root-session-id", metavar="ID", help="Only those of the tree under this session.")
@click.option("--limit", type=int, help="How many at most.  [default: all]")
@click.option("--cursor", help="`next_cursor` of the page before.")
def list_(
    status: str | None,
    session_id: str | None,
    root_session_id: str | None,
    *,
    every: bool,
    **values: Any,
) -> None:
    """List requests, oldest first: those that are open, without --all or --status."""
    call = Call.current()
    if every and status:
        raise usage("--all and --status: give one of them")
    values["status"] = None if every else status or "pending"
    values["session_id"] = read_id(session_id) if session_id else None
    values["root_session_id"] = read_id(root_session_id) if root_session_id else None

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import LIST_REQUESTS
        from agentctl.paging import pages
        from agentctl.questions import expires_soon, extending, request_table

        page = await pages(connection, LIST_REQUESTS, "requests", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda look: request_table(page.requests, look, now))
        call.output.more(page.next_cursor)
        if any(one.is_open for one in page.requests):
            call.output.hint("read one in full: agentctl request show REQUEST_ID")
        if soon := sum(expires_soon(one, now) for one in page.requests):
            call.output.hint(f"{soon} expire soon; more time: {extending('REQUEST_ID')}")

    call.run(body)


@request.command(
    examples="""
    agentctl request show req_01k0
    agentctl request show --request-id req_01k0 --field request.detail
    """
)
@identified("request")
def show(request_id: str) -> None:
    """Read a request in full: all of its text, and what exactly is asked for."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import GET_REQUEST
        from agentctl.questions import answering, request_card

        reply = await connection.call(GET_REQUEST, request_id=request_id)
        found = reply.request
        call.output.answer(reply, lambda look: request_card(found, look, datetime.now(UTC)))
        if found.is_open:
            call.output.hint(f"next: {answering(found.kind, found.id)}")

    call.run(body)


@request.command(
    examples="""
    agentctl request watch
    agentctl request watch --exec "notify-send 'An agent asks'"
    agentctl request watch --once --field id
    """
)
@click.option("--exec", "hook", metavar="CMD", help="Run this for each request.")
@click.option("--all", "every", is_flag=True, help="Also what a parent's agent is to answer.")
@click.option("--once", is_flag=True, help="End after the first.")
def watch(hook: str | None, *, every: bool, once: bool) -> None:
    """Tell of each request that people are to answer, as it comes, and ring the terminal's bell.

    Those that are open already come first. What a parent's agent is to answer is told when it does
    not.

    CMD is a program with its arguments, not a line of the shell. It gets the request as JSON on its
    standard input, and AGENTCTL_REQUEST_ID, AGENTCTL_REQUEST_KIND, AGENTCTL_REQUEST_SESSION_ID and
    AGENTCTL_REQUEST_RUN_ID in its environment; what it prints goes to standard error.
    """
    call = Call.current()
    argv = None if hook is None else program(hook)

    async def body(connection: Any) -> None:
        from agentctl.watching import Hook, watch_requests

        hooked = (
            None
            if argv is None
            else Hook(argv, call.settings.url, call.output, call.settings.ca_file)
        )
        await watch_requests(connection, call.output, hooked, every=every, once=once)

    call.run(body)


def program(line: str) -> list[str]:
    """Return the program and its arguments a line names.

    :raises Failure: if there is no such program.
    """
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise usage(f"--exec: {error}") from None
    if not argv or shutil.which(argv[0]) is None:
        raise usage(f"--exec: there is no program {argv[0] if argv else line}")
    return argv


@request.command(
    examples="""
    agentctl request extend req_01k0 --expires-in-s 3600
    agentctl request extend --request-id req_01k0 --expires-in-s 86400 --field request.expires_at
    """
)
@identified("request")
@click.option(
    "--expires-in-s",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    help="Seconds from now that it stays open at least.",
)
@idempotency_key
def extend(**values: Any) -> None:
    """Give a request more time. It never expires sooner than it would."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import EXTEND_REQUEST
        from agentctl.times import local

        reply = await connection.call(EXTEND_REQUEST, **values)
        end = f"{local(reply.request.expires_at):%Y-%m-%d %H:%M:%S}"
        call.output.answer(reply, lambda _: [f"request {reply.request.id} expires at {end}"])

    call.run(body)


def _resolve(decision: str, request_id: str, text: str | None, **values: Any) -> None:
    call = Call.current()
    values["text"] = None if text is None else read_text(text)

    async def body(connection: Any) -> None:
        from agent_orchestrator.operations import RESOLVE_REQUEST

        reply = await connection.call(
            RESOLVE_REQUEST, request_id=request_id, decision=decision, **values
        )
        closed = reply.request
        call.output.answer(reply, lambda _: [f"request {closed.id} is {closed.status}"])

    call.run(body)


@request.command(
    examples="""
    agentctl request approve req_01k0
    agentctl request approve req_01k0 --text "Only in ./tmp-cache" --scope once
    """
)
@identified("request")
@click.option("--text", help="What to tell the agent with it; - reads standard input.")
@click.option(
    "--scope",
    type=click.Choice(["once", "session"]),
    help="How far it goes: this once, or for the like in the whole session.",
)
@idempotency_key
def approve(**values: Any) -> None:
    """Approve what an agent asks for. The first answer counts; the same again succeeds."""
    _resolve("approve", **values)


@request.command(
    examples="""
    agentctl request deny req_01k0
    agentctl request deny req_01k0 --text "Leave the cache alone"
    """
)
@identified("request")
@click.option("--text", help="Why, for the agent; - reads standard input.")
@idempotency_key
def deny(**values: Any) -> None:
    """Deny what an agent asks for. The first answer counts; the same again succeeds."""
    _resolve("deny", **values)


@request.command(
    examples="""
    agentctl request answer req_01k0 --text "Use port 8080"
    agentctl request answer req_01k0 --text - < answer.md
    """
)
@identified("request")
@click.option("--text", required=True, help="The answer; - reads standard input.")
@idempotency_key
def answer(**values: Any) -> None:
    """Answer what an agent asks. The first answer counts; the same again succeeds."""
    _resolve("answer", **values)

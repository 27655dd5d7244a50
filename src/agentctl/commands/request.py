"""``agentctl request``: the inbox of requests."""

import shlex
import shutil
from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations import (
    EXTEND_REQUEST,
    GET_REQUEST,
    LIST_REQUESTS,
    RESOLVE_REQUEST,
    ExtendRequest,
    ListRequests,
    ResolveRequest,
)
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.fields import ALL, options_of
from agentctl.options import Group, identified


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
@options_of(ListRequests, only=("status",), status="Only those in this state.  [default: pending]")
@click.option("--all", "every", is_flag=True, help="Also those that are closed.")
@options_of(ListRequests, without=("status", "resolvable"), limit=ALL)
def list_(status: str | None, *, every: bool, **values: Any) -> None:
    """List requests, oldest first: those that are open, without --all or --status."""
    call = Call.current()
    if every and status:
        raise usage_failure("--all and --status: give one of them")
    values["status"] = None if every else status or "pending"

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.questions import expires_soon, extending, request_table

        page = await pages(connection, LIST_REQUESTS, "requests", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: request_table(page.requests, style, now))
        call.output.note_next_page(page.next_cursor)
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
        from agentctl.questions import answering, request_card

        reply = await connection.call(GET_REQUEST, request_id=request_id)
        found = reply.request
        call.output.answer(reply, lambda style: request_card(found, style, datetime.now(UTC)))
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
        from agentctl.request_watch import Hook, watch_requests

        hooked = (
            None
            if argv is None
            else Hook(argv, call.settings.url, call.output, call.settings.ca_file)
        )
        await watch_requests(connection, call.output, hooked, every=every, once=once)

    call.run(body)


def program(line: str) -> list[str]:
    """Return the program and arguments in a command line.

    :raises Failure: if there is no such program.
    """
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise usage_failure(f"--exec: {error}") from None
    if not argv or shutil.which(argv[0]) is None:
        raise usage_failure(f"--exec: there is no program {argv[0] if argv else line}")
    return argv


@request.command(
    examples="""
    agentctl request extend req_01k0 --expires-in-s 3600
    agentctl request extend --request-id req_01k0 --expires-in-s 86400 --field request.expires_at
    """
)
@identified("request")
@options_of(ExtendRequest, without=("request_id",))
def extend(**values: Any) -> None:
    """Give a request more time. It never expires sooner than it would."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.times import local

        reply = await connection.call(EXTEND_REQUEST, **values)
        end = f"{local(reply.request.expires_at):%Y-%m-%d %H:%M:%S}"
        call.output.answer(reply, lambda _: [f"request {reply.request.id} expires at {end}"])

    call.run(body)


def _resolve(decision: str, request_id: str, **values: Any) -> None:
    call = Call.current()

    async def body(connection: Any) -> None:

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
@options_of(ResolveRequest, without=("request_id", "decision"))
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
@options_of(ResolveRequest, only=("text", "idempotency_key"))
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
@options_of(ResolveRequest, only=("text", "idempotency_key"), required=("text",))
def answer(**values: Any) -> None:
    """Answer what an agent asks. The first answer counts; the same again succeeds."""
    _resolve("answer", **values)

"""``agentctl request``: the inbox of requests."""

import shlex
import shutil
from datetime import UTC, datetime
from typing import Any

import click

from agent_orchestrator.operations.requests import (
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
    """List and answer the requests of agents."""


@request.command(
    "list",
    examples="""
    agentctl request list
    agentctl request list --root-session-id ses_01k0 --all
    agentctl request list --field requests.0.id
    """,
)
@options_of(
    ListRequests, only=("status",), status="Only requests in this state.  [default: pending]"
)
@click.option("--all", "every", is_flag=True, help="Also closed requests.")
@options_of(ListRequests, without=("status", "resolvable"), limit=ALL)
def list_(status: str | None, *, every: bool, **values: Any) -> None:
    """List requests, oldest first. Default: only open ones."""
    call = Call.current()
    if every and status:
        raise usage_failure("give only one of --all and --status")
    values["status"] = None if every else status or "pending"

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.questions import expires_soon, extending, request_table

        page = await pages(connection, LIST_REQUESTS, "requests", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: request_table(page.requests, style, now))
        call.output.note_next_page(page.next_cursor)
        if any(request.is_open for request in page.requests):
            call.output.hint("show one in full: agentctl request show REQUEST_ID")
        if soon := sum(expires_soon(request, now) for request in page.requests):
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
    """Show a request with its full text and details."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.questions import answering, request_card

        reply = await connection.call(GET_REQUEST, request_id=request_id)
        request = reply.request
        call.output.answer(reply, lambda style: request_card(request, style, datetime.now(UTC)))
        if request.is_open:
            call.output.hint(f"next: {answering(request.kind, request.id)}")

    call.run(body)


@request.command(
    examples="""
    agentctl request watch
    agentctl request watch --exec "notify-send 'An agent asks'"
    agentctl request watch --once --field id
    """
)
@click.option("--exec", "hook", metavar="CMD", help="Run this program for each request.")
@click.option(
    "--all", "every", is_flag=True, help="Also print requests that a parent's agent should answer."
)
@click.option("--once", is_flag=True, help="Exit after the first request.")
def watch(hook: str | None, *, every: bool, once: bool) -> None:
    """Print each request for a person as it arrives. The terminal beeps.

    Requests that are already open are printed first. A request to a parent's agent is printed when that agent does
    not answer in time.

    CMD is a program with arguments, not a shell command line. It gets the request as JSON on
    standard input, and AGENTCTL_REQUEST_ID, AGENTCTL_REQUEST_KIND, AGENTCTL_REQUEST_SESSION_ID and
    AGENTCTL_REQUEST_RUN_ID in its environment. Its output goes to standard error.
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
    """Give a request more time. This never shortens its time."""
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
    agentctl request approve req_01k0 --text "Only in ./tmp-cache"
    agentctl request approve req_01k0 --option acceptForSession
    """
)
@identified("request")
@options_of(ResolveRequest, without=("request_id", "decision"))
def approve(**values: Any) -> None:
    """Approve a request. The first decision counts; repeating it succeeds."""
    _resolve("approve", **values)


@request.command(
    examples="""
    agentctl request deny req_01k0
    agentctl request deny req_01k0 --text "Leave the cache alone"
    """
)
@identified("request")
@options_of(ResolveRequest, only=("option", "text", "idempotency_key"))
def deny(**values: Any) -> None:
    """Deny a request. The first decision counts; repeating it succeeds."""
    _resolve("deny", **values)


@request.command(
    examples="""
    agentctl request answer req_01k0 --text "Use port 8080"
    agentctl request answer req_01k0 --option 8080
    agentctl request answer req_01k0 --text - < answer.md
    """
)
@identified("request")
@options_of(ResolveRequest, only=("option", "text", "idempotency_key"))
def answer(**values: Any) -> None:
    """Answer a question with a text or one of its options. The first answer counts; repeating it succeeds."""
    if values["text"] is None and values["option"] is None:
        raise usage_failure("give --text or --option")
    _resolve("answer", **values)

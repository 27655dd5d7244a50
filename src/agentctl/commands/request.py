"""``agentctl request``: the inbox of requests."""

import shlex
import shutil
from collections.abc import Mapping
from typing import Any

import click

from agent_orchestrator.operations.requests import (
    EXTEND_REQUEST,
    GET_REQUEST,
    LIST_REQUESTS,
    RESOLVE_REQUEST,
)
from agentctl.call import Call
from agentctl.failures import usage_failure
from agentctl.options import Group
from agentctl.rows import row


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


def _open_by_default(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (every := values.pop("every")) and values["status"]:
        raise usage_failure("give only one of --all and --status")
    return values | {"status": None if every else values["status"] or "pending"}


row(
    request,
    "list",
    LIST_REQUESTS,
    "questions:request_table:requests",
    "List requests, oldest first. Default: only open ones.",
    """
    agentctl request list
    agentctl request list --root-session-id ses_01k0 --all
    agentctl request list --field requests.0.id
    """,
    without=("resolvable",),
    prepare=_open_by_default,
    hint="questions:inbox_hints:requests",
    extra=(click.option("--all", "every", is_flag=True, help="Also closed requests."),),
    status="Only requests in this state.  [default: pending]",
)
row(
    request,
    "show",
    GET_REQUEST,
    "questions:request_card:request",
    "Show a request with its full text and details.",
    """
    agentctl request show req_01k0
    agentctl request show --request-id req_01k0 --field request.detail
    """,
    without=("wait_s",),
    hint="questions:next_step:request",
)


def _with_program(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (line := values.pop("hook")) is None:
        return values | {"argv": None}
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise usage_failure(f"--exec: {error}") from None
    if not argv or shutil.which(argv[0]) is None:
        raise usage_failure(f"--exec: there is no program {argv[0] if argv else line}")
    return values | {"argv": argv}


row(
    request,
    "watch",
    None,
    "!request_watch:watch_requests",
    """Print each request for a person as it arrives. The terminal beeps.

    Requests that are already open are printed first. A request to a parent's agent is printed when
    that agent does not answer in time.

    CMD is a program with arguments, not a shell command line. It gets the request as JSON on
    standard input, and AGENTCTL_REQUEST_ID, AGENTCTL_REQUEST_KIND, AGENTCTL_REQUEST_SESSION_ID and
    AGENTCTL_REQUEST_RUN_ID in its environment. Its output goes to standard error.
    """,
    """
    agentctl request watch
    agentctl request watch --exec "notify-send 'An agent asks'"
    agentctl request watch --once --field id
    """,
    prepare=_with_program,
    extra=(
        click.option("--exec", "hook", metavar="CMD", help="Run this program for each request."),
        click.option(
            "--all",
            "every",
            is_flag=True,
            help="Also print requests that a parent's agent should answer.",
        ),
        click.option("--once", is_flag=True, help="Exit after the first request."),
    ),
)
row(
    request,
    "extend",
    EXTEND_REQUEST,
    "questions:extended_line:request",
    "Give a request more time. This never shortens its time.",
    """
    agentctl request extend req_01k0 --expires-in-s 3600
    agentctl request extend --request-id req_01k0 --expires-in-s 86400 --field request.expires_at
    """,
)

_RESOLVED = "request {request.id} is {request.status}"
_WORDS = ("option", "text", "idempotency_key")


def _as(decision: str) -> Any:
    def prepare(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
        if decision == "answer" and values["text"] is None and values["option"] is None:
            raise usage_failure("give --text or --option")
        return values | {"decision": decision}

    return prepare


row(
    request,
    "approve",
    RESOLVE_REQUEST,
    _RESOLVED,
    "Approve a request. The first decision counts; repeating it succeeds.",
    """
    agentctl request approve req_01k0
    agentctl request approve req_01k0 --text "Only in ./tmp-cache"
    agentctl request approve req_01k0 --option acceptForSession
    """,
    only=(*_WORDS, "scope"),
    prepare=_as("approve"),
)
row(
    request,
    "deny",
    RESOLVE_REQUEST,
    _RESOLVED,
    "Deny a request. The first decision counts; repeating it succeeds.",
    """
    agentctl request deny req_01k0
    agentctl request deny req_01k0 --text "Leave the cache alone"
    """,
    only=_WORDS,
    prepare=_as("deny"),
)
row(
    request,
    "answer",
    RESOLVE_REQUEST,
    _RESOLVED,
    "Answer a question with a text or one of its options. The first answer counts; repeating it succeeds.",
    """
    agentctl request answer req_01k0 --text "Use port 8080"
    agentctl request answer req_01k0 --option 8080
    agentctl request answer req_01k0 --text - < answer.md
    """,
    only=_WORDS,
    prepare=_as("answer"),
)

"""``agentctl session``: sessions and access to them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from agent_orchestrator.operations.options import Keyed
from agent_orchestrator.operations.sessions import (
    CLOSE_SESSION,
    CREATE_SESSION,
    GET_ACCESS,
    GET_SESSION,
    LIST_SESSIONS,
    SET_ACCESS,
    UPDATE_SESSION,
    CloseSession,
    GetTree,
    ListSessions,
    SessionOptions,
    SetAccess,
)
from agentctl.call import Call, here
from agentctl.failures import usage_failure
from agentctl.fields import ALL, options_of
from agentctl.options import Group, identified


@click.group(
    cls=Group,
    examples="""
    agentctl session create --title "Fix the build"
    agentctl session list --status open
    agentctl session tree --session-id ses_01k0
    agentctl session share ses_01k0 --reader bob
    agentctl session move ses_01k0 ~/project
    """,
)
def session() -> None:
    """Create, list, move, share and close sessions."""


def working_directory(path: str | None, *, local: bool) -> str | None:
    """Return the working directory to send. With a local daemon it is absolute, by default the current one."""
    if path is not None:
        return path if not local or Path(path).is_absolute() else str(here() / path)
    return str(here()) if local else None


@session.command(
    examples="""
    agentctl session create --title "Fix the build" --provider demo
    agentctl session create --cwd ~/project --field session.id
    """
)
@options_of(SessionOptions, cwd="The working directory of its agents.  [default: this directory]")
def create(cwd: str | None, **values: Any) -> None:
    """Create a session."""
    call = Call.current()
    values["cwd"] = working_directory(cwd, local=call.settings.is_local)

    async def body(connection: Any) -> None:
        from agentctl.views import session_card

        reply = await connection.call(CREATE_SESSION, **values)
        created = reply.session
        call.output.answer(reply, lambda style: session_card(created, style, datetime.now(UTC)))
        call.output.hint(f'next: agentctl ask --session-id {created.id} "…"')

    call.run(body)


@session.command(
    "list",
    examples="""
    agentctl session list
    agentctl session list --status open --format json
    """,
)
@options_of(ListSessions, limit=ALL)
def list_(**values: Any) -> None:
    """List sessions, oldest first."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.paging import pages
        from agentctl.views import session_table

        page = await pages(connection, LIST_SESSIONS, "sessions", **values)
        now = datetime.now(UTC)
        call.output.answer(page, lambda style: session_table(page.sessions, style, now))
        call.output.note_next_page(page.next_cursor)

    call.run(body)


@session.command(
    examples="""
    agentctl session get ses_01k0
    agentctl session get --session-id ses_01k0 --field session.last_seq
    """
)
@identified("session")
def get(session_id: str) -> None:
    """Show a session."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.views import session_card

        reply = await connection.call(GET_SESSION, session_id=session_id)
        now = datetime.now(UTC)
        call.output.answer(reply, lambda style: session_card(reply.session, style, now))

    call.run(body)


@session.command(
    examples="""
    agentctl session move ses_01k0 ~/project
    agentctl session move --session-id ses_01k0 .
    """
)
@identified("session", then="directory")
@options_of(Keyed)
def move(session_id: str, directory: str, idempotency_key: str | None) -> None:
    """Change a session's working directory to DIR, from the next run on.

    Queued runs also start in DIR. Child sessions keep their directories. A session with an active
    run cannot be moved.
    """
    call = Call.current()
    cwd = working_directory(directory, local=call.settings.is_local)

    async def body(connection: Any) -> None:
        from agentctl.terminal import one_line

        reply = await connection.call(
            UPDATE_SESSION, session_id=session_id, cwd=cwd, idempotency_key=idempotency_key
        )
        moved = reply.session
        lines = [f"session {moved.id} works in {one_line(moved.cwd)}"]
        call.output.answer(reply, lambda _: lines)

    call.run(body)


@session.command(
    examples="""
    agentctl session close ses_01k0
    agentctl session close ses_01k0 --cascade
    """
)
@identified("session")
@options_of(CloseSession, without=("session_id",))
def close(**values: Any) -> None:
    """Close a session, so that it accepts no more messages.

    Active and queued runs of the session and its descendants continue, unless --cascade is given.
    """
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.times import counted

        reply = await connection.call(CLOSE_SESSION, **values)
        closed = reply.session.id
        lines = [f"session {closed} is closed"]
        if values["cascade"]:
            stopping = counted(len(reply.canceled), "run")
            lines[0] += f", with all below it; {stopping} canceled"
        elif reply.at_work_count:
            goes_on = counted(reply.at_work_count, "session")
            lines.append(f"{goes_on} below it still at work; to end them too:")
            lines.append(f"  agentctl session close {closed} --cascade")
        call.output.answer(reply, lambda _: lines)

    call.run(body)


@session.command(
    examples="""
    agentctl session tree ses_01k0
    agentctl session tree --session-id ses_01k0 --field children.0.session.id
    """
)
@identified("session")
@options_of(
    GetTree, without=("session_id",), limit="Maximum number of descendants.  [default: all]"
)
def tree(**values: Any) -> None:
    """Show a session and its descendants as a tree, each with the state of its last run."""
    call = Call.current()

    async def body(connection: Any) -> None:
        from agentctl.tree_view import tree_pages, tree_table

        reply = await tree_pages(connection, **values)
        now = datetime.now(UTC)
        call.output.answer(reply, lambda style: tree_table(reply, style, now))
        call.output.note_next_page(reply.next_cursor)

    call.run(body)


@session.command(
    examples="""
    agentctl session share ses_01k0 --reader bob --writer carol
    agentctl session share ses_01k0 --remove bob
    agentctl session share ses_01k0
    """
)
@identified("session")
@click.option(
    "--reader", "readers", metavar="NAME", multiple=True, help="Grant read access; repeatable."
)
@click.option(
    "--writer", "writers", metavar="NAME", multiple=True, help="Grant write access; repeatable."
)
@click.option(
    "--owner",
    "owners",
    metavar="NAME",
    multiple=True,
    help="Grant all rights of the owner; repeatable.",
)
@click.option(
    "--remove",
    "removed",
    metavar="NAME",
    multiple=True,
    help="Remove the access of this principal; repeatable.",
)
@options_of(Keyed)
def share(
    session_id: str,
    readers: tuple[str, ...],
    writers: tuple[str, ...],
    owners: tuple[str, ...],
    removed: tuple[str, ...],
    idempotency_key: str | None,
) -> None:
    """Share a session and its descendants with other principals. Without options, list the grants."""
    call = Call.current()
    chosen: dict[str, Any] = {}
    for role, names in (
        ("reader", readers),
        ("writer", writers),
        ("owner", owners),
        (None, removed),
    ):
        for name in names:
            if chosen.setdefault(name, role) != role:
                raise usage_failure(f"{name} is given two different roles: choose one")

    async def body(connection: Any) -> None:
        from agent_orchestrator.domain.access import Grant
        from agentctl.access import grant_table

        reply = await connection.call(GET_ACCESS, session_id=session_id)
        if chosen:
            roles = {grant.principal: grant.role for grant in reply.grants} | chosen
            grants = tuple(Grant(name, role) for name, role in roles.items() if role is not None)
            request = SetAccess(session_id, grants, idempotency_key=idempotency_key)
            reply = (await connection.perform(SET_ACCESS, request)).answer
        call.output.answer(reply, lambda style: grant_table(reply.grants, style))

    call.run(body)

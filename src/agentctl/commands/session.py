"""``agentctl session``: sessions and access to them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

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
    GetTree,
    SetAccess,
)
from agentctl.call import Call, here
from agentctl.failures import usage_failure
from agentctl.fields import options_of
from agentctl.options import Group, identified
from agentctl.rows import row


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
    """Create, list, rename, move, share, close and reopen sessions."""


def working_directory(path: str | None, *, local: bool) -> str | None:
    """Return the working directory to send. With a local daemon it is absolute, by default the current one."""
    if path is not None:
        return path if not local or Path(path).is_absolute() else str(here() / path)
    return str(here()) if local else None


def _placed(call: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    return values | {"cwd": working_directory(values["cwd"], local=call.settings.is_local)}


def _moved(call: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (directory := values.pop("directory") or values["cwd"]) is None:
        raise usage_failure("name the directory: session move SESSION_ID DIRECTORY")
    return _placed(call, values | {"cwd": directory})


row(
    session, "create", CREATE_SESSION, "views:session_card:session", "Create a session.",
    """
    agentctl session create --title "Fix the build" --provider demo
    agentctl session create --cwd ~/project --field session.id
    """,
    hint="next: agentctl ask --session-id {session.id} …",
    without=("text", "images", "effort", "output_schema"), prepare=_placed,
    cwd="The working directory of its agents.  [default: this directory]",
)  # fmt: skip
row(
    session, "list", LIST_SESSIONS, "views:session_table:sessions",
    "List sessions: the newest first on a terminal, otherwise the oldest.",
    """
    agentctl session list
    agentctl session list --status open --format json
    """,
)  # fmt: skip
row(
    session, "get", GET_SESSION, "views:session_card:session", "Show a session.",
    """
    agentctl session get ses_01k0
    agentctl session get @last --field session.last_seq
    """,
)  # fmt: skip
row(
    session, "rename", UPDATE_SESSION, "session {session.id} is called {session.title}",
    "Change a session's title.",
    """
    agentctl session rename ses_01k0 "Fix the build"
    """,
    then="title", only=("idempotency_key",),
)  # fmt: skip
row(
    session, "move", UPDATE_SESSION, "session {session.id} works in {session.cwd}",
    """Change a session's working directory, from the next run on.

    Queued runs also start there. Child sessions keep their directories. A session with an active
    run cannot be moved.
    """,
    """
    agentctl session move ses_01k0 ~/project
    agentctl session move --session-id ses_01k0 --cwd .
    """,
    then="[directory]", only=("cwd", "idempotency_key"), prepare=_moved,
    cwd="The new directory, instead of the argument.",
)  # fmt: skip
row(
    session, "close", CLOSE_SESSION, "views:closed_line",
    """Close a session, so that it accepts no more messages.

    Active and queued runs of the session and its descendants continue, unless --cascade is given.
    """,
    """
    agentctl session close ses_01k0
    agentctl session close ses_01k0 --cascade
    """,
)  # fmt: skip
row(
    session, "reopen", UPDATE_SESSION, "session {session.id} is {session.status}",
    "Open a closed session again, so that it accepts messages.",
    """
    agentctl session reopen ses_01k0
    """,
    only=("idempotency_key",), prepare=lambda _, values: values | {"status": "open"},
)  # fmt: skip


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
        from agentctl.paging import tree_pages
        from agentctl.views import tree_table

        reply = await tree_pages(connection, **values)
        call.output.answer(reply, lambda: tree_table(reply, datetime.now(UTC)))
        call.output.note_next_page(reply.next_cursor)

    call.run(body)


_ROLES: Final = {
    "reader": "Grant read access; repeatable.",
    "writer": "Grant write access; repeatable.",
    "owner": "Grant all rights of the owner; repeatable.",
    "remove": "Remove the access of this principal; repeatable.",
}


def _role_options(function: Any) -> Any:
    for name, help_ in reversed(_ROLES.items()):
        function = click.option(f"--{name}", metavar="NAME", multiple=True, help=help_)(function)
    return function


@session.command(
    examples="""
    agentctl session share ses_01k0 --reader bob --writer carol
    agentctl session share ses_01k0 --remove bob
    agentctl session share ses_01k0
    """
)
@identified("session")
@_role_options
@options_of(Keyed)
def share(session_id: str, idempotency_key: str | None, **names: tuple[str, ...]) -> None:
    """Share a session and its descendants with other principals. Without options, list the grants."""
    call = Call.current()
    chosen: dict[str, str] = {}
    for role in _ROLES:
        for name in names[role]:
            if chosen.setdefault(name, role) != role:
                raise usage_failure(f"{name} is given two different roles: choose one")

    async def body(connection: Any) -> None:
        from agent_orchestrator.domain.access import Grant
        from agentctl.views import grant_table

        reply = await connection.call(GET_SESSION, session_id=session_id)
        whole_id = reply.session.id
        reply = await connection.call(GET_ACCESS, session_id=whole_id)
        if chosen:
            roles: dict[str, Any] = {one.principal: one.role for one in reply.grants} | chosen
            grants = tuple(Grant(name, role) for name, role in roles.items() if role != "remove")
            request = SetAccess(whole_id, grants, idempotency_key=idempotency_key)
            reply = (await connection.perform(SET_ACCESS, request)).answer
        call.output.answer(reply, lambda: grant_table(reply.grants, datetime.now(UTC)))

    call.run(body)

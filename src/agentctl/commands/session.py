"""``agentctl session``: sessions and access to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from agent_orchestrator.operations.daemon import STATUS
from agent_orchestrator.operations.links import CREATE_LINK, LIST_LINKS, REVOKE_LINK
from agent_orchestrator.operations.retention import PRUNE_SESSION
from agent_orchestrator.operations.runs import GET_RUN
from agent_orchestrator.operations.session_files import EXPORT_SESSION, IMPORT_SESSION
from agent_orchestrator.operations.sessions import (
    CLOSE_SESSION,
    CREATE_SESSION,
    GET_DIFF,
    GET_SESSION,
    GET_TREE,
    LIST_SESSIONS,
    MARK_SEEN,
    SET_ACCESS,
    UPDATE_SESSION,
)
from agentctl.call import Call, here
from agentctl.failures import Failure, usage_failure
from agentctl.options import Group
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
    """Create, list, rename, move, share, close, reopen, export and import sessions."""


def working_directory(path: str | None, *, local: bool) -> str | None:
    """Return the working directory to send. With a local daemon it is absolute, by default the current one."""
    if path is not None:
        return path if not local or Path(path).is_absolute() else str(here() / path)
    return str(here()) if local else None


def require_absolute(values: Mapping[str, Any]) -> bool:
    """Return whether the options choose a host. It may be another machine: a relative path is not one of there.

    :raises Failure: if they do, and there is no absolute directory.
    """
    chosen = [name for name in ("host", "labels", "preferred_labels") if values.get(name)]
    if not chosen:
        return False
    directory = values["cwd"]
    if directory is None or not Path(directory).is_absolute():
        option = {"labels": "label", "preferred_labels": "prefer"}.get(chosen[0], chosen[0])
        raise usage_failure(f"with --{option}, name an absolute directory there: --cwd DIRECTORY")
    return True


def require_here(
    call: Call, directory: str, *, session_id: str | None = None, run_id: str | None = None
) -> None:
    """Refuse a relative path for a session of another host: it is one of this machine.

    :param run_id: a run of the session, instead of its id.
    :raises Failure: if it is one, or if the daemon does not answer.
    """
    if Path(directory).is_absolute() or not call.settings.is_local:
        return
    try:
        if run_id is not None:
            session_id = call.ask(GET_RUN, run_id=run_id).run.session_id
        host = call.ask(GET_SESSION, session_id=session_id).session.host
        status = call.ask(STATUS)
    except Failure as failure:
        if failure.code != "forbidden":
            raise
        return  # agents may not read the status; they are on the host of their daemon
    if host != status.host and host in [one.name for one in status.hosts]:
        raise usage_failure(f"the session is on the host {host}: name an absolute directory there")


def _placed(call: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if require_absolute(values):
        return values
    return values | {"cwd": working_directory(values["cwd"], local=call.settings.is_local)}


def _moved(call: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    if (directory := values.pop("directory") or values["cwd"]) is None:
        raise usage_failure("name the directory: session move SESSION_ID DIRECTORY")
    if values["host"] is not None:
        # It may be another machine: the path is not one of here.
        if not Path(directory).is_absolute():
            raise usage_failure("with --host, the directory must be an absolute path there")
        return values | {"cwd": directory}
    require_here(call, directory, session_id=values["session_id"])
    return _placed(call, values | {"cwd": directory})


row(
    session,
    "create",
    CREATE_SESSION,
    "views:session_card:session",
    "Create a session.",
    """
    agentctl session create --title "Fix the build" --provider demo
    agentctl session create --cwd ~/project --field session.id
    """,
    hint="next: agentctl ask --session-id {session.id} …",
    without=("text", "images", "effort", "output_schema"),
    prepare=_placed,
    cwd="The working directory of its agents.  [default: this directory]",
)
row(
    session,
    "list",
    LIST_SESSIONS,
    "views:session_table:sessions",
    "List sessions: the newest first on a terminal, otherwise the oldest.",
    """
    agentctl session list
    agentctl session list --status open --format json
    """,
)
row(
    session,
    "get",
    GET_SESSION,
    "views:session_card:session",
    "Show a session.",
    """
    agentctl session get ses_01k0
    agentctl session get @last --field session.last_seq
    """,
)
row(
    session,
    "seen",
    MARK_SEEN,
    "seen up to event {seq}",
    """Mark the events of a session as seen, for the token of this call.

    Lists with --activity show the mark as seen_seq.
    """,
    """
    agentctl session seen ses_01k0 --seq 12
    agentctl --format json session list --activity --order newest
    """,
)
row(
    session,
    "rename",
    UPDATE_SESSION,
    "session {session.id} is called {session.title}",
    "Change a session's title.",
    """
    agentctl session rename ses_01k0 "Fix the build"
    """,
    then="title",
    only=("idempotency_key",),
)
row(
    session,
    "model",
    UPDATE_SESSION,
    "session {session.id} uses {session.model}",
    "Change the model of a session, from the next message on. Queued runs keep theirs.",
    """
    agentctl session model ses_01k0 opus
    """,
    then="model",
    only=("idempotency_key",),
)
row(
    session,
    "notices",
    UPDATE_SESSION,
    "people are notified of session {session.id}: {session.notices}",
    """Choose what people are notified of: none, requests, all, or default.

    `all` includes the ends of its runs. Child sessions inherit the choice, unless they have made another.
    See `agentctl notify` for the targets.
    """,
    """
    agentctl session notices ses_01k0 all
    agentctl session notices ses_01k0 none
    """,
    then="notices",
    only=("idempotency_key",),
)
row(
    session,
    "move",
    UPDATE_SESSION,
    "views:moved_line:session",
    """Change a session's working directory, and its host, from the next run on.

    Queued runs also start there. Child sessions keep their directories. A session with an active
    run cannot be moved. To another host, the log and queued runs go along. The agent's conversation
    stays behind: its next run begins a new one.
    """,
    """
    agentctl session move ses_01k0 ~/project
    agentctl session move --session-id ses_01k0 --cwd .
    agentctl session move ses_01k0 --host builder --cwd /srv/project
    """,
    then="[directory]",
    only=("cwd", "host", "idempotency_key"),
    prepare=_moved,
    cwd="The new directory, instead of the argument.",
)
row(
    session,
    "close",
    CLOSE_SESSION,
    "views:closed_line",
    """Close a session, so that it accepts no more messages.

    Active and queued runs of the session and its descendants continue, unless --cascade is given.
    """,
    """
    agentctl session close ses_01k0
    agentctl session close ses_01k0 --cascade
    """,
)
row(
    session,
    "reopen",
    UPDATE_SESSION,
    "session {session.id} is {session.status}",
    "Open a closed session again, so that it accepts messages.",
    """
    agentctl session reopen ses_01k0
    """,
    only=("idempotency_key",),
    prepare=lambda _, values: values | {"status": "open"},
)


row(
    session,
    "retain",
    UPDATE_SESSION,
    "views:retention_line:session",
    """Set how much of a session's log is kept, in place of the daemon's settings.

    0 keeps all of it. Child sessions that are made later have the same limits.
    """,
    """
    agentctl session retain ses_01k0 --retain-days 30
    agentctl session retain ses_01k0 --retain-events 0
    """,
    only=("retain_days", "retain_events", "retain_bytes", "idempotency_key"),
)
row(
    session,
    "prune",
    PRUNE_SESSION,
    "views:pruned_lines",
    """Delete old events of a session now.

    The limits that are given hold for this call. Without any, those of the session hold, or else
    the daemon's. Messages, runs, requests and results stay. So do the events of what has not ended,
    and the newest event.
    """,
    """
    agentctl session prune ses_01k0
    agentctl session prune ses_01k0 --retain-days 30
    agentctl session prune ses_01k0 --retain-events 1000
    """,
)
row(
    session,
    "export",
    EXPORT_SESSION,
    "!session_files:export_session",
    """Write a session to a file: its runs, messages, requests and events, as JSON lines.

    Without FILE, print it. The last line proves that the file is complete. See `session import`.
    """,
    """
    agentctl session export ses_01k0 fix-the-build.jsonl
    agentctl session export @last | jq -r 'select(.kind == "message").message.text'
    """,
    then="[file]",
)
row(
    session,
    "archive",
    EXPORT_SESSION,
    "!session_files:archive_session",
    """Write a session to a new file, then close it and delete the events that the file has.

    Nothing is deleted before the file is complete, on the disk and read back. Messages, runs and
    results also stay in the database. A session with a run that has not ended is refused.
    """,
    """
    agentctl session archive ses_01k0 fix-the-build.jsonl
    """,
    then="file",
)
row(
    session,
    "import",
    IMPORT_SESSION,
    "!session_files:import_session",
    """Import a session from a file, or from standard input (-), whole or not at all.

    It becomes a closed session of yours. No run of it starts. It is in the daemon's directory, or in
    --cwd: those of the file are not used. `session reopen` lets it take messages.
    """,
    """
    agentctl session import fix-the-build.jsonl
    agentctl session import fix-the-build.jsonl --new-id --cwd ~/project
    ssh desk agentctl session export ses_01k0 | agentctl session import -
    """,
    of="",
    extra=(click.argument("file", metavar="FILE"),),
    new_id="Give the session, its runs, messages and requests new ids. Default: they keep theirs, and the import is "
    "refused if one is taken.",
    cwd="The working directory of the imported session.  [default: the daemon's]",
)
row(
    session,
    "tree",
    GET_TREE,
    "!session_actions:show_tree",
    "Show a session and its descendants as a tree, each with the state of its last run.",
    """
    agentctl session tree ses_01k0
    agentctl session tree --session-id ses_01k0 --field children.0.session.id
    """,
    limit="Maximum number of descendants.  [default: all]",
)

row(
    session,
    "diff",
    GET_DIFF,
    "!session_actions:show_diff",
    """Show what changed in a session's directory since the session began.

    In a git checkout: the files that were written since then and differ from the commit of that
    time, committed or not. Elsewhere: the changes that the session's agents have reported.
    """,
    """
    agentctl session diff ses_01k0
    agentctl session diff @last --whole
    agentctl --format json session diff ses_01k0 --field changes
    """,
    extra=(click.option("--whole", is_flag=True, help="Show long changes in full."),),
)

row(
    session,
    "link",
    CREATE_LINK,
    "!session_actions:show_link",
    """Create a share link: an address at which anyone who has it can read a session and its descendants.

    The link expires (--expires-in-s). `session unlink` revokes it earlier.
    """,
    """
    agentctl session link ses_01k0
    agentctl --url https://desk.example:8765 session link @last --expires-in-s 3600
    agentctl --format json session link ses_01k0 --field secret
    """,
)
row(
    session,
    "links",
    LIST_LINKS,
    "views:token_table:tokens",
    "List the share links of a session, expired and revoked ones too.",
    """
    agentctl session links ses_01k0
    """,
)
row(
    session,
    "unlink",
    REVOKE_LINK,
    "link {token.id} is revoked",
    "Revoke a share link. Its streams end.",
    """
    agentctl session unlink ses_01k0 tok_01k0
    """,
    of="session_id",
    then="token_id",
    without=("token_id",),
)

_ROLES: Final = {
    "reader": "Grant read access; repeatable.",
    "writer": "Grant write access; repeatable.",
    "owner": "Grant all rights of the owner; repeatable.",
    "remove": "Remove the access of this principal; repeatable.",
}


def _with_roles(_: Call, values: dict[str, Any]) -> Mapping[str, Any]:
    chosen: dict[str, str] = {}
    for role in _ROLES:
        for name in values.pop(role):
            if chosen.setdefault(name, role) != role:
                raise usage_failure(f"{name} is given two different roles: choose one")
    return values | {"chosen": chosen}


row(
    session,
    "share",
    SET_ACCESS,
    "!session_actions:share_session",
    "Share a session and its descendants with other principals. Without options, list the grants.",
    """
    agentctl session share ses_01k0 --reader bob --writer carol
    agentctl session share ses_01k0 --remove bob
    agentctl session share ses_01k0
    """,
    without=("grants",),
    prepare=_with_roles,
    extra=[
        click.option(f"--{one}", metavar="NAME", multiple=True, help=_ROLES[one]) for one in _ROLES
    ],
)

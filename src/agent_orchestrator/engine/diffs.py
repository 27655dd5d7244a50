"""The call for what was changed in a session's directory."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

from anyio.to_thread import run_sync

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.events import EventType
from agent_orchestrator.domain.model import Event, Session
from agent_orchestrator.engine.access import forbid_runs, session_for
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.sessions import ChangeKind, FileChange, GetDiff, SessionDiff

MAX_FILES: Final = 1_000
MAX_CHARACTERS: Final = 4 * 2**20

MAX_EVENTS: Final = 20_000
"""Maximum number of events that are searched for changes, the newest of the session."""

_EVENTS_AT_ONCE: Final = 500
_MAX_PATH: Final = 4_096


async def get(core: Core, caller: Principal, command: GetDiff) -> SessionDiff:
    # The daemon reads files here that an agent's sandbox may deny it.
    forbid_runs(caller)
    session = await core.store.read(
        lambda view: session_for(view, caller, Action.READ, command.session_id)
    )
    if not core.is_here(session.host) or await core.cwd_problem(session.cwd) is not None:
        return await _of_log(core, session)
    protected = await run_sync(core.config.protected, session.cwd)
    found = await core.config.host.directory_changes(
        session.cwd, session.created_at, hidden=(*protected.secret, *protected.read_only)
    )
    if found is None:
        return await _of_log(core, session)
    return SessionDiff(
        session.id, session.cwd, "git", found.base, found.changes, found.is_truncated
    )


async def _of_log(core: Core, session: Session) -> SessionDiff:
    """Return the changes that the agents of a session have reported, in their order."""
    cursor = max(session.oldest_cursor, session.last_seq - MAX_EVENTS)
    is_truncated = cursor > 0  # also if retention has deleted some
    changes: list[FileChange] = []
    size = 0
    while cursor < session.last_seq:
        events = await core.store.read(
            lambda view, after=cursor: view.events(  # type: ignore[misc]
                session.id, after=after, limit=_EVENTS_AT_ONCE, size=BATCH_SIZE
            )
        )
        if not events:
            break
        cursor = events[-1].seq
        # One event may have many megabytes.
        for change in await run_long(_all_reported, events):
            if len(changes) == MAX_FILES:
                return _reply_of_log(session, changes, is_truncated=True)
            size += len(change.diff or "")
            is_too_much = size > MAX_CHARACTERS
            is_truncated |= is_too_much
            changes.append(FileChange(change.path, change.kind, None) if is_too_much else change)
    return _reply_of_log(session, changes, is_truncated=is_truncated)


def _reply_of_log(
    session: Session, changes: Sequence[FileChange], *, is_truncated: bool
) -> SessionDiff:
    return SessionDiff(session.id, session.cwd, "events", None, tuple(changes), is_truncated)


def _all_reported(events: Sequence[Event]) -> list[FileChange]:
    return [change for event in events for change in _reported(event)]


def _reported(event: Event) -> list[FileChange]:
    """Return the changes that an event says were made. What an agent says may have any shape."""
    if event.event_type != EventType.FILE_CHANGED:
        return []
    if event.data.get("status") not in (None, "completed"):
        return []
    reported = event.data.get("changes")
    return [
        FileChange(
            str(change.get("path"))[:_MAX_PATH],
            cast("ChangeKind", kind) if (kind := change.get("kind")) in _KINDS else "update",
            diff if isinstance(diff := change.get("diff"), str) else None,
        )
        for change in (reported if isinstance(reported, list | tuple) else ())
        if isinstance(change, Mapping)
    ]


_KINDS: Final[tuple[Any, ...]] = get_args(ChangeKind)

"""Backup, and the check that the store is sound and its log says what its rows say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import Factory, define

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import Conflict, Unavailable
from agent_orchestrator.domain.events import STATE_AFTER, EventType
from agent_orchestrator.domain.lifecycle import is_terminal
from agent_orchestrator.domain.model import Event, Request, Run, Session
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import administrator
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.paging import PAGE_SIZE
from agent_orchestrator.operations import BackUp, BackupReply, CheckReply, CheckStore
from agent_orchestrator.ports import Maintaining, View

MOST: Final = 100
"""Findings told at most."""

EVENTS_PAGE: Final = 300
ROWS_PAGE: Final = 50
"""Rows of a kind compared in one look: few, so that no look holds the store's log up."""


async def back_up(core: Core, who: Principal, command: BackUp) -> BackupReply:
    """Copy the store into a file on the engine's machine.

    :raises Conflict: if the store cannot be copied, or there is a file and it is not to be replaced.
    """
    await core.store.read(lambda view: administrator(view, who))
    if not isinstance(core.store, Maintaining):
        raise Conflict(f"a store of the kind {core.store.backend} cannot be copied into a file")
    size = await core.store.back_up(Path(command.path), replace=command.force)
    return BackupReply(command.path, size)


async def check_store(core: Core, who: Principal, command: CheckStore) -> CheckReply:
    """Return what is wrong with the store: its file, its log, and its log beside its rows."""
    await core.store.read(lambda view: administrator(view, who))
    found: list[str] = []
    if isinstance(core.store, Maintaining):
        with _told(found, "store"):
            found += [f"store: {finding}" for finding in await core.store.check()]
    sessions = runs = events = 0
    with _told(found, "sessions"):
        after: str | None = None
        while page := await core.store.read(
            lambda view, after=after: view.sessions(after=after, limit=ROWS_PAGE)  # type: ignore[misc]
        ):
            for session in page:
                replay = _Replay(session.id)
                with _told(replay.found, f"session {session.id}"):
                    while not await core.store.read(replay.advance):
                        pass
                sessions, runs = sessions + 1, runs + replay.compared
                events += replay.last_seq
                found += replay.found
            after = page[-1].id
    with _told(found, "audit"):
        found += await audit.check(core)
    return CheckReply(not found, tuple(found[:MOST]), sessions, runs, events)


@contextmanager
def _told(found: list[str], what: str) -> Iterator[None]:
    """Make a finding of what cannot be read: who checks asks for just that, and for all the rest."""
    try:
        yield
    except Unavailable as error:
        if "problem" not in error.details:
            raise
        found.append(f"{what}: {error.message}")


@define
class _Told:
    """A run as the log tells of it."""

    status: str | None = None
    attempt: int | None = None
    endings: int = 0
    after_its_end: int = 0


@define
class _Replay:
    """One session's log, read from its beginning, and then compared with its rows.

    The session may go on meanwhile: rows are compared only in a look that finds the log read to its
    end.
    """

    session_id: str
    found: list[str] = Factory(list)
    last_seq: int = 0
    compared: int = 0
    _status: str = "open"
    _runs: dict[str, _Told] = Factory(dict)
    _requests: dict[str, str] = Factory(dict)
    _next_run: str | None = ""
    _next_request: str | None = ""

    def advance(self, view: View) -> bool:
        """Go on; return whether all is read and compared."""
        last = self.last_seq
        events = view.events(self.session_id, after=last, limit=EVENTS_PAGE, size=PAGE_SIZE)
        for event in events:
            self._take(event)
        session = view.session(self.session_id)
        assert session is not None, "sessions are never removed"
        if events and self.last_seq < session.last_seq:
            return False
        if self._next_run is not None:
            runs = view.runs(
                session_id=session.id,
                after=self._next_run or None,
                limit=ROWS_PAGE,
                size=PAGE_SIZE,
            )
            for run in runs:
                self._compare_run(run)
            self._next_run = runs[-1].id if runs else None
        elif self._next_request is not None:
            requests = view.requests(
                session_id=session.id, after=self._next_request or None, limit=ROWS_PAGE
            )
            for request in requests:
                self._compare_request(request)
            self._next_request = requests[-1].id if len(requests) == ROWS_PAGE else None
        if self._next_run is not None or self._next_request is not None:
            return False
        self._compare_session(session)
        return True

    def _take(self, event: Event) -> None:
        if event.seq != self.last_seq + 1:
            self._say(f"its log goes from {self.last_seq} to {event.seq}")
        self.last_seq = event.seq
        if event.event_type in (EventType.SESSION_UPDATED, EventType.SESSION_CLOSED):
            self._status = event.data.get("status", self._status)
        elif (
            event.event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_RESOLVED)
            and event.data["session_id"] == self.session_id  # else a copy for those above
        ):
            self._requests[event.data["id"]] = event.data["status"]
        if event.run_id is None:
            return
        told = self._runs.setdefault(event.run_id, _Told())
        told.after_its_end += told.endings > 0
        if (status := STATE_AFTER.get(event.event_type)) is not None:
            told.status, told.attempt = str(status), event.attempt
            told.endings += is_terminal(status)

    def _compare_run(self, run: Run) -> None:
        self.compared += 1
        told = self._runs.get(run.id, _Told())
        said: tuple[Any, ...] = (told.status, told.attempt)
        if said != (str(run.status), run.attempt):
            self._say(f"run {run.id} is {run.status}, attempt {run.attempt}; its log says {said}")
        if told.endings != int(is_terminal(run.status)):
            self._say(f"run {run.id} is {run.status} and has {told.endings} last events")
        if told.after_its_end:
            self._say(f"run {run.id} has {told.after_its_end} events after its end")

    def _compare_request(self, request: Request) -> None:
        said = self._requests.get(request.id)
        if said != request.status:
            self._say(f"request {request.id} is {request.status}, its log says {said}")

    def _compare_session(self, session: Session) -> None:
        if session.last_seq != self.last_seq:
            self._say(f"its last_seq is {session.last_seq}, its log ends with {self.last_seq}")
        if session.status != self._status:
            self._say(f"it is {session.status}, its log says {self._status}")

    def _say(self, finding: str) -> None:
        if len(self.found) < MOST:
            self.found.append(f"session {self.session_id}: {finding}")

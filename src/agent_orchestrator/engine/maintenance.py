"""Back up the store, check its integrity, and compare its events with its rows."""

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
from agent_orchestrator.engine.access import require_admin
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.paging import PAGE_SIZE
from agent_orchestrator.operations.daemon import BackUp, BackupReply, CheckReply, CheckStore
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.store import Maintaining

MAX_FINDINGS: Final = 100
"""Maximum number of findings in a reply."""

EVENTS_PAGE: Final = 300
"""Maximum number of events per read, to keep each read short."""

ROWS_PAGE: Final = 50
"""Maximum number of sessions, runs or requests per read."""


async def back_up(core: Core, caller: Principal, command: BackUp) -> BackupReply:
    """Copy the store to a file on the engine's machine.

    :raises Conflict: if the store does not support it, or the file exists and may not be replaced.
    """
    await core.store.read(lambda view: require_admin(view, caller))
    if not isinstance(core.store, Maintaining):
        raise Conflict(f"a store of the kind {core.store.backend} cannot be backed up to a file")
    size = await core.store.back_up(Path(command.path), replace=command.force)
    return BackupReply(command.path, size)


async def check_store(core: Core, caller: Principal, command: CheckStore) -> CheckReply:
    """Check the store's integrity, its events against its rows, and the audit trail."""
    await core.store.read(lambda view: require_admin(view, caller))
    findings: list[str] = []
    if isinstance(core.store, Maintaining):
        with _recording_failure(findings, "store"):
            findings += [f"store: {finding}" for finding in await core.store.check()]
    sessions = runs = events = 0
    with _recording_failure(findings, "sessions"):
        after: str | None = None
        while page := await core.store.read(
            lambda view, after=after: view.sessions(after=after, limit=ROWS_PAGE)  # type: ignore[misc]
        ):
            for session in page:
                replay = _Replay(session.id)
                with _recording_failure(replay.findings, f"session {session.id}"):
                    while not await core.store.read(replay.advance):
                        pass
                sessions, runs = sessions + 1, runs + replay.compared
                events += replay.event_count
                findings += replay.findings
            after = page[-1].id
    with _recording_failure(findings, "audit"):
        findings += await audit.check(core)
    return CheckReply(not findings, tuple(findings[:MAX_FINDINGS]), sessions, runs, events)


@contextmanager
def _recording_failure(findings: list[str], subject: str) -> Iterator[None]:
    """Record unreadable data as a finding, so that the check continues."""
    try:
        yield
    except Unavailable as error:
        if "problem" not in error.details:
            raise
        findings.append(f"{subject}: {error.message}")


@define
class _LoggedRun:
    """A run's state according to its events."""

    status: str | None = None
    attempt: int | None = None
    end_count: int = 0
    events_after_end: int = 0


@define
class _Replay:
    """Reads one session's events from the first, then compares the resulting states with the rows.

    The session may change meanwhile. So rows are compared only in a read that has reached the last event. Of
    what was deleted nothing can be said but how much it was.
    """

    session_id: str
    findings: list[str] = Factory(list)
    last_seq: int = 0
    event_count: int = 0
    compared: int = 0
    _deleted_before: int | None = None
    _deleted: int = 0
    _first_gap: str = ""
    _status: str | None = "open"
    _runs: dict[str, _LoggedRun] = Factory(dict)
    _requests: dict[str, str] = Factory(dict)
    _next_run: str | None = ""
    _next_request: str | None = ""

    def advance(self, view: View) -> bool:
        """Read or compare the next part. Return True when all is compared."""
        last = self.last_seq
        self._deleted = view.pruned_log(self.session_id).count
        if self._deleted_before is None:
            self._deleted_before = self._deleted
        events = view.events(self.session_id, after=last, limit=EVENTS_PAGE, size=PAGE_SIZE)
        for event in events:
            self._apply(event)
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
        self._compare_count()
        return True

    def _apply(self, event: Event) -> None:
        if event.seq != self.last_seq + 1:
            self._first_gap = self._first_gap or f"event {event.seq} follows event {self.last_seq}"
            if self.last_seq == 0:
                self._status = None
        self.last_seq = event.seq
        self.event_count += 1
        if event.event_type in (
            EventType.SESSION_UPDATED,
            EventType.SESSION_CLOSED,
            EventType.SESSION_IMPORTED,
        ):
            self._status = event.data.get("status", self._status)
        elif (
            event.event_type in (EventType.REQUEST_CREATED, EventType.REQUEST_RESOLVED)
            and event.data["session_id"] == self.session_id  # else a copy from a descendant
        ):
            self._requests[event.data["id"]] = event.data["status"]
        if event.run_id is None or event.event_type == EventType.REQUEST_NOTIFIED:
            return  # a device may show a notice after the end of the run
        logged = self._runs.setdefault(event.run_id, _LoggedRun())
        logged.events_after_end += logged.end_count > 0
        if (status := STATE_AFTER.get(event.event_type)) is not None:
            logged.status, logged.attempt = str(status), event.attempt
            logged.end_count += is_terminal(status)

    def _compare_run(self, run: Run) -> None:
        self.compared += 1
        if run.id not in self._runs and self._deleted and is_terminal(run.status):
            return
        logged = self._runs.get(run.id, _LoggedRun())
        state: tuple[Any, ...] = (logged.status, logged.attempt)
        if state != (str(run.status), run.attempt):
            self._report(
                f"run {run.id} is {run.status}, attempt {run.attempt}, but its log says {state}"
            )
        if logged.end_count != int(is_terminal(run.status)):
            self._report(f"run {run.id} is {run.status} and has {logged.end_count} terminal events")
        if logged.events_after_end:
            self._report(f"run {run.id} has {logged.events_after_end} events after its end")

    def _compare_request(self, request: Request) -> None:
        status = self._requests.get(request.id)
        if status is None and self._deleted and not request.is_open:
            return
        if status != request.status:
            self._report(f"request {request.id} is {request.status}, but its log says {status}")

    def _compare_session(self, session: Session) -> None:
        if session.last_seq != self.last_seq:
            self._report(
                f"its last_seq is {session.last_seq}, but its log ends with {self.last_seq}"
            )
        if self._status is not None and session.status != self._status:
            self._report(f"it is {session.status}, but its log says {self._status}")

    def _compare_count(self) -> None:
        missing = self.last_seq - self.event_count
        # Some may have been deleted after they were read.
        if missing > self._deleted or missing < (self._deleted_before or 0):
            self._report(
                f"{missing} of its events are missing, and {self._deleted} were deleted: {self._first_gap}"
                if self._deleted
                else f"in its log, {self._first_gap}"
            )

    def _report(self, finding: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(f"session {self.session_id}: {finding}")

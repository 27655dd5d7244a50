"""The call that writes a session to a file.

The file is of one moment. What changes while it is sent is left out.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.lowlevel
from attrs import define, evolve, field, frozen

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import Conflict
from agent_orchestrator.domain.lifecycle import RunStatus, is_terminal
from agent_orchestrator.domain.model import Attempt, PrunedLog, Request, Run, Session
from agent_orchestrator.engine import audit
from agent_orchestrator.engine.access import forbid_runs, seconds_left, session_for
from agent_orchestrator.engine.core import MAX_READ_ROWS, Core
from agent_orchestrator.engine.paging import BATCH_SIZE
from agent_orchestrator.long_work import run_long
from agent_orchestrator.operations.session_files import EXPORT_SESSION, ExportSession
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.ports.transport import Download
from agent_orchestrator.wire.codec import to_plain
from agent_orchestrator.wire.session_file import Writer

BATCH: Final = 200
"""Maximum number of rows that are read at once."""

_ATTEMPT_FIELDS: Final = (
    "attempt",
    "provider",
    "started_at",
    "ended_at",
    "outcome",
    "delivered_at",
    "stderr_tail",
    "steerable",
)
"""The fields of an attempt that a file has. The others are of the machine, or secret."""


@frozen
class _Moment:
    """A session at the moment when its file was begun.

    :param live: its runs that had not ended.
    :param reserved_ids: ids of runs that did not exist yet: a message that waits keeps one, for its place in the queue.
    :param pending: its open requests.
    :param last_request_id: of its newest request; empty if it had none.
    :param next_ids: an id of each other kind that sorts after all earlier ones.
    """

    session: Session
    pruned: PrunedLog
    run_count: int
    live: dict[str, Run]
    reserved_ids: frozenset[str]
    pending: dict[str, Request]
    last_request_id: str
    next_ids: dict[str, str]


@asynccontextmanager
async def export_session(
    core: Core, caller: Principal, command: ExportSession
) -> AsyncIterator[Download]:
    """Open the file of a session, and record it in the audit trail."""

    def begin(tx: Transaction) -> _Moment:
        forbid_runs(caller)
        session = session_for(tx, caller, Action.READ, command.session_id)
        live: dict[str, Run] = {}
        for status in RunStatus:
            if not is_terminal(status):
                live |= {run.id: run for run in _all_runs(tx, session.id, status)}
        pending = tx.requests(session_id=session.id, status="pending", limit=MAX_READ_ROWS)
        newest = tx.requests(session_id=session.id, order="newest", limit=1)
        audit.add_entry(
            core, tx, caller, EXPORT_SESSION.name, session.id, detail={"last_seq": session.last_seq}
        )
        ids = core.config.ids
        return _Moment(
            session,
            tx.pruned_log(session.id),
            tx.run_count(session.id),
            live,
            _reserved_ids(tx, session.id, live),
            {request.id: request for request in pending},
            newest[0].id if newest else "",
            {"run": ids("run"), "msg": ids("msg")},
        )

    moment = await core.store.transact(begin)
    yield _Export(core, caller, moment)


def _all_runs(view: View, session_id: str, status: RunStatus) -> Iterator[Run]:
    after = None
    while runs := view.runs(session_id=session_id, status=status, after=after, limit=MAX_READ_ROWS):
        yield from runs
        after = runs[-1].id


def _reserved_ids(view: View, session_id: str, live: Iterable[str]) -> frozenset[str]:
    """Return the ids that messages keep for runs that do not exist yet.

    :param live: ids of the runs that have not ended.
    """
    messages = [*view.waiting_messages(session_id, limit=MAX_READ_ROWS, size=BATCH_SIZE)]
    for run_id in live:
        messages += view.run_messages(run_id)
    kept = (message.own_run_id for message in messages)
    return frozenset(one for one in kept if one is not None and view.run(one) is None)


@define
class _Export:
    """Reads a session in small parts, each after a new check of access."""

    core: Core
    caller: Principal
    moment: _Moment
    _writer: Writer = field(factory=Writer)
    _step: int = 0
    """The place of the next part in :data:`_STEPS`."""
    _after: Any = None
    """The last row that was read in this step."""
    _run_ids: set[str] = field(factory=set)

    async def receive(self) -> bytes:
        while self._step < len(_STEPS):
            await anyio.lowlevel.checkpoint_if_cancelled()
            seconds_left(self.core, self.caller)
            rows = await self.core.store.read(self._read)
            if not rows:
                self._step, self._after = self._step + 1, None
                continue
            # Long texts take long, and other callers go on meanwhile.
            if data := await run_long(self._encode, rows):
                return data
        return b""

    def _read(self, view: View) -> list[Any]:
        session = session_for(view, self.caller, Action.READ, self.moment.session.id)
        return _STEPS[self._step](self, view, session.id)

    def _encode(self, rows: list[Any]) -> bytes:
        return b"".join(rows_as_lines(self._writer, rows))

    def _header(self, _: View, session_id: str) -> list[Any]:
        if self._after is not None:
            return []
        self._after = session_id
        moment = self.moment
        last_seq = moment.session.last_seq
        fields = {
            "made_by": f"agent-orchestrator {self.core.config.version}",
            "made_at": to_plain(self.core.now()),
            "session": to_plain(moment.session),
            "pruned": {
                "seq": moment.pruned.seq,
                "count": moment.pruned.count,
                "digest": moment.pruned.digest,
            },
            "counts": {"runs": moment.run_count, "events": last_seq - moment.pruned.count},
        }
        return [("header", fields)]

    def _runs(self, view: View, session_id: str) -> list[Any]:
        runs = view.runs(session_id=session_id, after=self._after, limit=BATCH, size=BATCH_SIZE)
        if not runs:
            return []
        self._after = runs[-1].id
        rows: list[Any] = [None]
        for now in runs:
            if now.id < self.moment.next_ids["run"] and now.id not in self.moment.reserved_ids:
                run = self.moment.live.get(now.id, now)
                self._run_ids.add(run.id)
                attempts = [one for one in view.attempts(run.id) if one.attempt <= run.attempt]
                rows.append(("run", {"run": to_plain(run), "attempts": _plain_attempts(attempts)}))
        return rows

    def _messages(self, view: View, session_id: str) -> list[Any]:
        messages = view.messages(session_id, after=self._after, limit=BATCH, size=BATCH_SIZE)
        if not messages:
            return []
        self._after = messages[-1].id
        rows: list[Any] = [None]
        for message in messages:
            if message.id < self.moment.next_ids["msg"]:
                if message.run_id is not None and message.run_id not in self._run_ids:
                    message = evolve(message, run_id=None, delivery="queued")  # noqa: PLW2901
                rows.append(("message", {"message": to_plain(message)}))
        return rows

    def _requests(self, view: View, session_id: str) -> list[Any]:
        requests = view.requests(
            session_id=session_id, after=self._after, limit=BATCH, size=BATCH_SIZE
        )
        if not requests:
            return []
        self._after = requests[-1].id
        rows: list[Any] = [None]
        moment = self.moment
        for now in requests:
            # An id may be made some time before its request is stored.
            is_later = now.id > moment.last_request_id or (
                now.is_open and now.id not in moment.pending
            )
            if not is_later and now.run_id in self._run_ids:
                request = moment.pending.get(now.id, now)
                rows.append(("request", {"request": to_plain(request)}))
        return rows

    def _events(self, view: View, session_id: str) -> list[Any]:
        after = self._after or 0
        last_seq = self.moment.session.last_seq
        if view.pruned_log(session_id).count != self.moment.pruned.count:
            raise Conflict(
                "events of the session were deleted meanwhile: export it again",
                {"session_id": session_id},
            )
        events = view.events(session_id, after=after, limit=BATCH, size=BATCH_SIZE)
        events = [event for event in events if event.seq <= last_seq]
        if events:
            self._after = events[-1].seq
        return list(events)

    def _end(self, _: View, session_id: str) -> list[Any]:
        rows = [] if self._after is not None else ["end"]
        self._after = session_id
        return rows


_STEPS: Final = (
    _Export._header,  # noqa: SLF001
    _Export._runs,  # noqa: SLF001
    _Export._messages,  # noqa: SLF001
    _Export._requests,  # noqa: SLF001
    _Export._events,  # noqa: SLF001
    _Export._end,  # noqa: SLF001
)


def _plain_attempts(attempts: list[Attempt]) -> list[dict[str, Any]]:
    return [{name: to_plain(getattr(one, name)) for name in _ATTEMPT_FIELDS} for one in attempts]


def rows_as_lines(writer: Writer, rows: list[Any]) -> Iterator[bytes]:
    """Yield the lines of rows; None has no line."""
    for row in rows:
        match row:
            case None:
                pass
            case "end":
                yield writer.end()
            case ("header", fields):
                yield writer.header(fields)
            case (kind, fields):
                yield writer.record(kind, fields)
            case event:
                yield writer.event(event)
